"""Windows of several shapes in training: each batch has one, each row its turn."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.rng import Key
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.types import CORPORA, CorpusName
from pipelines.training.batches import BatchSource, fixed_batch
from pipelines.training.collectives import Workers
from pipelines.training.config import StageConfig
from pipelines.training.distill import DistillStage
from pipelines.training.distillation import critic
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batches
from pipelines.training.state import Rollout, TrainState, load_state, save_state
from pipelines.training.supervised import SupervisedStage
from tests.pipelines.data import bucketed
from tests.pipelines.data.bucketed import MADE_ROWS, latents_of
from tests.pipelines.training import makers

STAGE = StageConfig(steps=40, short_batch=4, long_batch=4)
STOPS = 20
SHAPES = {corpus: {latents_of(pixels): n for pixels, n in rows.items()} for corpus, rows in MADE_ROWS.items()}
MAIN = {corpus: next(iter(shapes)) for corpus, shapes in SHAPES.items()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bucketed")
    bucketed.make(folder)
    return str(folder)


def source(dataset: str, rank: int = 0, size: int = 1, stage: StageConfig = STAGE) -> BatchSource:
    return BatchSource(dataset, stage, 3, Workers(rank, size))


def latents(batches: Batches) -> dict[str, Tensor]:
    assert batches.short is not None
    assert batches.long is not None
    return {"short": batches.short.latents, "long": batches.long.latents}


@pytest.fixture(scope="module")
def unbroken(dataset: str) -> list[dict[str, Tensor]]:
    alone = source(dataset)
    return [latents(alone.at(step, "cpu")) for step in range(STOPS + 2)]


@pytest.mark.parametrize("corpus", CORPORA)
def test_three_passes_of_each_bucket_lose_and_double_no_row(corpus: CorpusName, dataset: str) -> None:
    """Rows by their bytes; the ids of a dataset are theirs."""
    rows, reader = ShardDataset(dataset, corpus), source(dataset)
    shown: dict[tuple[int, ...], list[bytes]] = {}
    for step in range(3 * len(rows) // 4 + len(rows.buckets)):
        batch = latents(reader.at(step, "cpu"))[corpus]
        shown.setdefault(tuple(batch.shape[1:]), []).extend(row.numpy().tobytes() for row in batch)
    assert set(shown) == set(SHAPES[corpus])
    for shape, seen in shown.items():
        size = SHAPES[corpus][shape]
        for start in range(0, len(seen) - size + 1, size):
            assert set(Counter(seen[start : start + size]).values()) == {1}
        assert len(set(seen)) == size
        assert len(seen) >= 2 * size


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_stop_at_any_step_and_any_number_of_workers_change_no_batch(
    size: int, dataset: str, unbroken: list[dict[str, Tensor]]
) -> None:
    for stop in range(STOPS):
        readers = [source(dataset, rank, size) for rank in range(size)]
        for step in (stop, stop + 1):
            shares = [latents(reader.at(step, "cpu")) for reader in readers]
            for corpus in CORPORA:
                together = torch.cat([share[corpus] for share in shares])
                assert torch.equal(together, unbroken[step][corpus])


def test_short_and_long_take_their_shapes_independently(unbroken: list[dict[str, Tensor]]) -> None:
    pairs = {(step["short"].shape[3:], step["long"].shape[3:]) for step in unbroken}
    assert len(pairs) == 4


@pytest.mark.parametrize("corpus", CORPORA)
def test_what_is_held_out_is_of_the_main_bucket(corpus: CorpusName, tmp_path: Path) -> None:
    bucketed.make(tmp_path, holdout=0.4)
    rows = ShardDataset(str(tmp_path), corpus, "holdout")
    made = dataclasses.replace(recipe(makers.SFT), dataset=str(tmp_path))
    batch = fixed_batch(made, corpus, "holdout", 64, Workers(), torch.device("cpu"))
    assert batch is not None
    assert 0 < len(batch.latents) == len(rows.main) < len(rows)
    assert tuple(batch.latents.shape[1:]) == MAIN[corpus]
    assert torch.equal(batch.latents, rows.read(rows.buckets[0].tolist()).latents)


def recipe(stage: StageConfig, start: dict[str, str] | None = None) -> Recipe:
    """That of the other tests, for the main shapes of this dataset."""
    return dataclasses.replace(
        makers.recipe(stage, start), short_shape=MAIN["short"], long_shape=MAIN["long"]
    )


def run(
    stage: SupervisedStage | DistillStage, state: TrainState, data: BatchSource, steps: int
) -> list[Batches]:
    """Steps on the dataset's own batches, which are returned."""
    taken = []
    for _ in range(steps):
        taken.append(data.at(state.step, "cpu"))
        metrics = stage.step(state, taken[-1], Key(0, state.step, purpose="step")).metrics
        assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    return taken


@pytest.fixture(scope="module")
def starts(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher and a long-SFT student that were trained on batches of every shape."""
    torch.set_num_threads(1)
    folder, found = tmp_path_factory.mktemp("starts"), {}
    for role, settings in (("teacher", makers.TEACHER), ("student", makers.SFT)):
        stage = SupervisedStage(recipe(settings, dict(found)))
        state = stage.init("cpu")
        batches = run(stage, state, source(dataset, stage=settings), 14)
        corpus = "short" if role == "teacher" else "long"
        seen = {tuple(getattr(batch, corpus).latents.shape[1:]) for batch in batches}
        assert seen == set(SHAPES[corpus])
        (folder / role).mkdir()
        save_state(state, stage.spec, folder / role)
        found[role] = str(folder / role)
    return found


def test_each_rollout_has_the_shape_of_its_steps_long_batch(dataset: str, starts: dict[str, str]) -> None:
    settings = dataclasses.replace(makers.DISTILL, exit_shares=(0.0, 1.0, 1.0, 1.0))
    stage = DistillStage(recipe(settings, starts), makers.CAPTIONS)
    state, data = stage.init("cpu"), source(dataset, stage=makers.DISTILL)
    seen = set()
    for _ in range(14):
        (batches,) = run(stage, state, data, 1)
        assert batches.long is not None
        shape = tuple(batches.long.latents.shape[1:])
        assert tuple(state.pool[-1].latents.shape[1:]) == shape
        seen.add(shape)
    assert seen == set(SHAPES["long"])


@pytest.mark.parametrize("long", [True, False])
def test_the_warm_up_rolls_out_at_the_batches_shape_or_the_main_one(
    long: bool, dataset: str, starts: dict[str, str]
) -> None:
    stage = DistillStage(
        dataclasses.replace(recipe(makers.DISTILL, starts), critic_only=True), makers.CAPTIONS
    )
    state, data = stage.init("cpu"), source(dataset, stage=makers.DISTILL)
    shapes = set()
    for step in range(8):
        stage.step(state, data.at(step, "cpu") if long else Batches(), Key(0, step, purpose="step"))
        shapes.add(tuple(state.pool[-1].latents.shape[1:]))
    assert len(shapes) > 1 if long else shapes == {MAIN["long"]}


def test_a_critic_step_sees_windows_of_one_picture_size_and_of_every_length(
    starts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size as often as the pool holds rollouts of it; windows of the rollouts of that size alone."""
    shapes = [(12, 3, 2, 2), (6, 3, 2, 2), (12, 3, 2, 4)]
    pool = [Rollout(torch.full((4, *shape), float(i)), ("red sun",) * 4, 1) for i, shape in enumerate(shapes)]
    stage = DistillStage(recipe(makers.DISTILL, starts), makers.CAPTIONS)
    state = stage.init("cpu")
    state.pool = pool
    judge, seen = critic.flow_matching_errors, []

    def spy(model: torch.nn.Module, x0: Tensor, *rest: object) -> Tensor:
        seen.append(x0.clone())
        return judge(model, x0, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(critic, "flow_matching_errors", spy)
    for step in range(60):
        stage._teach_critic(state, Key(0, step, purpose="critic"))
    wide = [x0 for x0 in seen if x0.shape[-1] == 4]
    assert all(x0.shape[1:] == (4, 3, 2, x0.shape[-1]) for x0 in seen)
    assert {float(value) for x0 in wide for value in x0.unique()} == {2.0}
    square = torch.cat([x0 for x0 in seen if x0.shape[-1] == 2])
    assert {float(value) for value in square.unique()} == {0.0, 1.0}
    assert 60 / 6 < len(wide) < 60 / 2


def test_resuming_is_bit_exact_with_rollouts_of_several_shapes(
    dataset: str, starts: dict[str, str], tmp_path: Path
) -> None:
    def begun() -> tuple[DistillStage, TrainState, BatchSource]:
        stage = DistillStage(recipe(makers.DISTILL, starts), makers.CAPTIONS)
        return stage, stage.init("cpu"), source(dataset, stage=makers.DISTILL)

    whole, unbroken, data = begun()
    run(whole, unbroken, data, 8)
    stage, state, data = begun()
    run(stage, state, data, 5)
    assert len({rollout.latents.shape for rollout in state.pool}) > 1
    save_state(state, stage.spec, tmp_path)
    again, resumed, data = begun()
    load_state(resumed, tmp_path)
    run(again, resumed, data, 3)
    for role, module in unbroken.modules.items():
        other = resumed.modules[role].state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in module.state_dict().items())
