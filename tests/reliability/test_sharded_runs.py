"""A run with sharded weights on Ray Train's workers: it is stopped, and goes on, on other workers, too."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from torch import Tensor

from models.weights import TensorFiles
from pipelines.checkpoints import checkpoint_files
from pipelines.training.config import ClusterConfig
from pipelines.training.recipes import Recipe
from pipelines.training.trainer import train_stage
from tests.pipelines.data.made import make
from tests.reliability.small_training import Lines, teacher

pytestmark = [pytest.mark.long, pytest.mark.resume, pytest.mark.timeout(900)]

STEPS, STOPPED = 40, 5
FILES = "teacher", "teacher.average", "teacher.optimizer"


def planned(root: Path, dataset: Path, workers: int, shard: str) -> tuple[Recipe, Lines]:
    cluster = ClusterConfig(num_workers=workers, shard=shard)  # type: ignore[arg-type]
    return teacher(str(root), str(dataset), STEPS, cluster, 2 * STEPS), Lines(f"{root}.jsonl")


def trained(root: Path, dataset: Path, workers: int, shard: str) -> dict[str, Tensor]:
    """What the last checkpoint holds, whoever has written it."""
    recipe, lines = planned(root, dataset, workers, shard)
    checkpoint = train_stage(recipe, lines.open, lines).checkpoint
    parts = workers if shard == "full" else 0
    assert len([*Path(checkpoint).glob("teacher-*-of-*")]) == parts
    found: dict[str, Tensor] = {}
    for name in FILES:
        with checkpoint_files(checkpoint, f"{name}.safetensors") as paths, TensorFiles(paths) as files:
            found |= {f"{name} {tensor}": files.tensor(tensor) for tensor in files.names()}
    return found


def stop(root: Path, dataset: Path) -> None:
    """Ctrl-C when two workers have taken some steps: both save and end."""
    recipe, lines = planned(root, dataset, 2, "full")

    def interrupt() -> None:
        while lines.done() < STOPPED:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        train_stage(recipe, lines.open, lines)


@pytest.mark.usefixtures("ray_local")
def test_a_stopped_run_of_sharded_weights_goes_on_with_any_workers(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    make(dataset, holdout=0.2)
    whole = trained(tmp_path / "whole", dataset, 2, "full")
    stop(tmp_path / "stopped", dataset)
    (saved,) = (tmp_path / "stopped").glob("stage/step-*/manifest.json")
    assert STOPPED <= int(saved.parent.name.removeprefix("step-")) < STEPS
    told = Lines(f"{tmp_path}/stopped.jsonl").losses()
    for workers, shard, tolerance in ((2, "full", 0.0), (3, "full", 1e-6), (1, "none", 1e-6)):
        again = tmp_path / f"{workers}-{shard}"
        shutil.copytree(tmp_path / "stopped", again)
        found = trained(again, dataset, workers, shard)
        apart = {name: float((found[name] - whole[name]).square().mean().sqrt()) for name in whole}
        assert found.keys() == whole.keys()
        assert {name: far for name, far in apart.items() if far > tolerance} == {}, (workers, shard)
        later = Lines(f"{again}.jsonl").losses()
        assert sorted([*told, *later]) == [*range(1, STEPS + 1)], "each step is taken once"
