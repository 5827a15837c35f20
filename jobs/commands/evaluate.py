"""`sostenuto evaluate`: trained systems, checkpoints or folders of videos against real ones, in a table."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.config.systems import planned_systems
from jobs.console import ConsoleProgress, print_line, print_table, warn
from jobs.ray_session import ray_session
from jobs.system_runs import file_report, file_systems
from jobs.tracking import RunReference, command_run
from models.errors import CheckpointError, ConfigError
from pipelines.checkpoints import read_spec
from pipelines.data.store.info import read_info
from pipelines.evaluation.features.i3d_file import load_weights, user_cache
from pipelines.evaluation.folders import FolderSettings
from pipelines.evaluation.kept import forget
from pipelines.evaluation.reference import what_is_measured
from pipelines.evaluation.report.page import Report, write_report
from pipelines.evaluation.report.summary import over_time, remarks, table
from pipelines.evaluation.run import RESULT, Evaluation, evaluate_folders, open_folders
from pipelines.evaluation.run import evaluate as compare
from pipelines.evaluation.settings import EvaluationSettings, LogitPlan, System, video_shape
from pipelines.storage import Storage, hash_of
from pipelines.tracking import Progress, Tracker
from pipelines.training.lineage import require_current
from pipelines.training.recipes import finished_stage, stage_graph

RUN = "evaluation"
"""MLflow run whose children are the systems of every seed, whichever command evaluates them."""

INPUTS = "inputs.json"
"""File beside the result: by system, a hash of what its row was made from."""

REAL_ROWS = ("real", "corpus_long", "ideal")
"""Rows of real videos."""
WINDOW_SECONDS = 2.0
"""Of one core, for I3D on one window of 16 frames."""


def evaluate(
    config: RunConfig,
    *,
    fresh: bool = False,
    allow_stale: bool = False,
    videos: Sequence[str] | None = None,
    reference: str | None = None,
    control: str | None = None,
    checkpoint: Sequence[str] | None = None,
    as_json: bool = False,
) -> Evaluation:
    """Evaluate the config's seed, or reuse its result; print the table and write the report.

    Args:
        config: the run's settings.
        fresh: evaluate again even if nothing has changed.
        allow_stale: compare stages although the inputs of some have changed.
        videos: folders to compare with `reference`, as DIR or NAME=DIR; nothing of the run is read then.
        reference: folder of real videos.
        control: folder of other real videos, for the floor; None takes half of the reference.
        checkpoint: networks in place of the run's own, as DIR or NAME=DIR.
        as_json: print the result as one JSON object and nothing else.

    Raises:
        CheckpointError: nothing has been trained with this seed, or a stage is stale.
        DataError: the dataset or a folder is missing or damaged.
        ConfigError: two folders or checkpoints of one name.
        ClusterError: Ray or MLflow cannot be used.
    """
    if config.evaluation.fvd:
        load_weights(config.evaluation.i3d)  # missing ones are told before anything is made
    report = None
    with ray_session(config.cluster), ConsoleProgress(to_stderr=as_json) as progress:
        if videos and reference:
            result = evaluate_videos(config, named(videos), reference, control, progress)
        elif checkpoint:
            result = evaluate_checkpoints(config, named(checkpoint), progress)
        else:
            with command_run(config, RUN) as (run, tracker):
                result = evaluate_seed(
                    config, config.seed, progress, parent=run, fresh=fresh, allow_stale=allow_stale
                )
                report = None if as_json else publish(config, [result], tracker)
    if as_json:
        print_line(json.dumps(result.to_json()))
        return result
    if report is None:
        show([result], config.name)
        return result
    print_line(f"report: {report.html}")
    print_line(f"figures: {RunPaths.of(config).evaluation(config.seed)}/{RESULT}")
    return result


def evaluate_videos(
    config: RunConfig,
    videos: Mapping[str, str],
    reference: str,
    control: str | None,
    progress: ConsoleProgress,
) -> Evaluation:
    """Compare folders of videos with real ones, at `data.fps` or the reference's rate, on the running Ray.

    Raises:
        DataError: a folder holds no video that can be read, or too few.
    """
    folders = open_folders(videos, reference, control, config.data.fps, folder_settings(config), progress)
    tell_cost(config, folders.unseen_windows)
    return evaluate_folders(folders, progress)


def folder_settings(config: RunConfig) -> FolderSettings:
    return FolderSettings(
        evaluation=config.evaluation,
        limits=config.data.limits,
        links=config.data.links,
        cache=str(user_cache()),
        use_gpu=config.cluster.use_gpu,
    )


def tell_cost(config: RunConfig, windows: int) -> None:
    """Say how long I3D takes for so many windows, before it begins."""
    if windows:
        workers = config.evaluation.max_actors
        minutes = f"about {windows * WINDOW_SECONDS / workers / 60:.0f} minutes of {workers} cores"
        warn(f"I3D sees {windows} windows: {'a GPU is used' if config.cluster.use_gpu else minutes}")


def evaluate_checkpoints(
    config: RunConfig, checkpoints: Mapping[str, str], progress: ConsoleProgress
) -> Evaluation:
    """Compare networks by their folders with the run's real videos, on the running Ray.

    A distilled student is sampled by its few steps, another by its FM head, a teacher window by window.

    Raises:
        CheckpointError: a network cannot be read.
    """
    systems = []
    for name, folder in checkpoints.items():
        spec = read_spec(folder)
        if spec.role == "teacher":
            systems.append(System(name, folder, "teacher", "windows", config.sampling.rollout_steps))
        elif spec.distilled:
            few = len(spec.sampling.steps)
            systems.append(System(name, folder, "dm", "few_step", few, config.evaluation.draws))
        else:
            systems.append(System(name, folder, "fm", "ode", config.sampling.ode_steps))
    settings = settings_of(config, config.seed)
    out = f"{RunPaths.of(config).evaluation(config.seed)}/checkpoints"
    tell_cost(config, windows_of(settings, systems))
    return evaluate_missing(systems, settings, out, progress)[0]


def windows_of(settings: EvaluationSettings, systems: Sequence[System]) -> int:
    """Windows that I3D sees at most: of the systems, of the real videos and of the corpus."""
    plan = LogitPlan.of(settings.evaluation, video_shape(settings).frames)
    return (
        plan.rule.count * plan.videos * (len(systems) + (2 if settings.world is None else 3)) if plan else 0
    )


def named(places: Sequence[str]) -> dict[str, str]:
    """Folders by the names of their rows: NAME=DIR, or DIR, whose last part is the name.

    Raises:
        ConfigError: two have one name, or one has that of real videos.
    """
    found: dict[str, str] = {}
    for place in places:
        name, mark, folder = place.partition("=")
        if not mark or "/" in name:
            name, folder = place.rstrip("/").rpartition("/")[2], place
        if name in found or name in REAL_ROWS:
            raise ConfigError(f"{place}: another row of the table is called {name!r}", "Name it: NAME=DIR")
        found[name] = folder
    return found


def evaluate_seed(
    config: RunConfig,
    seed: int,
    progress: ConsoleProgress,
    *,
    parent: RunReference | None,
    fresh: bool = False,
    allow_stale: bool = False,
) -> Evaluation:
    """One seed's evaluation on the running Ray; a result of the same networks and settings is reused.

    Args:
        config: the run's settings.
        seed: seed of training and of the noise.
        progress: shows what is done.
        parent: MLflow run whose children are the systems.
        fresh: evaluate again in any case.
        allow_stale: compare stages although the inputs of some have changed.

    Raises:
        CheckpointError: nothing has been trained with this seed, or a stage is stale.
    """
    paths = RunPaths.of(config)
    systems, settings = systems_of(config, seed), settings_of(config, seed)
    if not allow_stale:
        root = paths.seed(seed)
        compared = [stage for stage in stage_graph(config) if finished_stage(root, stage)]
        require_current(config, root, settings.dataset, compared)
    tell_cost(config, windows_of(settings, systems))
    result, made = evaluate_missing(systems, settings, paths.evaluation(seed), progress, fresh=fresh)
    file_systems(config, result, systems, parent, made)
    return result


def evaluate_missing(
    systems: Sequence[System],
    settings: EvaluationSettings,
    folder: str,
    progress: Progress,
    *,
    fresh: bool = False,
) -> tuple[Evaluation, list[str]]:
    """Evaluate the systems whose figures are not yet in `folder`, or are of other networks or settings.

    What one that was stopped has measured is not measured again.

    Args:
        systems: rows of the table, in order.
        settings: of the evaluation.
        folder: of the result and its videos; a path or any fsspec URI.
        progress: shows what is done.
        fresh: evaluate all.

    Returns:
        The whole table, and the names of the rows that are new.
    """
    storage, common = Storage(folder), hash_of([asdict(settings), what_is_measured()])[:16]
    marks = {one.name: f"{common}-{hash_of(asdict(one))[:16]}" for one in systems}
    if fresh:
        forget(folder)
    then = storage.read_json(INPUTS) if storage.exists(INPUTS) and not fresh else {}
    kept = Evaluation.from_json(storage.read_json(RESULT)) if then and storage.exists(RESULT) else None
    rows = [] if kept is None else [name for name in kept.rows if then.get(name, common).startswith(common)]
    missing = [one for one in systems if one.name not in rows or then.get(one.name) != marks[one.name]]
    if kept is not None and not missing:
        whole, made = kept, []
    else:
        new = compare(missing, settings, folder, progress)
        whole, made = new if kept is None else kept.of(rows).joined(new, list(marks)), list(new.rows)
        storage.write_json(RESULT, whole.to_json())
        storage.write_json(INPUTS, then | marks)
        forget(folder)
    asked = [*marks, *(name for name in whole.rows if name not in then | marks)]
    return whole.of(asked), made


def publish(config: RunConfig, results: Sequence[Evaluation], tracker: Tracker) -> Report:
    """Print the table of one result per seed, write the report page, and file both with MLflow."""
    paths = RunPaths.of(config)
    show(results, config.name)
    report = write_report(results, paths.root, config.name, read_info(paths.dataset).long.fps)
    file_report(tracker, results, report)
    return report


def show(results: Sequence[Evaluation], title: str) -> None:
    """Print the table of one result per seed, and what must be read with it."""
    print_table(table(results, title))
    for remark in remarks(results):
        print_line(f"  {remark}")
    for system, findings in over_time(results).items():
        print_line(f"  {system}, over time: {findings}")


def systems_of(config: RunConfig, seed: int) -> list[System]:
    """The systems trained with this seed, in the order of the table.

    Raises:
        CheckpointError: there is none.
    """
    planned = planned_systems(config)
    root = RunPaths.of(config).seed(seed)
    outcomes = {stage: finished_stage(root, stage) for stage in {stage for stage, _ in planned}}
    found = [
        dataclasses.replace(system, checkpoint=outcome.checkpoint)
        for stage, system in planned
        if (outcome := outcomes[stage]) is not None
    ]
    if not found:
        problem = f"nothing has been trained in {root}"
        raise CheckpointError(problem, "Run `sostenuto train teacher` and the stages after it first")
    return found


def settings_of(config: RunConfig, seed: int) -> EvaluationSettings:
    paths = RunPaths.of(config)
    return EvaluationSettings(
        evaluation=config.evaluation,
        sampling=config.sampling,
        world=config.world if config.uses_world else None,
        dataset=paths.dataset,
        references=f"{paths.root}/references",
        seed=seed,
        text=config.text,
        use_gpu=config.cluster.use_gpu,
    )
