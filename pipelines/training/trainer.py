"""One stage as a Ray Train run: started, resumed or skipped by the same call."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from models.errors import CheckpointError, SostenutoError
from models.wan import read_transformer
from pipelines.checkpoints import NetworkSpec, save_network
from pipelines.storage import Storage
from pipelines.tracking import Progress, TrackerFactory
from pipelines.training.loop import train_worker
from pipelines.training.recipes import OUTCOME_FILE, Recipe, StageOutcome, finished_stage

SILENCE_S = 7200
"""Longest that workers wait for one of them: the first writes checkpoints and decodes previews alone."""


def train_stage(
    recipe: Recipe,
    tracker: TrackerFactory,
    progress: Progress | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> StageOutcome:
    """Trains a stage, or goes on where it stopped, or returns what it had finished.

    Args:
        recipe: what is trained, from what, and where.
        tracker: opens the tracker on rank 0.
        progress: shows it; called on rank 0.
        callbacks: for Ray Train.

    Raises:
        TrainingDiverged: a loss, score or gradient was not finite.
        CheckpointError: the folder holds a run of other settings, or is damaged.
    """
    done = _finished(recipe)
    if done is not None:
        return done
    storage, mark, own = Storage(recipe.root), f"{recipe.name}/recipe.json", {"recipe": recipe.hash()}
    if storage.exists(mark) and storage.read_json(mark) != own:
        raise CheckpointError(
            f"{recipe.root}/{recipe.name} holds an unfinished run with other settings",
            "give its settings to go on with it, or --fresh to start over",
        )
    storage.write_json(mark, own)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"recipe": recipe, "tracker": tracker, "progress": progress},
        torch_config=TorchConfig(timeout_s=SILENCE_S),
        scaling_config=ScalingConfig(num_workers=recipe.cluster.num_workers, use_gpu=recipe.cluster.use_gpu),
        run_config=RunConfig(
            name=recipe.name,
            storage_path=recipe.root,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=recipe.cluster.max_failures),
            callbacks=list(callbacks),
        ),
    )
    try:
        result = trainer.fit()
    except WorkerGroupError as failed:
        ours = [error for error in failed.worker_failures.values() if isinstance(error, SostenutoError)]
        raise ours[0] if ours else failed from failed
    if isinstance(result.return_value, SostenutoError):
        raise result.return_value
    assert result.checkpoint is not None
    checkpoint = f"{recipe.root}/{recipe.name}/{Path(result.checkpoint.path).name}"
    return _finish(recipe, checkpoint, dict(result.return_value or {}))


def adopt_teacher(recipe: Recipe, folder: str) -> StageOutcome:
    """A pretrained transformer as the finished `teacher` stage of a seed.

    Args:
        recipe: the teacher's.
        folder: a Wan 2.1 transformer in the diffusers layout.

    Raises:
        CheckpointError: its files cannot be used.
        ConfigError: its shape is not the run's.
    """
    done = _finished(recipe)
    if done is not None:
        return done
    shape = recipe.short_shape
    model = read_transformer(Path(folder), recipe.model, shape[1], recipe.text.dim)
    spec = NetworkSpec("teacher", recipe.model, recipe.text, shape[1], shape)
    with tempfile.TemporaryDirectory() as name:
        save_network(model, spec, Path(name))
        Storage(recipe.root).put_folder(name, "teacher/pretrained")
    return _finish(recipe, f"{recipe.root}/teacher/pretrained", {"steps": 0.0, "cpu_seconds": 0.0})


def _finished(recipe: Recipe) -> StageOutcome | None:
    """What the stage has finished, if it has, by this recipe."""
    done = finished_stage(recipe.root, recipe.name)
    if done is not None and done.recipe != recipe.hash():
        raise CheckpointError(
            f"{recipe.root}/{recipe.name} was trained with other settings",
            "give the settings it was trained with, another name, or --fresh to start over",
        )
    return done


def _finish(recipe: Recipe, checkpoint: str, summary: dict[str, float]) -> StageOutcome:
    outcome = StageOutcome(checkpoint, summary, recipe.hash())
    Storage(recipe.root).write_json(f"{recipe.name}/{OUTCOME_FILE}", dataclasses.asdict(outcome))
    return outcome
