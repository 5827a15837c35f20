"""What an evaluation found, in MLflow: a run per system and seed, all with the same names of metrics, so that
MLflow's own table, charts and comparison put systems beside each other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from jobs.config.load import config_hash, flatten
from jobs.config.paths import RunPaths, is_remote
from jobs.config.schema import RunConfig
from jobs.registry import file_student, register_student
from jobs.tracking import RunReference, factory, open_run
from jobs.used_dataset import used_dataset
from pipelines.data.store.info import read_info
from pipelines.evaluation.report.page import Report
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Value
from pipelines.evaluation.settings import System
from pipelines.storage import Storage, temporary_folder
from pipelines.tracking import Tracker

TABLE = "systems.json"
"""Artifact of an evaluation's run: a table, a row per system and seed."""


def file_systems(
    config: RunConfig,
    result: Evaluation,
    systems: Sequence[System],
    parent: RunReference | None,
    names: Sequence[str],
    *,
    prefix: str = "",
    place: RunPaths | None = None,
    stands_for: str = "",
) -> None:
    """Files rows of one seed's table as child runs of the evaluation's.

    Args:
        config: of the run, or of the one system where systems differ in settings.
        result: the seed's table.
        systems: those of its rows that are no real videos.
        parent: the evaluation's run.
        names: of the rows.
        prefix: of the runs' names.
        place: where the dataset is; None is the run's own place.
        stands_for: what the system is, in words: a description, which MLflow's page shows above the run.

    Raises:
        ClusterError: MLflow does not answer.
    """
    if parent is None or not names:
        return
    paths, by_name = place or RunPaths.of(config), {system.name: system for system in systems}
    used = used_dataset(config, paths.dataset, "evaluation")
    tags = {"sostenuto.config_hash": config_hash(config), "sostenuto.seed": str(result.seed)}
    tags |= {"sostenuto.data_hash": read_info(paths.dataset).data_hash}
    tags |= {"mlflow.note.content": stands_for} if stands_for else {}
    for name in names:
        row, own = result.rows[name], tags | {"sostenuto.system": name}
        reference = open_run(
            config, f"{prefix}seed-{result.seed}/{name}", parent=parent, tags=own, dataset=used
        )
        with closing(factory(reference)()) as tracker:
            tracker.params(flatten(config) | {"seed": result.seed} | _system(by_name.get(name)))
            for step, values in points(row.metrics):
                tracker.metrics(step, values)
            for path in result.clips.get(name, ()):
                file_artifact(tracker, path, "clips")
            if is_student := name in by_name and by_name[name].head == "dm":
                file_student(tracker, by_name[name])
        if is_student and reference is not None:
            register_student(config, reference, by_name[name], row)


def points(metrics: Mapping[str, Value]) -> Iterator[tuple[int, dict[str, float]]]:
    """What is recorded of a row: numbers at step 0, and lists as curves along the video from step 1 on."""
    yield (
        0,
        {f"eval/{name}": float(value) for name, value in metrics.items() if isinstance(value, int | float)},
    )
    for name, value in metrics.items():
        for step, number in enumerate(value if isinstance(value, list) else [], 1):
            yield step, {f"eval/{name}": float(number)}


def file_report(tracker: Tracker, results: Sequence[Evaluation], report: Report) -> None:
    """Files the page, plots, side-by-side videos and the table of all systems and seeds."""
    for path in (report.html, *report.plots, *report.clips):
        file_artifact(tracker, path, "report")
    names = list(
        dict.fromkeys(name for result in results for row in result.rows.values() for name in row.metrics)
    )
    rows = [
        [system, result.seed, *(row.metrics.get(name) for name in names)]
        for result in results
        for system, row in result.rows.items()
    ]
    with temporary_folder() as folder:
        (folder / TABLE).write_text(json.dumps({"columns": ["system", "seed", *names], "data": rows}))
        tracker.artifact(str(folder / TABLE))
    # by this tag MLflow's page shows the file as a table
    tracker.tags({"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}])})


def _system(system: System | None) -> dict[str, Any]:
    """How a system's videos are made; nothing for real ones."""
    if system is None:
        return {}
    how = ("checkpoint", "head", "sampler", "nfe", "draws")
    return {f"system.{name}": getattr(system, name) for name in how}


def file_artifact(tracker: Tracker, path: str, folder: str) -> None:
    """A file of the run's storage, wherever that is, as an artifact."""
    if not is_remote(path):
        tracker.artifact(path, folder)
        return
    place, _, name = path.rpartition("/")
    with temporary_folder() as local:
        (local / name).write_bytes(Storage(place).read_bytes(name))
        tracker.artifact(str(local / name), folder)
