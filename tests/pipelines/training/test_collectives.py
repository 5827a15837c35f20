"""Any number of workers, and any number of parts that a batch goes through in, take the same steps."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from models.ddt import Student
from pipelines.training import collectives as parallel
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import ClusterConfig
from pipelines.training.distill import DistillStage
from pipelines.training.loop import placed
from pipelines.training.stage import Batch, parts
from pipelines.training.state import TrainState
from pipelines.training.supervised import SupervisedStage, held_out_loss, supervised_velocity
from tests.pipelines.training.makers import (
    CAPTIONS,
    DISTILL,
    SFT,
    TEACHER,
    batches,
    recipe,
    run,
    trained_starts,
)
from tests.pipelines.training.workers import spawn

STEPS = 2
STAGES = ("teacher", "sft", "mixed", "warmup", "distill", "noised", "adversarial")
Taken = dict[str, Any]


@pytest.fixture
def double() -> Iterator[None]:
    """Float64: what is left of rounding is far below 1e-6."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained_starts(tmp_path_factory.mktemp("starts"))


def take(name: str, starts: dict[str, str], micro_batch: int | None, workers: Workers = ALONE) -> Taken:
    """Steps of a stage: what they log, the weights after them, and the loss on five held-out windows."""
    settings = {
        "teacher": dataclasses.replace(TEACHER, short_batch=5),
        "sft": dataclasses.replace(SFT, long_batch=5),
        "mixed": dataclasses.replace(SFT, short_batch=7, long_batch=5),
    }.get(name, dataclasses.replace(DISTILL, long_batch=5, rollout_batch=5, critic_updates=2))
    settings = dataclasses.replace(settings, micro_batch=micro_batch)
    if name == "noised":
        settings = dataclasses.replace(settings, rollout="noised_real")
    if name == "adversarial":
        settings = dataclasses.replace(settings, short_batch=5)
    if name in ("warmup", "distill", "noised", "adversarial"):
        made = recipe(settings, starts, critic_only=name == "warmup")
        weight = 0.1 if name == "adversarial" else 0.0
        loss = dataclasses.replace(made.loss, adversarial_weight=weight)
        made = dataclasses.replace(made, crop_safe=False, loss=loss)
        stage: SupervisedStage | DistillStage = DistillStage(made, CAPTIONS, workers)
    else:
        start = {} if name == "teacher" else {"teacher": starts["teacher"]}
        stage = SupervisedStage(recipe(settings, start), workers)
    state = stage.init("cpu")
    metrics = run(stage, state, STEPS, settings.short_batch, settings.long_batch, workers)
    weights = {f"{role}.{n}": p for role, m in state.modules.items() for n, p in m.named_parameters()}
    return {
        "metrics": metrics,
        "held_out": held_out(stage, state, workers),
        "weights": torch.cat([tensor.detach().flatten() for tensor in weights.values()]).tolist(),
        "captions": [rollout.captions for rollout in state.pool],
    }


def held_out(stage: SupervisedStage | DistillStage, state: TrainState, workers: Workers) -> float:
    """Loss on five windows, of which some workers have one more than others."""
    rows = batches(99, ALONE, long=5).long
    assert rows is not None
    own = slice(workers.rank, None, workers.size)
    part = Batch(rows.latents[own], rows.captions[own], rows.samples[own], 5)
    velocity = supervised_velocity(state.modules[stage.spec.role])
    return held_out_loss(velocity, part, stage.recipe, stage.captions, workers)


def assert_equal(one: Taken, other: Taken) -> None:
    tolerance = 1e-6
    assert one["metrics"][0].keys() == other["metrics"][0].keys()
    for told, again in zip(one["metrics"], other["metrics"], strict=True):
        assert again == pytest.approx(told, rel=tolerance, abs=tolerance)
    assert other["held_out"] == pytest.approx(one["held_out"], rel=tolerance)
    weights, others = (torch.tensor(taken["weights"]) for taken in (one, other))
    assert torch.allclose(weights, others, rtol=tolerance, atol=tolerance)
    assert one["captions"] == [*map(tuple, other["captions"])]


def _work(rank: int, size: int, alike: int, names: tuple[str, ...], starts: dict[str, str], out: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    parallel.MESSAGE = 2000
    meeting = f"file://{out}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    cluster = ClusterConfig(num_workers=size, context_parallel=alike)
    workers = placed(dataclasses.replace(recipe(SFT, starts), cluster=cluster), rank, size)
    taken = {name: take(name, starts, 1, workers) for name in names}
    Path(out, f"{rank}.json").write_text(json.dumps(taken))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", STAGES)
def test_micro_batches_add_up_to_one_big_batch(name: str, starts: dict[str, str]) -> None:
    whole = take(name, starts, None)
    for micro_batch in (1, 2):
        assert_equal(whole, take(name, starts, micro_batch))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("size", "alike", "names"),
    [
        (2, 1, STAGES),
        (3, 1, ("adversarial",)),
        (2, 2, STAGES[1:]),
        pytest.param(3, 1, ("distill", "noised"), marks=pytest.mark.long),
        pytest.param(4, 2, ("distill",), marks=pytest.mark.long),
        pytest.param(3, 3, ("distill", "noised"), marks=pytest.mark.long),
        pytest.param(4, 4, ("distill",), marks=pytest.mark.long),
    ],
)
def test_workers_with_uneven_shares_in_micro_batches_take_the_steps_of_one(
    size: int, alike: int, names: tuple[str, ...], starts: dict[str, str], tmp_path: Path
) -> None:
    """Whether they share batches, the frames of clips (`alike` of them), or both."""
    spawn(_work, size, alike, names, starts, str(tmp_path))
    alone = {name: take(name, starts, None) for name in names}
    for rank in range(size):
        together = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in names:
            assert_equal(alone[name], together[name])


def _gather(rank: int, size: int, alike: int, out: str) -> None:
    """What a worker has then, and from how many it came."""
    distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=size)
    cluster = ClusterConfig(num_workers=size, context_parallel=alike)
    workers = placed(dataclasses.replace(recipe(SFT, {"teacher": ""}), cluster=cluster), rank, size)
    senders, all_gather = [], distributed.all_gather

    def counted(parts: list[Tensor], own: Tensor, group: Any = None) -> Any:
        senders.append(len(parts))
        return all_gather(parts, own, group=group)

    distributed.all_gather = counted  # type: ignore[assignment]
    samples = torch.tensor(workers.share(5))
    together = workers.gather(samples, 5).tolist()
    Path(out, f"{rank}.json").write_text(json.dumps([together, senders]))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("alike", [1, 2])
def test_samples_come_in_order_and_once_from_workers_that_share_clips(alike: int, tmp_path: Path) -> None:
    spawn(_gather, 4, alike, str(tmp_path))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert told == [[[0, 1, 2, 3, 4], [4 // alike]]] * 4


def test_no_more_rows_than_a_micro_batch_go_through_a_network(starts: dict[str, str]) -> None:
    """Of any network and in any pass: clips, videos, or the windows of a video."""
    settings = dataclasses.replace(DISTILL, micro_batch=2)
    stage = DistillStage(recipe(settings, starts), CAPTIONS)
    state = stage.init("cpu")
    student, critic = state.modules["student"], state.modules["critic"]
    assert isinstance(student, Student)
    most = {"student": 0, "critic": 0}

    def look(role: str) -> Any:
        def hook(_: object, given: tuple[Tensor, ...]) -> None:
            most[role] = max(most[role], len(given[0]))

        return hook

    student.encoder.register_forward_pre_hook(look("student"))
    critic.register_forward_pre_hook(look("critic"))
    run(stage, state, 3)
    assert most == {"student": 2, "critic": 2 * (settings.windows_per_video or 0)}


def test_parts_hold_every_row_once_and_in_order() -> None:
    for size in (None, 1, 2, 3, 7, 8):
        split = list(parts(range(3, 10), size))
        assert [row for part in split for row in part] == list(range(3, 10))
        assert max(map(len, split)) == min(size or 7, 7)
    assert list(parts(range(0), None)) == list(parts(range(0), 2)) == []
