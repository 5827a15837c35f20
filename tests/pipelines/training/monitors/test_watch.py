"""What is watched is what people will see: averaged weights, the sampler of inference, four fixed videos."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from models.rng import Key
from pipelines.checkpoints import load_network
from pipelines.data.store.dataset import ShardDataset
from pipelines.generation import Method, generate_latents
from pipelines.training.batches import BatchSource, fixed_batch
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.distill import DistillStage
from pipelines.training.monitors.diagnostics import Diagnostics
from pipelines.training.monitors.watch import Watch
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Stage
from pipelines.training.state import TrainState, save_state
from pipelines.training.supervised import SupervisedStage, held_out_loss, supervised_velocity
from tests.models.builders import randomize
from tests.pipelines.data import bucketed
from tests.pipelines.data.bucketed import MADE_ROWS, latents_of
from tests.pipelines.training import makers

CPU = torch.device("cpu")
MAIN = {corpus: latents_of(next(iter(rows))) for corpus, rows in MADE_ROWS.items()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bucketed")
    bucketed.make(folder, holdout=0.2)
    return str(folder)


def recipe(dataset: str, like: Recipe) -> Recipe:
    return dataclasses.replace(like, dataset=dataset, short_shape=MAIN["short"], long_shape=MAIN["long"])


def stepped(stage: Stage, count: int = 3) -> TrainState:
    """Its state after some steps on the dataset's batches."""
    state, made = stage.init("cpu"), stage.recipe  # type: ignore[attr-defined]
    data = BatchSource(made.dataset, made.stage, 0, ALONE)
    for _ in range(count):
        stage.step(state, data.at(state.step, "cpu"), Key(0, state.step, purpose="step"))
    return state


@pytest.fixture(scope="module")
def starts(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher and a long-SFT student of a few steps."""
    torch.set_num_threads(1)
    folder, found = tmp_path_factory.mktemp("starts"), dict[str, str]()
    for role, settings in (("teacher", makers.TEACHER), ("student", makers.SFT)):
        stage = SupervisedStage(recipe(dataset, makers.recipe(settings, dict(found))))
        (folder / role).mkdir()
        save_state(stepped(stage), stage.spec, folder / role)
        found[role] = str(folder / role)
    return found


@pytest.mark.parametrize("name", ["teacher", "sft", "distill"])
def test_the_videos_are_those_that_the_checkpoint_would_give(
    name: str, dataset: str, starts: dict[str, str], tmp_path: Path
) -> None:
    """The same as loading it and sampling; the live weights stay what and where they were."""
    stage: Stage
    if name == "distill":
        stage = DistillStage(recipe(dataset, makers.recipe(makers.DISTILL, starts)), makers.CAPTIONS)
        method = Method("dm", "few_step", 4)
    elif name == "sft":
        stage = SupervisedStage(recipe(dataset, makers.recipe(makers.SFT, {"teacher": starts["teacher"]})))
        method = Method("fm", "ode", 25)
    else:
        stage, method = (
            SupervisedStage(recipe(dataset, makers.recipe(makers.TEACHER))),
            Method("teacher", "ode", 25),
        )
    state, made = stepped(stage), stage.recipe  # type: ignore[attr-defined]
    model = state.modules[stage.spec.role]
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    watch = Watch(stage, made, ALONE, CPU)
    videos = watch.videos(state)
    assert torch.equal(videos, watch.videos(state))
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])

    save_state(state, stage.spec, tmp_path)
    expected = generate_latents(
        load_network(tmp_path),
        method,
        stage.spec.shape,
        stage.captions.encode(watch.captions, CPU),
        Key(0, purpose="preview"),
        range(4),
        sampling=made.sampling,
        flow=made.flow,
    )
    torch.testing.assert_close(videos, expected, atol=1e-5, rtol=1e-4)


def test_workers_share_the_videos(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(dataset, makers.recipe(makers.TEACHER))
    stage = SupervisedStage(made)
    state = stepped(stage)
    alone = Watch(stage, made, ALONE, CPU).videos(state)
    monkeypatch.setattr(Workers, "gather", lambda _, part, batch: part)
    for size in (2, 3, 8):
        parts = [Watch(stage, made, Workers(rank, size), CPU).videos(state) for rank in range(size)]
        assert max(map(len, parts)) == -(-4 // size)
        torch.testing.assert_close(torch.cat(parts)[:4], alone, atol=1e-5, rtol=1e-4)


def test_workers_that_shard_weights_have_equally_many_windows_and_count_each_once(dataset: str) -> None:
    made = recipe(dataset, makers.recipe(makers.TEACHER))
    stage = SupervisedStage(made)
    model = stage.init("cpu").modules["teacher"]
    randomize(model)

    def loss(workers: Workers) -> tuple[int, float]:
        batch = fixed_batch(made, "short", "holdout", 5, workers, CPU)
        assert batch is not None
        return len(batch.latents), held_out_loss(supervised_velocity(model), batch, made, stage.captions)

    count, whole = loss(ALONE)
    for size in (2, 3, count + 1):
        parts = [loss(Workers(rank, size, shards=object())) for rank in range(size)]  # type: ignore[arg-type]
        assert {rows for rows, _ in parts} == {-(-count // size)}
        assert sum(value for _, value in parts) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(("count", "different"), [(1, 1), (3, 3), (4, 4), (5, 4), (9, 4)])
def test_four_captions_are_chosen_from_any_number(
    count: int, different: int, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(dataset, makers.recipe(makers.TEACHER))
    captions = [f"caption {i}" for i in range(count)]
    rows = SimpleNamespace(captions=captions * 3)
    monkeypatch.setattr("pipelines.training.monitors.watch.ShardDataset", lambda *_: rows)
    chosen = Watch(SupervisedStage(made), made, ALONE, CPU).captions
    assert len(chosen) == 4
    assert len(set(chosen)) == different


def test_losses_are_on_windows_that_stay_the_same(dataset: str, starts: dict[str, str]) -> None:
    supervised = SupervisedStage(recipe(dataset, makers.recipe(makers.TEACHER)))
    distill = DistillStage(recipe(dataset, makers.recipe(makers.DISTILL, starts)), makers.CAPTIONS)
    gaps = {f"critic_gap_exit_{number}" for number in (1, 2, 3)}
    for stage, names in ((supervised, {"held_out_loss"}), (distill, {"layout_loss", *gaps})):
        state = stepped(stage)
        watch = Watch(stage, stage.recipe, ALONE, CPU)
        first = watch.losses(state)
        assert set(first) == names
        assert first == watch.losses(state)
        state.averages[stage.spec.role].tensors = {
            key: 1.1 * value for key, value in state.averages[stage.spec.role].tensors.items()
        }
        assert watch.losses(state) != first


@pytest.fixture(scope="module")
def long_videos(dataset: str) -> Tensor:
    rows = ShardDataset(dataset, "long")
    return rows.read(rows.main).latents


def test_the_corpus_measures_one(dataset: str, long_videos: Tensor) -> None:
    found = Diagnostics(dataset, "long", CPU).of(long_videos)
    assert found == pytest.approx(dict.fromkeys(found, 1.0))
    assert set(found) == {"sharpness", "saturation", "contrast", "motion", "light_drift", "diversity"}


def test_each_fault_moves_its_own_measure(dataset: str, long_videos: Tensor) -> None:
    diagnostics = Diagnostics(dataset, "long", CPU)
    as_it_is = diagnostics.of(long_videos)
    still = diagnostics.of(long_videos[:, :1].expand_as(long_videos))
    assert still["motion"] == still["light_drift"] == 0
    alike = diagnostics.of(long_videos[:1].expand_as(long_videos))
    assert alike["diversity"] == pytest.approx(0, abs=1e-6)
    assert alike["motion"] > 0
    faint, strong = (diagnostics.of(scale * long_videos) for scale in (0.3, 1.7))
    for name in ("contrast", "sharpness"):
        assert faint[name] < as_it_is[name] < strong[name]


def test_short_is_measured_beside_long(dataset: str) -> None:
    rows = ShardDataset(dataset, "short")
    long, short = (Diagnostics(dataset, corpus, CPU) for corpus in ("long", "short"))
    assert long.short == long.of(rows.read(rows.main[:8]).latents)
    assert short.short == {}


@pytest.mark.parametrize("corpus", ["short", "long"])
def test_videos_of_any_shape_are_compared_with_the_main_bucket(corpus: str, dataset: str) -> None:
    diagnostics = Diagnostics(dataset, corpus, CPU)  # type: ignore[arg-type]
    for pixels in MADE_ROWS["long"]:
        noise = torch.randn(4, *latents_of(pixels), generator=torch.Generator().manual_seed(1))
        assert 0.5 < diagnostics.of(noise)["diversity"] < 2
