"""One stage as a Ray Train run: started, resumed or skipped by the same call."""

import dataclasses
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from pathlib import Path

import ray
from ray.train import (
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback

from models.errors import SostenutoError
from models.wan import read_transformer
from pipelines.checkpoints import save_network
from pipelines.storage import Storage, temporary_folder
from pipelines.tracking import Progress, TrackerFactory
from pipelines.training.lineage import Lineage, begin_stage
from pipelines.training.loop import train_worker
from pipelines.training.monitors.phases import Plan
from pipelines.training.recipes import OUTCOME_FILE, Recipe, StageOutcome
from pipelines.training.survival.listing import mend_listing
from pipelines.training.survival.pulse import guarding

SILENCE_S = 7200
"""Longest that workers wait for one of them between steps, where the first decodes previews alone."""

LOST_S = 15.0
"""No worker has beaten for so long: there is none that could save."""


class StageTrainer(TorchTrainer):
    """Ray Train without its manager of Ray datasets, which no stage reads: an actor less, of 116 MiB."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [own for own in super()._create_default_callbacks() if not isinstance(own, DatasetsCallback)]


def train_stage(
    recipe: Recipe,
    tracker: TrackerFactory,
    progress: Progress | None = None,
    callbacks: Sequence[UserCallback] = (),
    plan: Plan | None = None,
) -> StageOutcome:
    """Trains a stage, or goes on where it stopped, or returns what it had finished.

    Args:
        recipe: what is trained, from what, and where.
        tracker: opens the tracker on rank 0.
        progress: shows it; called on rank 0.
        callbacks: for Ray Train.
        plan: what a dry run expects, for the log to compare.

    Raises:
        TrainingDiverged: a loss, score or gradient was not finite.
        CheckpointError: what it was begun from has changed since (lineage.py: begin_stage), or is damaged.
        StorageRefused: the storage is full or read-only; the last checkpoint stands.
    """
    begun = begin_stage(recipe)
    if isinstance(begun, StageOutcome):
        return begun
    recipe, storage = dataclasses.replace(recipe, lineage=dataclasses.asdict(begun)), Storage(recipe.root)
    mend_listing(storage.child(recipe.name))
    try:
        result = _fit(recipe, tracker, progress, callbacks, plan)
    except TrainingFailedError as failed:
        met = [*getattr(failed, "worker_failures", {}).values(), getattr(failed, "controller_failure", None)]
        for error in met:
            if isinstance(error, SostenutoError):
                raise error from failed
            if isinstance(error, OSError):
                with storage.errors_about(recipe.name):
                    raise error from failed
        raise
    if isinstance(result.return_value, SostenutoError):
        raise result.return_value
    assert result.checkpoint is not None
    checkpoint = f"{recipe.root}/{recipe.name}/{Path(result.checkpoint.path).name}"
    return _finish(recipe, begun, checkpoint, dict(result.return_value or {}))


def _fit(
    recipe: Recipe,
    tracker: TrackerFactory,
    progress: Progress | None,
    callbacks: Sequence[UserCallback],
    plan: Plan | None,
) -> Result:
    """Ray Train's run. Interrupted, the workers save at the end of their step, unless a second one comes."""
    cluster, done = recipe.cluster, Future[Result]()
    with guarding(60 * cluster.hang_minutes) as guard:
        trainer = StageTrainer(
            train_worker,
            train_loop_config={
                "recipe": recipe,
                "tracker": tracker,
                "progress": progress,
                "plan": plan,
                "guard": guard,
            },
            torch_config=TorchConfig(timeout_s=SILENCE_S),
            scaling_config=ScalingConfig(
                num_workers=cluster.num_workers,
                use_gpu=cluster.use_gpu,
                elastic_resize_monitor_interval_s=cluster.resize_seconds,
            ),
            run_config=RunConfig(
                name=recipe.name,
                storage_path=recipe.root,
                failure_config=FailureConfig(max_failures=cluster.max_failures),
                callbacks=list(callbacks),
            ),
        )

        def fit() -> None:
            try:
                done.set_result(trainer.fit())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the result gets it
                done.set_exception(error)

        # Not in the main thread, where Ray would take Ctrl-C for itself and end the workers in their step.
        threading.Thread(target=fit, name="fit", daemon=True).start()
        try:
            return done.result()
        except KeyboardInterrupt:
            guard.stop.remote()
            logging.getLogger("sostenuto.training").warning(
                "%s saves at the end of this step and stops; a second interrupt ends it at once", recipe.name
            )
            while not done.done() and ray.get(guard.silent_s.remote()) < LOST_S:
                wait([done], timeout=1)
            raise


def adopt_teacher(recipe: Recipe, folder: str) -> StageOutcome:
    """A pretrained transformer as the finished `teacher` stage of a seed.

    Args:
        recipe: the teacher's.
        folder: a Wan 2.1 transformer in the diffusers layout.

    Raises:
        CheckpointError: its files cannot be used.
        ConfigError: its shape is not the run's.
    """
    begun = begin_stage(recipe)
    if isinstance(begun, StageOutcome):
        return begun
    spec = recipe.network("teacher")
    model = read_transformer(Path(folder), recipe.model, spec.channels, recipe.text.dim)
    with temporary_folder() as made:
        save_network(model, spec, made)
        Storage(recipe.root).put_folder(made, "teacher/pretrained")
    return _finish(recipe, begun, f"{recipe.root}/teacher/pretrained", {"steps": 0.0, "cpu_seconds": 0.0})


def _finish(recipe: Recipe, begun: Lineage, checkpoint: str, summary: dict[str, float]) -> StageOutcome:
    outcome = StageOutcome(checkpoint, summary, begun.hash)
    Storage(recipe.root).write_json(f"{recipe.name}/{OUTCOME_FILE}", dataclasses.asdict(outcome))
    return outcome
