"""One trial of a sweep: a real Ray Train run of one stage, measured at each of its checkpoints."""

import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import ray
from ray.train import Checkpoint, UserCallback
from ray.util.queue import Queue

from jobs.commands.evaluate import settings_of
from jobs.config.load import flatten, from_json, with_values
from jobs.config.paths import RunPaths, is_remote
from jobs.config.schema import RunConfig
from jobs.ray_session import quiet
from jobs.tracking import RunReference, factory, open_run
from models.errors import ConfigError
from pipelines.evaluation.kept import forget
from pipelines.evaluation.run import evaluate
from pipelines.evaluation.settings import EvaluationSettings, System
from pipelines.storage import Storage
from pipelines.tracking import TrackerFactory
from pipelines.training.recipes import Recipe, StageOutcome, make_recipe
from pipelines.training.trainer import train_stage

SYSTEM = "trial"
"""Name of the one system that a trial's evaluations compare with real videos."""


class Relay(UserCallback):
    """Puts (step, folder) of each checkpoint into a queue, held by links because Ray Train deletes its own.

    Args:
        queue: where the trial reads them.
        held: local folder for the links; None passes on Ray Train's own folders.
    """

    def __init__(self, queue: Queue, held: str | None) -> None:
        self._queue, self._held = queue, held

    def after_report(
        self, run_context: object, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """Called by Ray Train's controller when every worker has reported."""
        del run_context
        if checkpoint is None:
            return
        step = next(int(values["step"]) for values in metrics if "step" in values)
        folder = checkpoint.path
        if self._held is not None:
            folder = f"{self._held}/step-{step}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(checkpoint.path, folder, copy_function=os.link)
        self._queue.put((step, folder))


def trial_settings(config: RunConfig, references: str) -> EvaluationSettings:
    """Evaluation cut down to what comparing trials needs, the same for every trial."""
    videos = config.sweep.videos
    few = dataclasses.replace(
        config.evaluation,
        videos=videos,
        draws=1,
        reference_videos=videos,
        unseen_videos=min(videos, 4),
        withheld_videos=min(videos, 4),
        temporal_videos=0,
        showcase=0,
        max_actors=1,
        min_actors=1,
    )
    return dataclasses.replace(settings_of(config, config.seed), evaluation=few, references=references)


def system_of(config: RunConfig, checkpoint: str) -> System:
    """How the stage's network is sampled: in as many steps as the few-step sampler takes."""
    few = len(config.sampling.steps)
    if config.sweep.stage == "distill":
        return System(SYSTEM, checkpoint, "dm", "few_step", few)
    if config.sweep.stage == "teacher":
        return System(SYSTEM, checkpoint, "teacher", "windows", few)
    return System(SYSTEM, checkpoint, "fm", "ode", few)


def run_trial(space: dict[str, Any], sweep: str, parent: RunReference | None, references: str) -> None:
    """The function that Ray Tune runs for each trial.

    Args:
        space: dotted names and the values that were drawn.
        sweep: the sweep's settings as JSON.
        parent: MLflow run of the sweep.
        references: folder of the measured references.
    """
    from ray import tune

    quiet()
    base = from_json(sweep)
    trial = tune.get_context().get_trial_id()
    drawn = {name: value.item() if hasattr(value, "item") else value for name, value in space.items()}
    config, paths = with_values(base, drawn), RunPaths.of(base)
    stage, seed = config.sweep.stage, config.seed
    recipe = make_recipe(config, stage, seed, paths.seed(seed), paths.dataset)
    recipe = dataclasses.replace(recipe, root=f"{paths.sweeps}/trials/{trial}")
    tracker_factory = factory(open_run(config, f"{base.sweep.folder}/{trial}", parent=parent))
    tracker = tracker_factory()
    tracker.params(flatten(config))
    tracker.close(None)
    for step, checkpoint in _checkpoints(recipe, tracker_factory):
        metrics = _measure(config, base, checkpoint, references, f"{recipe.root}/step-{step}")
        if metrics is None:
            continue
        # a trial that is stopped when it reports has sent what it measured
        tracker = tracker_factory()
        tracker.metrics(step, {f"eval/{name}": value for name, value in metrics.items()})
        tracker.close(None)
        if base.sweep.metric not in metrics:
            problem = f"sweep.metric {base.sweep.metric!r} is not measured"
            raise ConfigError(problem, f"Choose one of {', '.join(sorted(metrics))}")
        tune.report({**metrics, "step": step})
    tracker_factory().close()


def _measure(
    config: RunConfig, base: RunConfig, checkpoint: str, references: str, out: str
) -> dict[str, float] | None:
    """Metrics of one checkpoint; None if newer ones have replaced it meanwhile."""
    try:
        result = evaluate([system_of(config, checkpoint)], trial_settings(base, references), out)
    except Exception:
        if Storage(checkpoint).exists("config.json"):
            raise
        return None
    forget(out)
    values = result.rows[SYSTEM].metrics
    return {name: float(value) for name, value in values.items() if isinstance(value, float | int)}


def _checkpoints(recipe: Recipe, tracker: TrackerFactory) -> Iterator[tuple[int, str]]:
    """Train, and yield steps and folders of checkpoints as they are written, skipping overtaken ones."""
    queue, ended = Queue(actor_options={"num_cpus": 0}), list[StageOutcome | BaseException]()
    held = None if is_remote(recipe.root) else f"{recipe.root}/held"

    def work() -> None:
        try:
            ended.append(train_stage(recipe, tracker, callbacks=[Relay(queue, held)]))
        except BaseException as error:  # noqa: BLE001 - raised again where the checkpoints are read
            ended.append(error)
        finally:
            queue.put(None)

    threading.Thread(target=work, daemon=True).start()
    step, item = 0, queue.get()
    while item is not None:
        (step, folder), more = _newest(queue, item)
        yield step, folder
        item = queue.get() if more else None
    ray.kill(queue.actor)
    if held is not None:
        shutil.rmtree(held, ignore_errors=True)
    outcome = ended[0]
    if isinstance(outcome, BaseException):
        raise outcome
    if step < outcome.summary["steps"]:
        yield int(outcome.summary["steps"]), outcome.checkpoint


def _newest(queue: Queue, item: tuple[int, str]) -> tuple[tuple[int, str], bool]:
    """The newest waiting checkpoint, and whether more may follow."""
    while queue.qsize():
        following = queue.get()
        if following is None:
            return item, False
        item = following
    return item, True
