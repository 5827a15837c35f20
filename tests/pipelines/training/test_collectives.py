"""One and two workers take the same steps."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from models.ddt import Student
from pipelines.training import collectives as parallel
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.distill import DistillStage
from pipelines.training.stage import Batch
from pipelines.training.state import TrainState
from pipelines.training.supervised import held_out_loss
from tests.pipelines.training.makers import CAPTIONS, DISTILL, batches, recipe, run, trained_starts

STEPS = 4


def _work(rank: int, size: int, starts: dict[str, str], out: str) -> None:
    torch.set_num_threads(1)
    parallel.MESSAGE = 2000
    meeting = f"file://{out}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    workers = Workers(rank, size)
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS, workers)
    state = stage.init("cpu")
    metrics = run(stage, state, STEPS, workers=workers)
    held_out = _held_out(stage, state, workers)
    Path(out, f"{rank}.json").write_text(json.dumps({"metrics": metrics, "held_out": held_out}))
    distributed.barrier()
    distributed.destroy_process_group()


def _held_out(stage: DistillStage, state: TrainState, workers: Workers) -> float:
    """Loss on five windows, of which the workers have three and two."""
    rows = batches(99, ALONE, long=5).long
    student = state.modules["student"]
    assert rows is not None
    assert isinstance(student, Student)
    own = slice(workers.rank, None, workers.size)
    part = Batch(rows.latents[own], rows.captions[own], rows.samples[own])
    return held_out_loss(student.flow_matching, part, stage.recipe, stage.captions, workers)


def test_one_and_two_workers_have_equal_losses(tmp_path: Path) -> None:
    starts = trained_starts(tmp_path)
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    state = stage.init("cpu")
    alone = run(stage, state, STEPS)
    held_out = _held_out(stage, state, ALONE)
    multiprocessing.spawn(_work, (2, starts, str(tmp_path)), nprocs=2)
    for rank in range(2):
        together = json.loads((tmp_path / f"{rank}.json").read_text())
        assert together["held_out"] == pytest.approx(held_out, rel=1e-5)
        for one, two in zip(alone, together["metrics"], strict=True):
            assert two == pytest.approx(one, rel=1e-5, abs=1e-5)
