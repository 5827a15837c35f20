"""One stage as a Ray Train run: started, resumed or skipped by the same call."""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from models.wan.transformer import read_transformer
from pipelines.checkpoints import NetworkSpec, save_network
from pipelines.storage import Storage, hash_of
from pipelines.tracking import TrackerFactory
from pipelines.training.config import ClusterConfig
from pipelines.training.loop import WorkerJob, train_worker
from pipelines.training.progress import Reporter
from pipelines.training.supervised import Recipe

OUTCOME_FILE = "outcome.json"
SILENCE_S = 7200
"""Longest that workers wait for one of them: the first writes checkpoints and decodes previews alone."""
_NOT_HASHED = frozenset({"checkpoint_every", "preview_every", "log_every"})


@dataclass(frozen=True)
class TrainingRun:
    """A stage and where it runs.

    Args:
        name: folder of the stage below `root`, and its name in progress.
        root: storage of the stages of one seed.
        dataset: folder of the dataset.
        recipe: what the stage is made from.
        cluster: what it asks of Ray.
        settings: the resolved settings of the run.
        tracker: opens the tracker on rank 0.
        reporter: takes progress.
    """

    name: str
    root: str
    dataset: str
    recipe: Recipe
    cluster: ClusterConfig
    settings: dict[str, Any]
    tracker: TrackerFactory
    reporter: Reporter | None = None


@dataclass(frozen=True)
class StageOutcome:
    """A finished stage.

    Args:
        checkpoint: folder of its last checkpoint.
        summary: `steps`, `cpu_seconds` and, with held-out windows, `held_out_loss_start` and `held_out_loss`.
    """

    checkpoint: str
    summary: dict[str, float]


def recipe_hash(recipe: Recipe) -> str:
    """Changes with all that decides a stage's weights: not with where it starts from, nor what it logs."""
    plain = dataclasses.asdict(recipe) | {"start": sorted(recipe.start)}
    plain["stage"] = {name: value for name, value in plain["stage"].items() if name not in _NOT_HASHED}
    return hash_of(plain)[:16]


def finished_stage(root: str, name: str, recipe: Recipe | None = None) -> StageOutcome | None:
    """The outcome of a stage that has run to its end, if there is one.

    Raises:
        CheckpointError: it was trained from another recipe than the one given.
    """
    storage = Storage(root)
    path = f"{name}/{OUTCOME_FILE}"
    if not storage.exists(path):
        return None
    plain = storage.read_json(path)
    if recipe is not None and plain["recipe"] != recipe_hash(recipe):
        raise CheckpointError(
            f"{root}/{name} was trained with other settings",
            "give the settings it was trained with, another name, or --fresh to start over",
        )
    return StageOutcome(plain["checkpoint"], plain["summary"])


def train_stage(run: TrainingRun, callbacks: Sequence[UserCallback] = ()) -> StageOutcome:
    """Trains a stage, or goes on where it stopped, or returns what it had finished.

    Raises:
        TrainingDiverged: a loss, score or gradient was not finite.
        CheckpointError: the folder holds a run of other settings, or is damaged.
    """
    done = finished_stage(run.root, run.name, run.recipe)
    if done is not None:
        return done
    _claim(run)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=_job(run),
        torch_config=TorchConfig(timeout_s=SILENCE_S),
        scaling_config=ScalingConfig(num_workers=run.cluster.num_workers, use_gpu=run.cluster.use_gpu),
        run_config=RunConfig(
            name=run.name,
            storage_path=run.root,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=run.cluster.max_failures),
            callbacks=list(callbacks),
        ),
    )
    try:
        result = trainer.fit()
    except WorkerGroupError as failed:
        told = [error for error in failed.worker_failures.values() if isinstance(error, SostenutoError)]
        raise told[0] if told else failed from failed
    if isinstance(result.return_value, SostenutoError):
        raise result.return_value
    assert result.checkpoint is not None
    folder = f"{run.root}/{run.name}/{Path(result.checkpoint.path).name}"
    outcome = StageOutcome(folder, dict(result.return_value or {}))
    return _finish(run.root, run.name, run.recipe, outcome)


def _claim(run: TrainingRun) -> None:
    """Marks the folder with the recipe, or refuses to go on with another one's checkpoints."""
    storage, path, own = Storage(run.root), f"{run.name}/recipe.json", recipe_hash(run.recipe)
    if storage.exists(path) and storage.read_json(path)["recipe"] != own:
        raise CheckpointError(
            f"{run.root}/{run.name} holds a run with other settings that has not finished",
            "give its settings to go on with it, or --fresh to start over",
        )
    storage.write_json(path, {"recipe": own})


def _job(run: TrainingRun) -> dict[str, Any]:
    job = WorkerJob(
        run.name,
        run.recipe,
        run.dataset,
        run.settings,
        run.tracker,
        run.reporter,
        run.cluster.use_gpu,
        run.cluster.activation_checkpointing,
    )
    return {"job": job}


def adopt_teacher(root: str, recipe: Recipe, folder: str) -> StageOutcome:
    """A pretrained transformer as the finished `teacher` stage of a seed.

    Args:
        root: storage of the stages of one seed.
        recipe: the teacher's.
        folder: a Wan 2.1 transformer in the diffusers layout.

    Raises:
        CheckpointError: its files cannot be used.
        ConfigError: its shape is not the run's.
    """
    done = finished_stage(root, "teacher", recipe)
    if done is not None:
        return done
    shape = recipe.short_shape
    model = read_transformer(Path(folder), recipe.model, shape[1], recipe.text.dim)
    spec = NetworkSpec("teacher", recipe.model, recipe.text, shape[1], shape)
    with tempfile.TemporaryDirectory() as name:
        save_network(model, spec, Path(name))
        Storage(root).put_folder(name, "teacher/pretrained")
    outcome = StageOutcome(f"{root}/teacher/pretrained", {"steps": 0.0, "cpu_seconds": 0.0})
    return _finish(root, "teacher", recipe, outcome)


def _finish(root: str, name: str, recipe: Recipe, outcome: StageOutcome) -> StageOutcome:
    plain = {**dataclasses.asdict(outcome), "recipe": recipe_hash(recipe)}
    Storage(root).write_json(f"{name}/{OUTCOME_FILE}", plain)
    return outcome
