"""The losses of three stages, step by step, as they were when golden.json was written.

A change of the method shows here, and so does one that was not meant. After a change that is meant:
`python -m tests.pipelines.training.test_golden`.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pipelines.training.distill import DistillStage
from pipelines.training.supervised import SupervisedStage
from tests.pipelines.training.makers import CAPTIONS, DISTILL, SFT, TEACHER, recipe, run, trained_starts

GOLDEN = Path(__file__).with_name("golden.json")
SHOWN = ("loss", "flow_matching", "reverse_kl", "anchor", "critic_loss", "gradient_norm", "exit_step")
STEPS = 10


@contextmanager
def double_precision() -> Iterator[None]:
    """So that the order in which a CPU adds does not show."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def curves(folder: Path) -> dict[str, list[dict[str, float]]]:
    with double_precision():
        starts = trained_starts(folder)
        stages = {
            "teacher": SupervisedStage(recipe(TEACHER)),
            "sft": SupervisedStage(recipe(SFT, {"teacher": starts["teacher"]})),
            "distill": DistillStage(recipe(DISTILL, starts), CAPTIONS),
        }
        found = {}
        for name, stage in stages.items():
            batch = {"short": 4, "long": 0} if name == "teacher" else {}
            metrics = run(stage, stage.init("cpu"), STEPS, **batch)
            found[name] = [{key: step[key] for key in SHOWN if key in step} for step in metrics]
    return found


def test_losses_are_those_of_the_golden_curves(tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    for name, steps in curves(tmp_path).items():
        for step, (ours, theirs) in enumerate(zip(steps, golden[name], strict=True)):
            assert ours == pytest.approx(theirs, rel=1e-5), f"{name}, step {step}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(curves(Path(folder)), indent=1) + "\n")
