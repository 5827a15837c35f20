"""One and two workers take the same steps."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from pipelines.training import parallel
from pipelines.training.distill import DistillStage
from pipelines.training.parallel import Workers
from tests.pipelines.training.makers import CAPTIONS, DISTILL, recipe, run, trained_starts

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
    Path(out, f"{rank}.json").write_text(json.dumps(metrics))
    distributed.destroy_process_group()


def test_one_and_two_workers_have_equal_losses(tmp_path: Path) -> None:
    starts = trained_starts(tmp_path)
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    alone = run(stage, stage.init("cpu"), STEPS)
    multiprocessing.spawn(_work, (2, starts, str(tmp_path)), nprocs=2)
    for rank in range(2):
        together = json.loads((tmp_path / f"{rank}.json").read_text())
        for one, two in zip(alone, together, strict=True):
            assert two == pytest.approx(one, rel=1e-5, abs=1e-5)
