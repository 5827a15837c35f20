"""Processes that share the frames of clips compute what one process computes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from models.blocks import checkpoint_blocks
from models.context import share_frames
from models.ddt import Student
from models.errors import ConfigError
from pipelines.context import FrameGroup
from tests.models.builders import TINY, captions, latents, randomize
from tests.pipelines.training.workers import spawn

CASES: dict[str, dict[str, Any]] = {
    "windowed": {"pattern": "WWWW", "window": 2, "frames": 12},
    "global": {"pattern": "GGGG", "window": 2, "frames": 12},
    "mixed, frames that do not divide": {"pattern": "WGWG", "window": 3, "frames": 11},
    "windows over several processes": {"pattern": "WWGW", "window": 5, "frames": 9},
    "windows over the whole clip": {"pattern": "WGWG", "window": 20, "frames": 7},
    "many tokens a frame": {"pattern": "WGWG", "window": 1, "frames": 6, "side": 4},
    "a time for each frame": {"pattern": "WGWG", "window": 2, "frames": 10, "per_frame": True},
    "checkpointed": {"pattern": "WGWG", "window": 2, "frames": 10, "checkpointing": "full"},
    "attention kept": {"pattern": "WGWG", "window": 2, "frames": 10, "checkpointing": "selective"},
    "a frame for each process": {"pattern": "WGWG", "window": 1, "frames": 4},
}
DTYPES = {"float32": (torch.float32, 2e-6), "float64": (torch.float64, 1e-13)}


def answers(case: dict[str, Any], dtype: torch.dtype, group: FrameGroup | None) -> tuple[Tensor, Tensor]:
    """Velocities of both heads, and the gradients of a loss on them, all in a row."""
    torch.set_default_dtype(dtype)
    config = dataclasses.replace(
        TINY, num_layers=4, head_layers=2, attention_pattern=case["pattern"], window=case["window"]
    )
    student = Student(dataclasses.replace(config, clip_position=True), 4, 10)
    randomize(student)
    checkpoint_blocks(student, case.get("checkpointing", "none"))
    if group is not None:
        share_frames(student, group)
    x_t = latents(2, case["frames"], side=case.get("side", 1))
    t = torch.linspace(0.1, 0.9, 2 * case["frames"]).view(2, -1)
    given = x_t, t if case.get("per_frame") else t[:, 0], captions()
    out = torch.stack([student.flow_matching(*given), student.distribution_matching(*given)])
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()  # type: ignore[no-untyped-call]
    gradients = torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])
    if group is not None:
        distributed.all_reduce(gradients)
    return out.detach(), gradients


def _work(rank: int, size: int, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=size)
    told: dict[str, float] = {}
    for name, case in CASES.items():
        for kind, (dtype, _) in DTYPES.items():
            alone, shared = answers(case, dtype, None), answers(case, dtype, FrameGroup(rank, size))
            errors = [float((a - b).norm() / a.norm()) for a, b in zip(alone, shared, strict=True)]
            told[f"{name}, {kind}"] = max(errors)
    Path(out, f"{rank}.json").write_text(json.dumps(told))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [pytest.param(2, marks=pytest.mark.long), 4])
def test_any_number_of_processes_gives_the_velocities_and_gradients_of_one(size: int, tmp_path: Path) -> None:
    spawn(_work, size, str(tmp_path))
    for rank in range(size):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(told) == len(CASES) * len(DTYPES)
        for name, error in told.items():
            assert error < DTYPES[name.rpartition(", ")[2]][1], name


def test_a_process_without_frames_is_refused() -> None:
    with pytest.raises(ConfigError):
        FrameGroup(2, 3).own(2)


@dataclasses.dataclass(frozen=True)
class Told(FrameGroup):
    """One process of a group whose others are made up; tells what is exchanged."""

    dtypes: list[torch.dtype] = dataclasses.field(default_factory=list)

    def exchange(self, x: Tensor, sent: list[int], got: list[int]) -> Tensor:
        assert len(x) == sum(sent)
        self.dtypes.append(x.dtype)
        return x.new_full((sum(got), *x.shape[1:]), self.rank)


def test_keys_and_values_are_exchanged_in_the_precision_of_attention() -> None:
    student, group = Student(TINY, 4, 10), Told(1, 3)
    share_frames(student, group)
    with torch.autocast("cpu", torch.bfloat16):
        student.flow_matching(latents(1, 9), torch.rand(1), captions(1)).sum().backward()
    assert set(group.dtypes) == {torch.bfloat16}


@pytest.mark.parametrize(("rows", "counts"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (2, [1, 1, 0]), (1, [1, 0, 0])])
def test_rows_are_dealt_and_every_process_asks_the_network_once(rows: int, counts: list[int]) -> None:
    asked: list[int] = []

    def model(x_t: Tensor, t: Tensor, conditioning: Any) -> Tensor:
        asked.append(len(x_t))
        return x_t

    for rank in range(3):
        given = latents(rows, 2), torch.rand(rows), captions(rows)
        assert len(Told(rank, 3).dealt(model)(*given)) == rows
    assert asked == [max(1, count) for count in counts]
