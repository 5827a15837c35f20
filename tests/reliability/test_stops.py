"""A run that is stopped inside any step, and goes on from its last checkpoint, is the unbroken run."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn

from models.rng import Key
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.distill import DistillStage
from pipelines.training.state import TrainState, load_state, save_state, snapshot
from pipelines.training.supervised import SupervisedStage
from tests.pipelines.training.makers import (
    CAPTIONS,
    DISTILL,
    SFT,
    TEACHER,
    batches,
    recipe,
    trained_starts,
)
from tests.pipelines.training.workers import spawn

pytestmark = [pytest.mark.resume, pytest.mark.long, pytest.mark.timeout(900)]

STAGES = ("teacher", "sft", "mixed", "warmup", "distill")
STEPS, STOPS, SAVED_EVERY = 12, 5, 3


class Stopped(Exception):
    pass


class Run:
    """A stage that is stopped now and then.

    Args:
        name: of the stage.
        starts: checkpoints that it starts from.
        folder: where it saves.
        workers: this worker's place.
    """

    def __init__(self, name: str, starts: dict[str, str], folder: Path, workers: Workers) -> None:
        self.name, self.starts, self.folder, self.workers = name, starts, folder, workers
        self.losses: dict[int, dict[str, float]] = {}
        self.state: TrainState
        self.stage: SupervisedStage | DistillStage
        self.calls = 0
        self.last_call: int | None = None
        self.saved: Path | None = None
        self.start()

    def start(self) -> None:
        """As a new process does."""
        supervised = {
            "teacher": TEACHER,
            "sft": SFT,
            "mixed": dataclasses.replace(SFT, short_batch=4),
        }
        if self.name in supervised:
            settings = dataclasses.replace(supervised[self.name], micro_batch=1)
            start = {} if self.name == "teacher" else {"teacher": self.starts["teacher"]}
            self.stage = SupervisedStage(recipe(settings, start), self.workers)
        else:
            settings = dataclasses.replace(DISTILL, micro_batch=1, critic_updates=2)
            made = recipe(settings, self.starts, critic_only=self.name == "warmup")
            self.stage = DistillStage(made, CAPTIONS, self.workers)
        self.settings = settings
        self.state = self.stage.init("cpu")
        if self.saved is not None:
            load_state(self.state, self.saved)
        for module in self.state.modules.values():
            for part in module.modules():
                if isinstance(part, nn.Linear):
                    part.register_forward_pre_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.last_call:
            raise Stopped

    def step(self) -> None:
        self.calls, step = 0, self.state.step
        given = batches(step, self.workers, self.settings.short_batch, self.settings.long_batch)
        metrics = self.stage.step(self.state, given, Key(0, step, purpose="step")).metrics
        assert self.losses.setdefault(step, metrics) == metrics, "a step that is taken again is the same"
        if self.state.step % SAVED_EVERY == 0:
            self.saved = self.folder / f"{self.workers.rank}-{self.state.step}"
            self.saved.mkdir(exist_ok=True)
            save_state(self.state, self.stage.spec, self.saved)

    def sums(self) -> dict[str, str]:
        """sha256 of weights, optimisers, averages and pool."""
        found = {}
        for file, tensors in snapshot(self.state).tensors.items():
            bytes_of = b"".join(name.encode() + t.numpy().tobytes() for name, t in sorted(tensors.items()))
            found[file] = hashlib.sha256(bytes_of).hexdigest()
        return found


def assert_stops_change_nothing(name: str, starts: dict[str, str], folder: Path, workers: Workers) -> None:
    (folder / "whole").mkdir(exist_ok=True)
    (folder / "broken").mkdir(exist_ok=True)
    whole, broken = (Run(name, starts, folder / kind, workers) for kind in ("whole", "broken"))
    calls = []
    while whole.state.step < STEPS:
        whole.step()
        calls.append(whole.calls)
    rng = np.random.default_rng(STAGES.index(name))
    stops = {int(step): int(rng.integers(1, calls[step])) for step in rng.choice(STEPS, STOPS, replace=False)}
    stopped = 0
    while broken.state.step < STEPS:
        broken.last_call = stops.pop(broken.state.step, None)
        try:
            broken.step()
        except Stopped:
            stopped += 1
            broken.start()
    assert stopped == STOPS
    assert broken.losses == whole.losses
    assert broken.sums() == whole.sums()


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained_starts(tmp_path_factory.mktemp("starts"))


@pytest.mark.parametrize("name", STAGES)
def test_five_stops_inside_steps_change_nothing(name: str, starts: dict[str, str], tmp_path: Path) -> None:
    assert_stops_change_nothing(name, starts, tmp_path, ALONE)


def _work(rank: int, size: int, starts: dict[str, str], out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=size)
    for name in STAGES:
        folder = Path(out, f"{name}-{rank}")
        folder.mkdir()
        assert_stops_change_nothing(name, starts, folder, Workers(rank, size))
    Path(out, f"{rank}.json").write_text(json.dumps("done"))
    distributed.barrier()
    distributed.destroy_process_group()


def test_five_stops_of_two_workers_change_nothing(starts: dict[str, str], tmp_path: Path) -> None:
    spawn(_work, 2, starts, str(tmp_path))
    assert all((tmp_path / f"{rank}.json").exists() for rank in range(2))
