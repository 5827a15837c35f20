"""The batch of a step is one, however many workers share it; an epoch shows every row once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError, DataError
from pipelines.data.plan import BatchPlan, RowRef

PLANS = st.builds(
    BatchPlan,
    seed=st.integers(0, 5),
    num_rows=st.integers(1, 60),
    batch=st.sampled_from([4, 8, 12, 64]),
    stream=st.sampled_from(["", "short", "long"]),
)


@given(PLANS, st.integers(0, 40), st.sampled_from([1, 2, 4]))
def test_any_number_of_workers_shares_the_same_batch(plan: BatchPlan, step: int, world: int) -> None:
    whole = plan.rows(step)
    shared = [row for rank in range(world) for row in plan.rows(step, rank, world)]
    assert shared == whole
    assert [row.sample for row in whole] == list(range(plan.batch))
    assert len({len(plan.rows(step, rank, world)) for rank in range(world)}) == 1


@given(PLANS)
def test_every_epoch_shows_every_row_once(plan: BatchPlan) -> None:
    epochs = 3
    steps = -(-epochs * plan.num_rows // plan.batch)
    order = [row.index for step in range(steps) for row in plan.rows(step)]
    for epoch in range(epochs):
        shown = order[epoch * plan.num_rows : (epoch + 1) * plan.num_rows]
        assert sorted(shown) == list(range(plan.num_rows))


@given(PLANS, st.integers(0, 100))
def test_a_step_needs_no_step_before_it(plan: BatchPlan, step: int) -> None:
    alone = plan.rows(step)
    fresh = BatchPlan(plan.seed, plan.num_rows, plan.batch, plan.stream)
    for earlier in range(step):
        fresh.rows(earlier)
    assert fresh.rows(step) == alone


def test_a_stop_at_any_step_loses_and_doubles_nothing() -> None:
    plan = BatchPlan(3, 37, 8)
    unbroken = [row for step in range(20) for row in plan.rows(step)]
    for stop in range(20):
        before = [row for step in range(stop) for row in plan.rows(step)]
        resumed = BatchPlan(3, 37, 8)
        after = [row for step in range(stop, 20) for row in resumed.rows(step)]
        assert before + after == unbroken


def test_the_order_is_the_seeds_and_the_epochs() -> None:
    def order(seed: int, epoch: int, stream: str = "") -> list[int]:
        return [row.index for row in BatchPlan(seed, 100, 100, stream).rows(epoch)]

    assert order(0, 0) == order(0, 0)
    different = [order(0, 0), order(1, 0), order(0, 1), order(0, 0, "long"), list(range(100))]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_a_batch_larger_than_the_corpus_goes_round() -> None:
    rows = BatchPlan(0, 3, 7).rows(0)
    assert sorted(row.index for row in rows[:3]) == [0, 1, 2]
    assert sorted(row.index for row in rows[3:6]) == [0, 1, 2]
    assert rows[0] == RowRef(rows[0].index, 0)


@pytest.mark.parametrize(("rank", "world"), [(0, 3), (2, 2), (-1, 2), (0, 0)])
def test_workers_that_cannot_share_are_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match="cannot be shared"):
        BatchPlan(0, 10, 8).rows(0, rank, world)


def test_an_empty_corpus_or_batch_is_refused() -> None:
    with pytest.raises(DataError, match="no windows"):
        BatchPlan(0, 0, 8)
    with pytest.raises(ConfigError, match="batch of 0"):
        BatchPlan(0, 8, 0)
