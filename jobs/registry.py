"""Students in MLflow's registry: a model per run, a version per student and its weights, and the alias
`champion` for the one that is best in the metric that sweeps go by."""

import logging

from jobs.config.schema import RunConfig
from jobs.tracking import RunReference, client_of, failures
from pipelines.checkpoints import MANIFEST_FILE, NETWORK_FILE, parts_of
from pipelines.evaluation.scores import Scores
from pipelines.evaluation.settings import System
from pipelines.storage import Storage, hash_of, one_line
from pipelines.tracking import Tracker
from pipelines.training.recipes import LOADED, checkpoint_sha256

CHAMPION = "champion"

_log = logging.getLogger("sostenuto.tracking")


def model_name(config: RunConfig) -> str:
    """Of a run's students in the registry, which takes no slash and no colon."""
    return config.name.replace(":", "-")


def file_student(tracker: Tracker, system: System) -> None:
    """Files a student's network with its system's run, as a folder that `sostenuto sample` takes."""
    storage = Storage(system.checkpoint)
    names = MANIFEST_FILE, NETWORK_FILE, *parts_of(LOADED["student"], storage.read_json(MANIFEST_FILE))
    with storage.on_disk(only=names) as local:
        for name in names:
            tracker.artifact(str(local / name), _folder(system))


def register_student(config: RunConfig, reference: RunReference, system: System, row: Scores) -> None:
    """Make a version of a filed student, unless there is one, and let the best be the champion.

    What MLflow refuses is told and raises nothing: a table is whole without it.
    """
    name, metric = model_name(config), config.sweep.metric
    if not isinstance(row.metrics.get(metric), float):
        metric = "pixel_window_frechet"
    of_this = {"sostenuto.model": hash_of(name)[:16]}
    every = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in of_this.items())
    tags = of_this | {
        "sostenuto.system": system.name,
        "sostenuto.weights": _folder(system),
        "sostenuto.metric": metric,
        "sostenuto.value": str(row.metrics.get(metric)),
    }
    try:
        client = client_of(reference.uri)
        run = client.get_run(reference.run_id)
        known = client.search_model_versions(f"run_id = '{reference.run_id}'")
        version = next((one for one in known if one.tags.get("sostenuto.weights") == _folder(system)), None)
        if version is None:
            if not client.search_registered_models(every):
                client.create_registered_model(name, tags=of_this)
            source = f"{run.info.artifact_uri}/{_folder(system)}"
            version = client.create_model_version(name, source, reference.run_id, tags=tags)
        for tag, value in tags.items():
            client.set_model_version_tag(name, version.version, tag, value)
        judged = [
            one for one in client.search_model_versions(every) if one.tags.get("sostenuto.metric") == metric
        ]
        best = min if config.sweep.mode == "min" else max
        champion = best(judged, key=lambda one: float(one.tags["sostenuto.value"]))
        client.set_registered_model_alias(name, CHAMPION, champion.version)
    except failures() as error:
        _log.warning(f"{system.name} is not in MLflow's registry: {one_line(error)[:200]}")


def _folder(system: System) -> str:
    """Of a student among its run's artifacts: other weights have another."""
    return f"student-{checkpoint_sha256(system.checkpoint, LOADED['student'])[:8]}"
