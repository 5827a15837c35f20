"""A teacher of milliseconds a step on Ray Train, for scripts with nodes of their own; what watches it."""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import ray

from pipelines.training.collectives import Workers
from pipelines.training.config import ClusterConfig
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batches, StepResult
from pipelines.training.state import TrainState
from pipelines.training.supervised import SupervisedStage
from tests.pipelines.data import made
from tests.pipelines.training import makers

PACE_S = 0.04
"""Each step takes so much longer: it is told of, and rank 0 waits."""


def teacher(root: str, dataset: str, steps: int, cluster: ClusterConfig, checkpoint_every: int) -> Recipe:
    settings = dataclasses.replace(
        makers.TEACHER,
        steps=steps,
        short_batch=6,
        checkpoint_every=checkpoint_every,
        log_every=1,
        watch_every=0,
        learning_rate=1e-4,
    )
    shapes = {"short_shape": made.SHAPE["short"], "long_shape": made.SHAPE["long"]}
    recipe = makers.recipe(settings)
    return dataclasses.replace(recipe, root=root, dataset=dataset, cluster=cluster, **shapes)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Lines:
    """Progress and tracker of a run, as lines of a file."""

    file: str

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        self._say({"done": done})
        time.sleep(PACE_S)

    def open(self) -> "Lines":
        self._say({"workers": ray.train.get_context().get_world_size()})
        return self

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if "train/loss" in values:
            self._say({"step": step, "loss": values["train/loss"]})

    def params(self, values: Mapping[str, object]) -> None: ...

    def artifact(self, path: str, folder: str = "") -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def close(self, status: str | None = "FINISHED") -> None:
        self._say({"closed": status})

    def _say(self, what: Mapping[str, object]) -> None:
        with Path(self.file).open("a") as file:
            file.write(json.dumps(what) + "\n")

    def read(self) -> list[dict[str, Any]]:
        path = Path(self.file)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def done(self) -> int:
        return max((line["done"] for line in self.read() if "done" in line), default=0)

    def losses(self) -> dict[int, list[float]]:
        """Of every step, as often as it was taken."""
        found: dict[int, list[float]] = {}
        for line in self.read():
            if "loss" in line:
                found.setdefault(line["step"], []).append(line["loss"])
        return found

    def groups(self) -> list[int]:
        """Workers of each group, one after another."""
        return [line["workers"] for line in self.read() if "workers" in line]


def workers_of(raylet: int) -> Iterator[psutil.Process]:
    """The training workers below a node's raylet."""
    for process in psutil.Process(raylet).children(recursive=True):
        if "RayTrainWorker" in " ".join(process.cmdline()):
            yield process


@dataclasses.dataclass(frozen=True)
class Patient(Lines):
    """A worker that is alone takes a second more a step, so that another comes before it is done."""

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        super().__call__(task, done, total, note)
        time.sleep(float(self.groups()[-1] == 1))


@dataclasses.dataclass(frozen=True)
class Hanging(Lines):
    """In the process that unpickles it, rank 1 once sleeps in step `HANGS_IN`, and warnings go to a file."""

    warnings: str

    def __reduce__(self) -> tuple[Any, ...]:
        return _hanging, (self.file, self.warnings)


HANGS_IN = 5


def _hanging(file: str, warnings: str) -> Hanging:
    log = logging.getLogger("sostenuto")
    if not any(isinstance(handler, logging.FileHandler) for handler in log.handlers):
        log.addHandler(logging.FileHandler(warnings))
    take = SupervisedStage.step

    def step(self: SupervisedStage, state: TrainState, batches: Batches, key: Any) -> StepResult:
        workers: Workers = self.workers
        if workers.rank == 1 and state.step == HANGS_IN and not os.path.exists(f"{file}.hung"):
            Path(f"{file}.hung").touch()
            time.sleep(1000)
        return take(self, state, batches, key)

    if take.__qualname__ == "SupervisedStage.step":
        SupervisedStage.step = step  # type: ignore[method-assign]
    return Hanging(file, warnings)
