"""Processes that share a clip's frames make the clip that one of them makes alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from models.config import SamplingConfig, TextConfig
from models.context import share_frames
from models.errors import ConfigError
from models.rng import Key
from pipelines.checkpoints import Network, NetworkSpec, Role
from pipelines.context import FrameGroup
from pipelines.generation import Head, Method, generate_latents
from pipelines.sharing import following, leading
from tests.models.builders import TINY, captions, latents, randomize
from tests.pipelines.training.workers import spawn

SAMPLING = SamplingConfig(steps=(1.0, 0.6), guidance_scale=2.0)
FEW, EULER = Method("dm", "few_step", 2), Method("fm", "ode", 3)
TEACHER_EULER, BY_WINDOWS = Method("teacher", "ode", 2), Method("teacher", "windows", 2)
CASES: dict[str, dict[str, Any]] = {
    "few steps": {"method": FEW, "frames": 8},
    "frames that do not divide": {"method": FEW, "frames": 7},
    "a frame for each process": {"method": FEW, "frames": 4},
    "Euler steps, guided": {"method": EULER, "frames": 9},
    "a teacher": {"method": TEACHER_EULER, "frames": 8},
    "window by window": {"method": BY_WINDOWS, "frames": 13},
    "going on from frames": {"method": FEW, "frames": 9, "known": latents(2, 3, seed=5)},
    "Euler steps from frames": {"method": EULER, "frames": 9, "known": latents(2, 3, seed=5)},
    "a ring": {"method": FEW, "frames": 7, "ring": True},
    "captions that change": {"method": FEW, "frames": 9, "later": [(4, captions(seed=6))]},
}


def network(head: Head) -> Network:
    role: Role = "teacher" if head == "teacher" else "student"
    model = dataclasses.replace(TINY, num_layers=4, head_layers=2, attention_pattern="WGWG", window=2)
    spec = NetworkSpec(role, model, TextConfig(dim=10), 4, (6, 4, 1, 1), distilled=role == "student")
    built = spec.build()
    randomize(built)
    return Network(built.eval().requires_grad_(False), spec)


def sampled(made_by: Network, case: dict[str, Any]) -> Tensor:
    options = {name: case[name] for name in ("known", "ring", "later") if name in case}
    return generate_latents(
        made_by,
        case["method"],
        (case["frames"], 4, 1, 1),
        captions(),
        Key(3, purpose="test"),
        [0, 5],
        sampling=SAMPLING,
        flow=made_by.spec.flow,
        **options,
    )


def _work(rank: int, size: int, out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=size)
    group, told = FrameGroup(rank, size), {}
    for name, case in CASES.items():
        head = case["method"].head
        if rank:
            following(network(head), head, group)
            continue
        alone, led = sampled(network(head), case), network(head)
        with leading(led, group):
            together = sampled(led, case)
        told[name] = float((together - alone).abs().max() / alone.abs().max())
    if rank == 0:
        Path(out, "told.json").write_text(json.dumps(told))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_a_clip_is_the_same_whoever_computes_its_frames(size: int, tmp_path: Path) -> None:
    spawn(_work, size, str(tmp_path))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told.keys() == CASES.keys()
    assert {name: error for name, error in told.items() if error > 1e-6} == {}


def test_more_processes_than_frames_are_refused() -> None:
    led = network("dm")
    share_frames(led.model, FrameGroup(0, 9))
    with pytest.raises(ConfigError, match="a clip of 8 latent frames cannot be shared by 9 workers"):
        sampled(led, CASES["few steps"])
