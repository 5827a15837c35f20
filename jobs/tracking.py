"""MLflow, which no other module imports. Metrics go through a local buffer, so training waits for no server.

A repeated command continues its run. A sweep or comparison is a parent run, its trials are children of it by
the tag `mlflow.parentRunId`.
"""

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.config.load import config_hash, flatten
from jobs.config.paths import absolute_root, is_remote
from jobs.config.schema import RunConfig
from jobs.console import warn
from models.errors import ClusterError, ConfigError
from pipelines.tracking import NullTracker, RunStatus, Tracker, TrackerFactory

FLUSH_POINTS, FLUSH_S = 400, 2.0
"""The buffer is sent when it holds this many points or was last sent this long ago."""

KEPT_POINTS = 200_000
"""Points kept in memory while the server is away; the oldest beyond that go to a file."""

PARAM_CHARACTERS = 6000
"""MLflow's longest parameter; longer ones continue under `name.1`, `name.2`."""

_BATCH_PARAMS = 100

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "DO_NOT_TRACK": "true",
}


def _client(uri: str) -> Any:
    """A quiet MlflowClient without telemetry."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _failures() -> tuple[type[BaseException], ...]:
    """What a store that is away, full or refusing raises."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, requests.RequestException, SQLAlchemyError, OSError)


def tracking_uri(config: RunConfig) -> str:
    """MLflow's address: `tracking.uri`, else $MLFLOW_TRACKING_URI, else a sqlite file in `storage.root`.

    Raises:
        ConfigError: `storage.root` is remote and no address is set.
    """
    named = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    if is_remote(config.storage.root):
        remedy = "Set tracking.uri or MLFLOW_TRACKING_URI to an MLflow server, or tracking.enabled=false"
        raise ConfigError(f"storage.root {config.storage.root} cannot hold a sqlite file for MLflow", remedy)
    return f"sqlite:///{absolute_root(config.storage.root)}/mlflow.db"


@dataclass(frozen=True)
class RunReference:
    """An existing run, and a picklable TrackerFactory: a call opens it in the calling process."""

    uri: str
    run_id: str
    spool: str | None = None
    """Folder for points that could not be sent."""

    def __call__(self) -> "MlflowTracker":
        return MlflowTracker(self.uri, self.run_id, self.spool)


def open_run(
    config: RunConfig, name: str, *, parent: RunReference | None = None, tags: Mapping[str, str] | None = None
) -> RunReference | None:
    """Find or create the run `name` of this config, so that a repeated command continues it.

    Args:
        config: `tracking` and `storage` say where; its name groups runs.
        name: the run's name within the group, such as `seed-0/distill`.
        parent: the run that this one is a child of.
        tags: more tags beside the commit.

    Returns:
        The run, or None where `tracking.enabled` is false.

    Raises:
        ConfigError: there is no place for MLflow's file.
        ClusterError: MLflow does not answer or refuses.
    """
    if not config.tracking.enabled:
        return None
    uri, root, group = tracking_uri(config), absolute_root(config.storage.root), config.name
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = _client(uri)
        known = client.get_experiment_by_name(config.tracking.experiment)
        if known is not None:
            experiment = known.experiment_id
        else:
            location = f"{root}/mlartifacts" if is_remote(root) else Path(root, "mlartifacts").as_uri()
            serves = urlsplit(uri).scheme in ("http", "https", "databricks")
            experiment = client.create_experiment(
                config.tracking.experiment, artifact_location=None if serves else location
            )
        query = f"attributes.run_name = '{group}/{name}' and tags.sostenuto.group = '{group}'"
        created = {"sostenuto.group": group, "mlflow.source.name": "sostenuto"}
        if parent is not None:
            query += f" and tags.mlflow.parentRunId = '{parent.run_id}'"
            created["mlflow.parentRunId"] = parent.run_id
        runs = client.search_runs([experiment], query, max_results=1)
        if not runs:
            runs = [client.create_run(experiment, run_name=f"{group}/{name}", tags=created | commit_tags())]
        run_id = str(runs[0].info.run_id)
        for key, value in (tags or {}).items():
            client.set_tag(run_id, key, value)
        client.update_run(run_id, status="RUNNING")
    except _failures() as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "Start the server, correct tracking.uri, or set tracking.enabled=false"
        raise ClusterError(f"MLflow at {uri} cannot be used: {reason}", remedy) from error
    return RunReference(uri, run_id, None if is_remote(root) else f"{root}/{group}/unsent")


def factory(reference: RunReference | None) -> TrackerFactory:
    """The TrackerFactory of `open_run`'s result."""
    return NullTracker if reference is None else reference


@contextmanager
def dataset_run(config: RunConfig) -> Iterator[Tracker]:
    """The config's run `dataset`, which ingest and inspect share, for the length of a `with` block.

    Raises:
        ConfigError, ClusterError: as `open_run`.
    """
    tracker = factory(open_run(config, "dataset", tags={"sostenuto.config_hash": config_hash(config)}))()
    tracker.params(flatten(config))
    try:
        yield tracker
    except BaseException:
        tracker.close("FAILED")
        raise
    tracker.close()


def commit_tags() -> dict[str, str]:
    """The commit of this code, or the one that `sostenuto submit` passed along."""
    if named := os.environ.get("SOSTENUTO_COMMIT"):
        return {"mlflow.source.git.commit": named}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": found.stdout.strip()}


def close_children(reference: RunReference, status: RunStatus = "KILLED") -> int:
    """End the children that a run's stopped trials left open. Returns how many there were."""
    client = _client(reference.uri)
    experiment = client.get_run(reference.run_id).info.experiment_id
    query = f"tags.mlflow.parentRunId = '{reference.run_id}' and attributes.status = 'RUNNING'"
    children = client.search_runs([experiment], query, max_results=1000)
    for child in children:
        client.set_terminated(child.info.run_id, status)
    return len(children)


class MlflowTracker:
    """A Tracker that writes to one MLflow run."""

    def __init__(self, uri: str, run_id: str, spool: str | None = None) -> None:
        self.uri, self.run_id = uri, run_id
        self._spool = spool or tempfile.gettempdir()
        self._client = _client(uri)
        self._failures = _failures()
        self._points: list[tuple[str, float, int, int]] = []
        self._sent = time.monotonic()
        self._away = False

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings, long ones as `name`, `name.1`, `name.2`; changed ones as tags `changed.<name>`."""
        from mlflow.entities import Param

        pieces: dict[str, str] = {}
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            for index, start in enumerate(range(0, max(len(text), 1), PARAM_CHARACTERS)):
                pieces[f"{name}.{index}" if index else name] = text[start : start + PARAM_CHARACTERS]
        try:
            known = self._client.get_run(self.run_id).data.params
            new = [Param(name, text) for name, text in pieces.items() if name not in known]
            for start in range(0, len(new), _BATCH_PARAMS):
                self._client.log_batch(self.run_id, params=new[start : start + _BATCH_PARAMS])
            changed = {name: text for name, text in pieces.items() if known.get(name, text) != text}
        except self._failures as error:
            self._complain("settings", error)
            return
        self.tags({f"changed.{name}": text[:PARAM_CHARACTERS] for name, text in changed.items()})

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._points += [(name, float(value), now, step) for name, value in values.items()]
        if len(self._points) >= FLUSH_POINTS or time.monotonic() - self._sent >= FLUSH_S:
            self.flush()

    def flush(self) -> bool:
        """Send the buffer; what the server does not take stays. Returns whether the buffer is empty."""
        from mlflow.entities import Metric

        self._sent = time.monotonic()
        while self._points:
            batch = self._points[:FLUSH_POINTS]
            try:
                self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in batch])
            except self._failures as error:
                self._complain("metrics, which are kept for later,", error)
                if len(self._points) > KEPT_POINTS:
                    half = len(self._points) // 2
                    self._write(self._points[:half])
                    self._points = self._points[half:]
                return False
            self._points = self._points[len(batch) :]
        self._away = False
        return True

    def artifact(self, path: str, folder: str = "") -> None:
        try:
            self._client.log_artifact(self.run_id, path, folder or None)
        except self._failures as error:
            self._complain(f"the file {path}", error)

    def tags(self, values: Mapping[str, str]) -> None:
        try:
            for name, text in values.items():
                self._client.set_tag(self.run_id, name, text)
        except self._failures as error:
            self._complain("tags", error)

    def close(self, status: RunStatus = "FINISHED") -> None:
        """Send the buffer, or write it to the spool where the server is away; end the run."""
        if not self.flush():
            self._write(self._points)
            self._points = []
        try:
            self._client.set_terminated(self.run_id, status)
        except self._failures as error:
            self._complain("the end of the run", error)

    def _write(self, points: list[tuple[str, float, int, int]]) -> None:
        path = Path(self._spool) / f"mlflow-{self.run_id}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for point in points:
                line = dict(zip(("name", "value", "time_ms", "step"), point, strict=True))
                file.write(json.dumps(line) + "\n")
        warn(f"{len(points)} metric values that MLflow did not take are in {path}")

    def _complain(self, what: str, error: BaseException) -> None:
        """Warn once each time the server goes away."""
        if not self._away:
            self._away = True
            reason = " ".join(str(error).split())[:200]
            warn(f"MLflow at {self.uri} did not take {what}: {reason}")
