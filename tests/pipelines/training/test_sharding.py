"""Workers that have parts of the weights take the steps of one that has all, and go on where it stopped."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, distributed

from models.blocks import checkpoint_blocks
from models.config import LoraConfig
from models.weights import load_tensors, save_tensors
from pipelines.checkpoints import check_seal, critic_weights, load_network
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import ClusterConfig
from pipelines.training.distill import DistillStage
from pipelines.training.loop import placed
from pipelines.training.recipes import checkpoint_sha256
from pipelines.training.sharding import is_sharded, whole
from pipelines.training.state import TrainState, load_state, save_state
from pipelines.training.supervised import SupervisedStage
from pipelines.training.survival.saver import Saver
from tests.pipelines.training.makers import CAPTIONS, DISTILL, SFT, TEACHER, recipe, run, trained_starts
from tests.pipelines.training.workers import spawn

STEPS = 2
TOLERANCE = {"float32": 1e-5, "float64": 1e-13}


class Mesh(NamedTuple):
    """Workers that share clips, the kind of sharding, and the workers of a group that shards."""

    alike: int
    shard: str
    group: int


WHOLE, PARTS, CLIPS = Mesh(1, "full", 0), Mesh(1, "hybrid", 2), Mesh(2, "full", 0)
CLIPS_AND_PARTS, COPIES = Mesh(2, "hybrid", 2), Mesh(1, "hybrid", 1)
SFT_ADAPTERS, DISTILL_ADAPTERS = "sft by adapters, heads adapters", "distill by adapters, heads full"
QUICK = [("teacher", WHOLE), ("adversarial", CLIPS), (SFT_ADAPTERS, WHOLE)]
STAGES = "teacher", "sft", "distill", "adversarial", SFT_ADAPTERS, DISTILL_ADAPTERS
ALL = {
    size: [(stage, mesh) for stage in STAGES for mesh in meshes]
    for size, meshes in {
        1: (WHOLE, COPIES),
        2: (WHOLE, PARTS, CLIPS, CLIPS_AND_PARTS, COPIES),
        4: (WHOLE, PARTS, CLIPS, CLIPS_AND_PARTS, COPIES),
    }.items()
}


@contextmanager
def precision(name: str) -> Iterator[None]:
    torch.set_default_dtype(getattr(torch, name))
    yield
    torch.set_default_dtype(torch.float32)


def made(name: str, starts: dict[str, str], workers: Workers = ALONE) -> SupervisedStage | DistillStage:
    """A stage whose batches go through in parts, of the networks' weights or of adapters."""
    if name == "teacher":
        return SupervisedStage(recipe(dataclasses.replace(TEACHER, micro_batch=1)), workers)
    kind, _, heads = name.partition(" by adapters, heads ")
    lora = LoraConfig(rank=3, alpha=6.0, heads=heads) if heads else LoraConfig()  # type: ignore[arg-type]
    if kind == "sft":
        plan = recipe(dataclasses.replace(SFT, micro_batch=1), {"teacher": starts["teacher"]})
        return SupervisedStage(dataclasses.replace(plan, lora=lora), workers)
    settings, adversary = dataclasses.replace(DISTILL, micro_batch=2), kind == "adversarial"
    plan = recipe(dataclasses.replace(settings, short_batch=4 if adversary else 0), starts)
    weights = {"adversarial_weight": 0.1 if adversary else 0.0, "forward_kl_weight": 0.5}
    loss = dataclasses.replace(plan.loss, **weights)
    return DistillStage(dataclasses.replace(plan, crop_safe=False, loss=loss, lora=lora), CAPTIONS, workers)


def steps(stage: SupervisedStage | DistillStage, state: TrainState, count: int) -> list[dict[str, float]]:
    settings = stage.recipe.stage
    return run(stage, state, count, settings.short_batch, settings.long_batch, stage.workers)


def tensors(state: TrainState) -> dict[str, Tensor]:
    """Weights, averages and moments by name, whole on every worker."""
    found = {f"{role}.{n}": p.detach() for role, m in state.modules.items() for n, p in m.named_parameters()}
    for role, average in state.averages.items():
        found |= {f"{role}.average.{name}": tensor for name, tensor in average.tensors.items()}
    for role, optimizer in state.optimizers.items():
        for number, entry in optimizer.state_dict()["state"].items():
            found |= {f"{role}.{number}.{name}": tensor for name, tensor in entry.items()}
    return {name: whole(tensor).clone() for name, tensor in found.items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest root mean square of the difference of two tensors of one name.

    In float32 Adam makes much of an entry whose gradient is all rounding.
    """
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).square().mean().sqrt()) for name in one)


def place(rank: int, size: int, mesh: Mesh, starts: dict[str, str]) -> Workers:
    cluster = ClusterConfig(
        num_workers=size,
        context_parallel=mesh.alike,
        shard=mesh.shard,  # type: ignore[arg-type]
        shard_group=mesh.group or 1,
    )
    return placed(dataclasses.replace(recipe(SFT, starts), cluster=cluster), rank, size)


def begin(rank: int, size: int, meeting: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)


def _step(rank: int, size: int, cases: list[tuple[str, Mesh]], starts: dict[str, str], out: str) -> None:
    begin(rank, size, f"{out}/meeting")
    for dtype, tolerance in TOLERANCE.items():
        for name, mesh in cases:
            with precision(dtype):
                stage = made(name, starts, place(rank, size, mesh, {} if name == "teacher" else starts))
                state = stage.init("cpu")
                if mesh.alike > 1:
                    for module in state.modules.values():
                        checkpoint_blocks(module)
                told = steps(stage, state, STEPS)
            case = f"{name} on {mesh} in {dtype}"
            assert all(is_sharded(p) for p in state.modules[stage.spec.role].parameters()), case
            alone = Path(out, f"{name}-{dtype}.safetensors")
            assert difference(load_tensors(alone), tensors(state)) < tolerance, case
            for one, other in zip(json.loads(alone.with_suffix(".json").read_text()), told, strict=True):
                assert other == pytest.approx(one, rel=1e-4, abs=1e-6), case
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "cases"),
    [
        (2, QUICK),
        *(pytest.param(size, cases, marks=pytest.mark.long) for size, cases in ALL.items()),
    ],
)
def test_workers_with_parts_of_the_weights_take_the_steps_of_one_that_has_all(
    size: int, cases: list[tuple[str, Mesh]], tmp_path: Path
) -> None:
    starts = trained_starts(tmp_path)
    for dtype in TOLERANCE:
        for name in {name for name, _ in cases}:
            with precision(dtype):
                stage = made(name, starts)
                state = stage.init("cpu")
                told = steps(stage, state, STEPS)
            alone = tmp_path / f"{name}-{dtype}.safetensors"
            save_tensors(tensors(state), alone)
            alone.with_suffix(".json").write_text(json.dumps(told))
    spawn(_step, size, cases, starts, str(tmp_path))


def _save(stage: SupervisedStage | DistillStage, state: TrainState, root: str) -> Path:
    """A checkpoint that all workers write, by their savers."""
    shards = stage.workers.shards
    assert shards is not None
    if shards.first_group:
        saver = Saver(dataclasses.replace(stage.recipe, root=root), stage.spec, 0, shards)
        saver.begin(state, {})
        written = saver.finish()
    distributed.barrier()
    if stage.workers.place == 0:
        saver.seal(written)
    distributed.barrier()
    return Path(root, "stage", f"step-{state.step:06d}")


def _resume(rank: int, size: int, name: str, starts: dict[str, str], out: str) -> None:
    begin(rank, size, f"{out}/meeting")
    for number, (mesh, others) in enumerate(RESUMED[size]):
        stage = made(name, starts, place(rank, size, mesh, starts))
        state = stage.init("cpu")
        steps(stage, state, 1)
        kept, folder = tensors(state), _save(stage, state, f"{out}/{number}")
        if rank == 0:
            save_tensors(kept, folder / "kept.safetensors")
        steps(stage, state, 1)
        for other in (mesh, *others):
            again = made(name, starts, place(rank, size, other, starts))
            resumed = again.init("cpu")
            load_state(resumed, folder)
            assert difference(kept, tensors(resumed)) == 0.0, (mesh, other)
            if other is mesh:
                steps(again, resumed, 1)
                assert difference(tensors(state), tensors(resumed)) == 0.0, mesh
    load_state(resumed, Path(out, "alone"))
    assert difference(load_tensors(Path(out, "alone.safetensors")), tensors(resumed)) == 0.0
    distributed.barrier()
    distributed.destroy_process_group()


RESUMED = {
    2: [(WHOLE, [COPIES]), (COPIES, [])],
    4: [(WHOLE, [PARTS, CLIPS_AND_PARTS]), (CLIPS_AND_PARTS, [WHOLE])],
}
"""Meshes whose checkpoints others go on with, and which."""


@pytest.mark.parametrize("name", ["distill", pytest.param(DISTILL_ADAPTERS, marks=pytest.mark.long)])
@pytest.mark.parametrize(("size", "parts"), [(2, [2, 1]), pytest.param(4, [4, 2], marks=pytest.mark.long)])
def test_any_number_of_workers_goes_on_from_the_checkpoint_of_any_other(
    size: int, parts: list[int], name: str, tmp_path: Path
) -> None:
    """Bit for bit, whatever part of the weights each has; so does who samples, exports or starts from it."""
    starts = trained_starts(tmp_path)
    stage = made(name, starts)
    state = stage.init("cpu")
    steps(stage, state, 1)
    (tmp_path / "alone").mkdir()
    save_state(state, stage.spec, tmp_path / "alone")
    save_tensors(tensors(state), tmp_path / "alone.safetensors")
    spawn(_resume, size, name, starts, str(tmp_path))
    for number, count in enumerate(parts):
        folder = tmp_path / str(number) / "stage" / "step-000001"
        check_seal(folder)
        assert len([*folder.glob("student-*.safetensors")]) == count
        assert not [*folder.glob("manifest-*")]
        kept = load_tensors(folder / "kept.safetensors")
        load_state(state, folder)
        assert difference(kept, tensors(state)) == 0.0
        (joined := tmp_path / f"joined-{number}").mkdir()
        save_state(state, stage.spec, joined)
        for read in (lambda path: load_network(path).model.state_dict(), critic_weights):
            ours, theirs = read(folder), read(joined)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[one], theirs[one]) for one in theirs)
        assert checkpoint_sha256(str(folder), "student.average.safetensors")
