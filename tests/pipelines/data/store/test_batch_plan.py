"""The batch of a step is one, however many workers share it; an epoch shows every row once."""

from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError, DataError
from models.rng import Key
from pipelines.data.store.batch_plan import BatchPlan, RowRef

PLANS = st.builds(
    BatchPlan,
    seed=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple),
    batch=st.sampled_from([4, 8, 12, 64]),
    stream=st.sampled_from(["", "short", "long"]),
)


def bucket_of(plan: BatchPlan, index: int) -> int:
    """The bucket that a row belongs to."""
    return next(number for number, end in enumerate(accumulate(plan.sizes)) if index < end)


@given(st.integers(1, 60), st.sampled_from([4, 8, 12, 64]), st.integers(0, 60))
def test_the_order_of_one_bucket_is_its_formula(size: int, batch: int, step: int) -> None:
    """Datasets of one shape are trained by it: pass e is the permutation drawn for (seed, e)."""
    for row in BatchPlan(5, (size,), batch, "short").rows(step):
        epoch, offset = divmod(step * batch + row.sample, size)
        key = Key(5, step=epoch, purpose="epoch order/short")
        assert row.index == key.numpy().permutation(size)[offset]


@given(PLANS, st.integers(0, 60), st.sampled_from([1, 2, 4]))
def test_a_batch_is_of_one_bucket_and_shared_alike_by_any_workers(
    plan: BatchPlan, step: int, world: int
) -> None:
    whole = plan.rows(step)
    assert len({bucket_of(plan, row.index) for row in whole}) == 1
    assert [row for rank in range(world) for row in plan.rows(step, rank, world)] == whole
    assert [row.sample for row in whole] == list(range(plan.batch))
    shares = [len(plan.rows(step, rank, world)) for rank in range(world)]
    assert max(shares) - min(shares) <= 1


@given(PLANS)
def test_every_pass_of_a_bucket_shows_each_of_its_rows_once(plan: BatchPlan) -> None:
    """Rows run on into the bucket's next pass: none is lost, none doubled, whatever divides by what."""
    steps = 3 * -(-sum(plan.sizes) // plan.batch) + len(plan.sizes)
    shown: dict[int, list[int]] = {}
    for step in range(steps):
        for row in plan.rows(step):
            shown.setdefault(bucket_of(plan, row.index), []).append(row.index)
    firsts = [0, *accumulate(plan.sizes)]
    for bucket, rows in shown.items():
        size, own = plan.sizes[bucket], range(firsts[bucket], firsts[bucket + 1])
        passes = [rows[start : start + size] for start in range(0, len(rows), size)]
        assert all(sorted(one) == list(own) for one in passes if len(one) == size)
        assert len(set(passes[-1])) == len(passes[-1])


@given(PLANS, st.integers(1, 6))
def test_buckets_take_turns_in_proportion_to_their_rows(plan: BatchPlan, epochs: int) -> None:
    """After e epochs each bucket has begun all batches of e passes, and none of the next pass."""
    steps = sum(-(-epochs * size // plan.batch) for size in plan.sizes)
    turns = [plan.turn(step) for step in range(steps)]
    counts = Counter(bucket for bucket, _ in turns)
    for bucket, size in enumerate(plan.sizes):
        assert counts[bucket] == -(-epochs * size // plan.batch)
        assert [turn for own, turn in turns if own == bucket] == list(range(counts[bucket]))


def test_where_the_buckets_divide_by_the_batch_an_epoch_shows_every_row_once() -> None:
    plan = BatchPlan(1, (24, 8, 40), 8, "long")
    steps = (24 + 8 + 40) // 8
    for epoch in range(4):
        shown = [row.index for step in range(steps) for row in plan.rows(epoch * steps + step)]
        assert sorted(shown) == list(range(72))


def test_the_turns_are_mixed_and_drawn_for_each_epoch_and_seed_and_corpus() -> None:
    def turns(seed: int, epoch: int, stream: str = "") -> list[int]:
        plan = BatchPlan(seed, (80, 80), 8, stream)
        return [plan.turn(20 * epoch + place)[0] for place in range(20)]

    different = [turns(0, 0), turns(1, 0), turns(0, 1), turns(0, 0, "long"), sorted(turns(0, 0))]
    assert all(Counter(one) == {0: 10, 1: 10} for one in different)
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_a_stop_at_any_step_changes_no_bucket() -> None:
    sizes = (37, 5, 18)
    unbroken = [BatchPlan(3, sizes, 8).rows(step) for step in range(20)]
    for stop in range(20):
        resumed = BatchPlan(3, sizes, 8)
        assert [resumed.rows(step) for step in range(stop, 20)] == unbroken[stop:]


@given(PLANS, st.integers(0, 100))
def test_a_step_needs_no_step_before_it(plan: BatchPlan, step: int) -> None:
    alone = plan.rows(step)
    fresh = BatchPlan(plan.seed, plan.sizes, plan.batch, plan.stream)
    for earlier in range(step):
        fresh.rows(earlier)
    assert fresh.rows(step) == alone


def test_the_order_is_the_seeds_and_the_epochs() -> None:
    def order(seed: int, epoch: int, stream: str = "") -> list[int]:
        return [row.index for row in BatchPlan(seed, (100,), 100, stream).rows(epoch)]

    assert order(0, 0) == order(0, 0)
    different = [order(0, 0), order(1, 0), order(0, 1), order(0, 0, "long"), list(range(100))]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_a_batch_larger_than_the_corpus_goes_round() -> None:
    rows = BatchPlan(0, (3,), 7).rows(0)
    assert sorted(row.index for row in rows[:3]) == [0, 1, 2]
    assert sorted(row.index for row in rows[3:6]) == [0, 1, 2]
    assert rows[0] == RowRef(rows[0].index, 0)


@pytest.mark.parametrize(("rank", "world"), [(0, 9), (2, 2), (-1, 2), (0, 0)])
def test_workers_that_cannot_share_are_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match="cannot be shared"):
        BatchPlan(0, (10,), 8).rows(0, rank, world)


def test_an_empty_corpus_or_batch_is_refused() -> None:
    for sizes in ((), (0,), (8, 0)):
        with pytest.raises(DataError, match="no windows"):
            BatchPlan(0, sizes, 8)
    with pytest.raises(ConfigError, match="batch of 0"):
        BatchPlan(0, (8, 3), 0)
