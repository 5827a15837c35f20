"""One stage as a Ray Train run: started, resumed or skipped by the same call."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer

from models.errors import CheckpointError, SostenutoError
from models.wan import read_transformer
from pipelines.checkpoints import MANIFEST_FILE, save_network
from pipelines.storage import Storage, temporary_folder
from pipelines.tracking import Progress, TrackerFactory
from pipelines.training.loop import train_worker
from pipelines.training.recipes import OUTCOME_FILE, Recipe, StageOutcome, finished_stage

LISTING = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a stage's checkpoints."""

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
        StorageRefused: the storage is full or read-only; the last checkpoint stands.
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
    _mend_listing(storage, recipe.name)
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
    return _finish(recipe, checkpoint, dict(result.return_value or {}))


def _mend_listing(storage: Storage, stage: str) -> None:
    """Lists the stage's whole checkpoints anew where a full disk has cut off Ray Train's own list of them."""
    path = f"{stage}/{LISTING}"
    if not storage.exists(path):
        return
    try:
        json.loads(storage.read_bytes(path))
        return
    except ValueError:
        folders = [name for name in storage.list(stage) if storage.exists(f"{stage}/{name}/{MANIFEST_FILE}")]
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in folders if name.startswith("step-")]
    listing = dict.fromkeys(
        (
            "pending_training_results",
            "pending_validation_specs",
            "validated_checkpoint_dir_names",
            "timed_out_validation_checkpoint_dir_names",
            "failed_validation_checkpoint_dir_names",
        ),
        (),
    )
    storage.write_json(
        path,
        {
            "ray_version": ray.__version__,
            "checkpoint_results": results,
            "checkpoint_report_indices": [*range(len(results))],
            "latest_checkpoint_result": results[-1] if results else None,
            "current_report_index": len(results),
            **listing,
        },
    )


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
    spec = recipe.network("teacher")
    model = read_transformer(Path(folder), recipe.model, spec.channels, recipe.text.dim)
    with temporary_folder() as made:
        save_network(model, spec, made)
        Storage(recipe.root).put_folder(made, "teacher/pretrained")
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
