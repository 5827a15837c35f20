"""`sostenuto evaluate`: every trained system of a seed against real videos, in one table."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.config.systems import planned_systems
from jobs.console import ConsoleProgress, print_line, print_table
from jobs.ray_session import ray_session
from jobs.system_runs import file_report, file_systems
from jobs.tracking import RunReference, command_run
from models.errors import CheckpointError
from pipelines.data.store.info import read_info
from pipelines.evaluation.reference import what_is_measured
from pipelines.evaluation.report.page import Report, write_report
from pipelines.evaluation.report.summary import over_time, remarks, table
from pipelines.evaluation.run import RESULT, Evaluation
from pipelines.evaluation.run import evaluate as compare
from pipelines.evaluation.settings import EvaluationSettings, System
from pipelines.storage import Storage, hash_of
from pipelines.tracking import Progress, Tracker
from pipelines.training.lineage import require_current
from pipelines.training.recipes import finished_stage, stage_graph

RUN = "evaluation"
"""MLflow run whose children are the systems of every seed, whichever command evaluates them."""

INPUTS = "inputs.json"
"""File beside the result: by system, a hash of what its row was made from."""


def evaluate(config: RunConfig, *, fresh: bool = False, allow_stale: bool = False) -> Evaluation:
    """Evaluate the config's seed, or reuse its result; print the table and write the report.

    Args:
        config: the run's settings.
        fresh: evaluate again even if nothing has changed.
        allow_stale: compare stages although the inputs of some have changed.

    Raises:
        CheckpointError: nothing has been trained with this seed, or a stage is stale.
        DataError: the dataset is missing or damaged.
        ClusterError: Ray or MLflow cannot be used.
    """
    with (
        ray_session(config.cluster),
        ConsoleProgress() as progress,
        command_run(config, RUN) as (run, tracker),
    ):
        result = evaluate_seed(
            config, config.seed, progress, parent=run, fresh=fresh, allow_stale=allow_stale
        )
        report = publish(config, [result], tracker)
    print_line(f"report: {report.html}")
    print_line(f"figures: {RunPaths.of(config).evaluation(config.seed)}/{RESULT}")
    return result


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
    asked = [*marks, *(name for name in whole.rows if name not in then | marks)]
    return whole.of(asked), made


def publish(config: RunConfig, results: Sequence[Evaluation], tracker: Tracker) -> Report:
    """Print the table of one result per seed, write the report page, and file both with MLflow."""
    paths = RunPaths.of(config)
    print_table(table(results, config.name))
    for remark in remarks(results):
        print_line(f"  {remark}")
    for system, findings in over_time(results).items():
        print_line(f"  {system}, over time: {findings}")
    report = write_report(results, paths.root, config.name, read_info(paths.dataset).long.fps)
    file_report(tracker, results, report)
    return report


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
