"""`sostenuto sweep`: a search over any settings by Ray Tune, each trial a real Ray Train run."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import tune
from ray.tune import Callback, ResultGrid
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.search_algorithm import SearchAlgorithm
from rich.table import Table

from jobs.config.load import flatten, override, to_json, with_values
from jobs.config.paths import RunPaths, absolute_root
from jobs.config.schema import RunConfig, SweepConfig
from jobs.console import ConsoleProgress, find_cause, print_line, print_table
from jobs.ray_session import ray_session
from jobs.tracking import RunReference, close_children, factory, open_run
from jobs.trial import run_trial, trial_settings
from models.errors import CheckpointError, ClusterError
from pipelines.evaluation.run import prepare
from pipelines.storage import Storage
from pipelines.training.lineage import changed_inputs, lineage_of, require_current
from pipelines.training.recipes import Recipe, make_recipe, stages_behind

TUNE = "tune"
"""Folder beside the trials: Ray Tune's own state."""

BEGUN = "settings.json"
"""File beside the trials: the settings that the sweep was begun with."""

START = "start.json"
"""The same for the weights and the data that the trials start from."""

MAY_CHANGE = ("storage.", "tracking.", "cluster.")
"""Groups of settings that may be others when a sweep is gone on with."""

TRIAL_CPUS = 0.01
"""CPUs of the process that waits for a trial's training: Ray refuses 0; more would starve the training."""

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "2",
    "TUNE_WARN_THRESHOLD_S": "60",
}


@dataclass(frozen=True)
class TrialResult:
    """One line of a sweep's table."""

    trial: str
    values: Mapping[str, Any]
    """What was drawn, by dotted name."""
    metric: float | None
    """The last measurement, if any."""
    step: int
    """Step of the last measurement."""
    status: str
    """`finished`, `stopped` by the scheduler, or `failed`."""


def sweep(config: RunConfig, *, fresh: bool = False, allow_stale: bool = False) -> list[TrialResult]:
    """Run the missing trials, print the table, and close the MLflow runs that stopped trials left open.

    Args:
        config: the run's settings; `sweep` says what to search and how.
        fresh: remove the trials that are there first.
        allow_stale: start from stages although the inputs of some have changed.

    Returns:
        The trials, best first.

    Raises:
        CheckpointError: a stage before the sweep's has not finished or is stale, or the sweep was begun with
            other settings or from other weights.
        ClusterError: every trial failed, or Ray, MLflow or the storage cannot be used.
    """
    # Trials run in folders of their own, where a relative root would be another one.
    config = with_values(config, {"storage.root": absolute_root(config.storage.root)})
    paths = RunPaths.of(config)
    root, stage = paths.seed(config.seed), config.sweep.stage
    if not allow_stale:
        require_current(config, root, paths.dataset, stages_behind(config, stage))
    if fresh:
        Storage(paths.root).delete(config.sweep.folder)
    _require_unchanged(config, Storage(paths.sweeps))
    _require_same_start(make_recipe(config, stage, config.seed, root, paths.dataset), Storage(paths.sweeps))
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    parent = open_run(config, config.sweep.folder, tags={"sostenuto.metric": config.sweep.metric})
    tracker = factory(parent)()
    tracker.params(flatten(config))
    with ray_session(config.cluster, dashboard=True):
        references = f"{paths.sweeps}/references"
        with ConsoleProgress() as progress:
            prepare(trial_settings(config, references), progress)
        try:
            grid = _tuner(config, paths, parent, references).fit()
        finally:
            closed = close_children(parent) if parent is not None else 0
    results = _results(config, grid)
    best = results[0]
    tracker.metrics(best.step, {f"eval/{config.sweep.metric}": best.metric or 0.0})
    tracker.tags({f"sostenuto.best.{name}": _short(value) for name, value in best.values.items()})
    tracker.close()
    _show(config, results, closed)
    return results


def _require_same_start(recipe: Recipe, folder: Storage) -> None:
    """Note the weights and the data that a sweep's trials start from; refuse to go on with one of others."""
    now = lineage_of(recipe)
    if not tune.Tuner.can_restore(f"{folder}/{TUNE}") or not folder.exists(START):
        folder.write_json(START, {"inputs": now.inputs, "data_hash": now.data_hash})
        return
    then = folder.read_json(START)
    why = changed_inputs(then["inputs"], now.inputs)
    why += ["the dataset has changed"] if then["data_hash"] != now.data_hash else []
    if why:
        raise CheckpointError(
            f"the sweep in {folder} was begun from other weights or data: {'; '.join(why)}",
            "Give --set sweep.name=NAME for another sweep beside it, or --fresh to start over",
        )


def _require_unchanged(config: RunConfig, folder: Storage) -> None:
    """Note the settings that a sweep is begun with; refuse to go on with one that was begun with others.

    Ray Tune would keep the old search in silence, and the table would compare unlike trials.
    """
    values = {name: value for name, value in flatten(config).items() if not name.startswith(MAY_CHANGE)}
    now = json.loads(json.dumps(values))
    if not tune.Tuner.can_restore(f"{folder}/{TUNE}") or not folder.exists(BEGUN):
        folder.write_json(BEGUN, now)
        return
    begun = folder.read_json(BEGUN)
    changed = [
        f"{name} was {begun.get(name)}, now {now.get(name)}"
        for name in sorted(begun.keys() | now.keys())
        if begun.get(name) != now.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"the sweep in {folder} was begun with other settings: {'; '.join(changed)}",
            "Give those to go on with it, --set sweep.name=NAME for another sweep beside it, or --fresh to "
            "start over",
        )


def space_of(sweep_config: SweepConfig) -> dict[str, Any]:
    """The search space as Ray Tune's domains, under the settings' dotted names."""
    space = {}
    for name, values in sweep_config.space.items():
        if isinstance(values, list):
            space[name] = tune.choice(values)
            continue
        low, high, log = values["low"], values["high"], values.get("log")
        if values.get("integer"):
            space[name] = tune.lograndint(low, high + 1) if log else tune.randint(low, high + 1)
        else:
            space[name] = tune.loguniform(low, high) if log else tune.uniform(low, high)
    return space


def search_of(sweep_config: SweepConfig) -> SearchAlgorithm | Searcher:
    if sweep_config.search == "random":
        return BasicVariantGenerator(
            max_concurrent=sweep_config.max_concurrent, random_state=sweep_config.seed
        )
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=sweep_config.seed)
    found = OptunaSearch(metric=sweep_config.metric, mode=sweep_config.mode, sampler=sampler)
    return ConcurrencyLimiter(found, sweep_config.max_concurrent)


def scheduler_of(config: RunConfig) -> TrialScheduler:
    chosen, stage = config.sweep, getattr(config, config.sweep.stage)
    if chosen.scheduler == "none":
        return FIFOScheduler()
    grace = min(stage.steps, chosen.grace_reports * stage.checkpoint_every)
    return ASHAScheduler(
        time_attr="step",
        metric=chosen.metric,
        mode=chosen.mode,
        grace_period=grace,
        max_t=stage.steps + 1,
        reduction_factor=chosen.reduction_factor,
    )


class _Lines(Callback):
    """Prints a line per measurement."""

    def __init__(self, metric: str) -> None:
        self._metric = metric

    def on_trial_result(self, *_counts: object, trial: Any, result: dict[str, Any], **_more: object) -> None:
        values = ", ".join(f"{name} {_short(value)}" for name, value in trial.config.items())
        measured = f"{self._metric} {result[self._metric]:.4g}"
        print_line(f"trial {trial.trial_id}  step {result['step']}  {measured}  ({values})")


def _tuner(config: RunConfig, paths: RunPaths, parent: RunReference | None, references: str) -> tune.Tuner:
    """A new search, or the interrupted one."""
    work = partial(run_trial, sweep=to_json(config), parent=parent, references=references)
    trainable = tune.with_resources(work, {"CPU": TRIAL_CPUS})
    state = f"{paths.sweeps}/{TUNE}"
    space = space_of(config.sweep)
    if tune.Tuner.can_restore(state):
        print_line("resuming the sweep; --fresh starts over")
        return tune.Tuner.restore(
            state, trainable, resume_unfinished=True, resume_errored=True, param_space=space
        )
    chosen = config.sweep
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=chosen.trials,
            max_concurrent_trials=chosen.max_concurrent if chosen.search == "random" else None,
            search_alg=search_of(chosen),
            scheduler=scheduler_of(config),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name=TUNE, storage_path=paths.sweeps, verbose=0, callbacks=[_Lines(chosen.metric)]
        ),
    )


def _results(config: RunConfig, grid: ResultGrid) -> list[TrialResult]:
    """Every trial, best first."""
    chosen, steps = config.sweep, getattr(config, config.sweep.stage).steps
    found = []
    for result in grid:
        last = result.metrics or {}
        metric, step = last.get(chosen.metric), int(last.get("step", 0))
        status = "failed" if result.error else "finished" if step >= steps else "stopped"
        found.append(TrialResult(str(last.get("trial_id", "-")), result.config or {}, metric, step, status))
    sign = 1 if chosen.mode == "min" else -1
    found.sort(key=lambda trial: (trial.metric is None, sign * (trial.metric or 0.0)))
    if not any(trial.metric is not None for trial in found):
        error = next((result.error for result in grid if result.error), None)
        if error is None:
            raise ClusterError("no trial of the sweep reported", "Run it again with --debug")
        raise find_cause(error) or error
    return found


def _show(config: RunConfig, results: list[TrialResult], closed: int) -> None:
    """The table, and the command that trains with the best values."""
    chosen = config.sweep
    table = Table(
        title=f"{config.name}: {chosen.stage} by {chosen.metric} ({chosen.mode})", title_justify="left"
    )
    for heading in ("trial", *chosen.space, chosen.metric, "step", "status"):
        table.add_column(heading, justify="left" if heading == "trial" else "right")
    for trial in results:
        drawn = [_short(trial.values.get(name)) for name in chosen.space]
        metric = "-" if trial.metric is None else f"{trial.metric:.4g}"
        table.add_row(trial.trial, *drawn, metric, str(trial.step), trial.status)
    print_table(table)
    best = [word for name, value in results[0].values.items() for word in ("--set", override(name, value))]
    print_line(f"best: {shlex.join(best)}")
    if closed:
        print_line(f"{closed} run(s) of stopped trials were closed as KILLED in MLflow")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
