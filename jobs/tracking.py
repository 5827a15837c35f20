"""MLflow, which no other module imports. A thread sends what runs record, so training waits for no server.

A repeated command continues its run. A sweep or comparison is a parent run, its trials are children of it by
the tag `mlflow.parentRunId`.
"""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jobs.config.load import config_hash, flatten, override
from jobs.config.paths import absolute_root, absolute_uri, is_remote, sqlite_uri
from jobs.config.schema import RunConfig
from jobs.machine import Machine
from jobs.unsent import Entry, Unsent
from jobs.used_dataset import UsedDataset, corpora_name
from models.errors import ClusterError, ConfigError, SostenutoError
from pipelines.storage import hash_of, one_line, temporary_file
from pipelines.tracking import NullTracker, RunStatus, Tracker, TrackerFactory

FLUSH_POINTS, FLUSH_S = 400, 2.0
"""What is recorded is sent when there is this much of it, or this long after it was last sent."""

KEPT_POINTS, KEPT_FILES = 100_000, 64
"""What waits in memory, and in open files, for a server that is away; more goes to the files of unsent.py."""

FILES_S, CLOSE_S = 1.0, 30.0
"""How long one file too many, and the end of a run, wait for the server to take something."""

PARAM_CHARACTERS = 6000
"""MLflow's longest parameter; longer ones continue under `name.1`, `name.2`."""

_AT_ONCE = {"metric": FLUSH_POINTS, "param": 100, "tag": 100, "file": 1, "end": 1}
"""Entries of a kind in one request."""

_log = logging.getLogger("sostenuto.tracking")

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "DO_NOT_TRACK": "true",
}


def client_of(uri: str) -> Any:
    """A quiet MlflowClient without telemetry."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def failures() -> tuple[type[BaseException], ...]:
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
        return absolute_uri(named)
    if is_remote(config.storage.root):
        remedy = "Set tracking.uri or MLFLOW_TRACKING_URI to an MLflow server, or tracking.enabled=false"
        raise ConfigError(f"storage.root {config.storage.root} cannot hold a sqlite file for MLflow", remedy)
    return sqlite_uri(f"{absolute_root(config.storage.root)}/mlflow.db")


def _where(equal: Mapping[str, str]) -> str:
    """A condition in MLflow's query language, which has no way to write a quote: words and hashes only."""
    assert all(value.isalnum() for value in equal.values()), equal
    return " and ".join(f"{name} = '{value}'" for name, value in equal.items())


@dataclass(frozen=True)
class RunReference:
    """An existing run, and a picklable TrackerFactory: a call opens it in the calling process."""

    uri: str
    run_id: str
    unsent: str
    """Folder of what could not be sent (jobs/unsent.py)."""
    machine: bool = False
    """Also record what its process's machine does."""

    def __call__(self) -> "MlflowTracker":
        return MlflowTracker(self.uri, self.run_id, self.unsent, machine=self.machine)


def open_run(
    config: RunConfig,
    name: str,
    *,
    parent: RunReference | None = None,
    tags: Mapping[str, str] | None = None,
    dataset: UsedDataset | None = None,
    machine: bool = False,
) -> RunReference | None:
    """Find or create the run `name` of this config, so that a repeated command continues it.

    Args:
        config: `tracking` and `storage` say where; its name groups runs.
        name: the run's name within the group, such as `seed-0/distill`.
        parent: the run that this one is a child of.
        tags: more tags beside the commit and the corpora.
        dataset: what it trains on or is compared with.
        machine: also record processor, memory and GPUs while it is open.

    Returns:
        The run, or None where `tracking.enabled` is false.

    Raises:
        ConfigError: there is no place for MLflow's file, or the experiment was deleted.
        ClusterError: MLflow does not answer or refuses.
    """
    if not config.tracking.enabled:
        return None
    uri, root, group = tracking_uri(config), absolute_root(config.storage.root), config.name
    try:
        if uri.startswith("sqlite"):
            _make_folder(uri)
        client = client_of(uri)
        experiment = _experiment(client, uri, config)
        # the name itself may hold quotes, which no query can
        key = {"sostenuto.run": hash_of([group, name])[:16]}
        if parent is not None:
            key["mlflow.parentRunId"] = parent.run_id
        query = _where({f"tags.{tag}": value for tag, value in key.items()})
        runs = client.search_runs([experiment], query, max_results=1)
        if not runs:
            created = {"sostenuto.group": group, "mlflow.source.name": "sostenuto"} | key
            created |= {"sostenuto.corpus": corpora_name(config)}
            created |= {"mlflow.source.git.commit": found} if (found := this_commit()) else {}
            runs = [client.create_run(experiment, run_name=f"{group}/{name}", tags=created)]
        run_id = str(runs[0].info.run_id)
        for tag, value in (tags or {}).items():
            client.set_tag(run_id, tag, value)
        if dataset is not None:
            _log_dataset(client, run_id, dataset)
        client.update_run(run_id, status="RUNNING")
    except failures() as error:
        raise _unusable(uri, error) from error
    return RunReference(uri, run_id, f"{root}/{group}/unsent", machine)


def _log_dataset(client: Any, run_id: str, used: UsedDataset) -> None:
    """Put a dataset among a run's. Of two runs that bring a new one at the same moment MLflow refuses the
    second, which then finds the other's."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": used.source})
    kind = urlsplit(used.source).scheme or "local"
    entity = Dataset(used.name, used.digest, kind, source, profile=used.profile)
    given = [DatasetInput(entity, [InputTag("mlflow.data.context", used.context)])]
    try:
        client.log_inputs(run_id, given)
    except failures():
        client.log_inputs(run_id, given)


def _unusable(uri: str, error: BaseException) -> ClusterError:
    """What MLflow's refusal means to the user."""
    remedy = "Start the server, correct tracking.uri, or set tracking.enabled=false"
    if uri.startswith("sqlite"):
        remedy = "Make room and give this user the right to write there, or set tracking.uri to another place"
    return ClusterError(f"MLflow at {uri} cannot be used: {one_line(error)[:200]}", remedy)


def _make_folder(uri: str) -> None:
    """The folder of a SQLite file."""
    from sqlalchemy.engine import make_url

    Path(make_url(uri).database or "").absolute().parent.mkdir(parents=True, exist_ok=True)


def _experiment(client: Any, uri: str, config: RunConfig) -> str:
    """The experiment's id; one that is not there is made.

    Raises:
        ConfigError: it was deleted.
    """
    name, root = config.tracking.experiment, absolute_root(config.storage.root)
    known = client.get_experiment_by_name(name)
    if known is None:
        location = f"{root}/mlartifacts" if is_remote(root) else Path(root, "mlartifacts").as_uri()
        serves = urlsplit(uri).scheme in ("http", "https", "databricks")
        return str(client.create_experiment(name, artifact_location=None if serves else location))
    if known.lifecycle_stage == "deleted":
        restore = shlex.join(["mlflow", "experiments", "restore", "--experiment-id", known.experiment_id])
        other = shlex.join(["--set", override("tracking.experiment", f"{name}-2")])
        remedy = (
            f"Restore it by `MLFLOW_TRACKING_URI={shlex.quote(uri)} {restore}`, or take another by {other}"
        )
        raise ConfigError(f"the MLflow experiment {name!r} was deleted", remedy)
    return str(known.experiment_id)


def factory(reference: RunReference | None) -> TrackerFactory:
    """The TrackerFactory of `open_run`'s result."""
    return NullTracker if reference is None else reference


@contextmanager
def command_run(config: RunConfig, name: str) -> Iterator[tuple[RunReference | None, Tracker]]:
    """A command's own run, ended as the command ends: the run, for its children, and its tracker.

    Raises:
        ConfigError, ClusterError: as `open_run`.
    """
    reference = open_run(config, name, tags={"sostenuto.config_hash": config_hash(config)})
    tracker = factory(reference)()
    tracker.params(flatten(config))
    try:
        yield reference, tracker
    except BaseException as error:
        tracker.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.close()


def this_commit() -> str:
    """The commit of this code, or the one that `sostenuto submit` passed along; empty where none is known."""
    if named := os.environ.get("SOSTENUTO_COMMIT"):
        return named
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout.strip()


def close_children(reference: RunReference, status: RunStatus = "KILLED") -> int:
    """End the children that a run's stopped trials left open. Returns how many there were."""
    client = client_of(reference.uri)
    experiment = client.get_run(reference.run_id).info.experiment_id
    query = _where({"tags.mlflow.parentRunId": reference.run_id, "attributes.status": "RUNNING"})
    children = client.search_runs([experiment], query, max_results=1000)
    for child in children:
        client.set_terminated(child.info.run_id, status)
    return len(children)


def batches(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Entries in their order, cut into what one request takes."""
    for kind, group in groupby(entries, key=lambda entry: entry["kind"]):
        same, size = list(group), _AT_ONCE[kind]
        yield from (same[start : start + size] for start in range(0, len(same), size))


def send(client: Any, run_id: str, batch: Sequence[Entry]) -> None:
    """Send one of `batches`. MLflow stores a metric value, a parameter or a tag once, however often it comes.

    Raises:
        MlflowException and what its store raises: it was not taken.
    """
    from mlflow.entities import Metric, Param, RunTag

    first = batch[0]
    if first["kind"] == "metric":
        points = [Metric(one["name"], one["value"], one["time_ms"], one["step"]) for one in batch]
        client.log_batch(run_id, metrics=points)
    elif first["kind"] == "tag":
        client.log_batch(run_id, tags=[RunTag(one["name"], one["text"]) for one in batch])
    elif first["kind"] == "file":
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder, first["name"])
            named.symlink_to(first["path"])
            client.log_artifact(run_id, str(named), first["folder"] or None)
    elif first["kind"] == "end":
        client.set_terminated(run_id, first["status"], first["time_ms"])
    else:
        known, new, changed = dict(client.get_run(run_id).data.params), [], []
        for name, text in ((one["name"], one["text"]) for one in batch):
            if name not in known:
                known[name] = text
                new.append(Param(name, text))
            elif known[name] != text:
                changed.append(RunTag(f"changed.{name}", text))
        client.log_batch(run_id, params=new, tags=changed)


def resend_all(unsent: Unsent, uri: str | None) -> None:
    """Send all that is kept, and remove it file by file; a run that has ended since keeps its end.

    Args:
        unsent: where it is.
        uri: MLflow's address; None is each file's own.

    Raises:
        ClusterError: MLflow did not take one; that one and those after it stay.
    """
    for kept in unsent.files():
        address = uri or kept.uri
        try:
            client = client_of(address)
            with unsent.on_disk(kept) as entries:
                for batch in batches(entries):
                    is_end = batch[0]["kind"] == "end"
                    if not is_end or client.get_run(kept.run_id).info.status == "RUNNING":
                        send(client, kept.run_id, batch)
        except failures() as error:
            raise _unusable(address, error) from error
        unsent.forget(kept)


class MlflowTracker:
    """A Tracker that writes to one MLflow run, from a thread of its own.

    Whoever records waits for nothing but a local disk: the thread talks to the server, and what it could not
    send goes to files (jobs/unsent.py).
    """

    def __init__(self, uri: str, run_id: str, unsent: str, *, machine: bool = False) -> None:
        self.uri, self.run_id, self._unsent = uri, run_id, unsent
        self._machine = Machine() if machine else None
        self._changed = threading.Condition()
        self._waiting: list[Entry] = []
        self._sending: list[Entry] = []
        self._closing = self._away = False
        self._sent, self._taken = 0, time.monotonic()
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings, long ones as `name`, `name.1`, `name.2`; changed ones as tags `changed.<name>`."""
        pieces = []
        for name, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            for index, start in enumerate(range(0, max(len(text), 1), PARAM_CHARACTERS)):
                own = f"{name}.{index}" if index else name
                pieces.append({"kind": "param", "name": own, "text": text[start : start + PARAM_CHARACTERS]})
        self._record(pieces)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._record(_points(step, values))

    def artifact(self, path: str, folder: str = "") -> None:
        name = Path(path).name
        with self._changed:
            self._changed.wait_for(lambda: self._files() < KEPT_FILES, FILES_S)
        try:
            copy = temporary_file()
            with open(path, "rb") as file:
                shutil.copyfileobj(file, copy)
            copy.flush()
        except OSError as error:
            _log.warning(f"the file {name} is not in MLflow: {one_line(error)}")
            return
        self._record([{"kind": "file", "name": name, "path": copy.name, "folder": folder, "copy": copy}])

    def tags(self, values: Mapping[str, str]) -> None:
        self._record([{"kind": "tag", "name": name, "text": text} for name, text in values.items()])

    def close(self, status: RunStatus | None = "FINISHED") -> None:
        """Send what is left while the server takes something, and keep the rest; end the run, unless None."""
        with self._changed:
            self._waiting += [{"kind": "end", "status": status, "time_ms": _now_ms()}] if status else []
            self._closing = True
            self._changed.notify_all()
        before = -1
        while self._thread.is_alive() and before != self._sent:
            before = self._sent
            self._thread.join(CLOSE_S)
        with self._changed:
            left, self._waiting = [*self._sending, *self._waiting], []
        self._keep(left)

    def _record(self, entries: Sequence[Entry]) -> None:
        """Add to what waits; more than memory should hold goes to files."""
        with self._changed:
            self._waiting += entries
            is_file = any(entry["kind"] == "file" for entry in entries)
            over = len(self._waiting) > KEPT_POINTS or (is_file and self._files() > KEPT_FILES)
            left, self._waiting = (self._waiting, []) if over else ([], self._waiting)
            self._changed.notify_all()
        self._keep(left)

    def _files(self) -> int:
        """Files that wait."""
        return sum(entry["kind"] == "file" for entry in (*self._sending, *self._waiting))

    def _work(self) -> None:
        """The thread: sends what is due until the tracker is closed and nothing is left, or not taken."""
        client = None
        while self._take():
            try:
                client = client or client_of(self.uri)
                for batch in batches(list(self._sending)):
                    send(client, self.run_id, batch)
                    with self._changed:
                        del self._sending[: len(batch)]
                        self._sent += len(batch)
                        self._changed.notify_all()
                self._away = False
            except Exception as error:  # noqa: BLE001 - whatever a store raises, the thread goes on
                self._complain(error)
                if self._closing:
                    return

    def _take(self) -> bool:
        """Wait until something is due, and make it what is being sent: first what was not taken before."""
        with self._changed:
            while True:
                self._changed.wait_for(self._is_due, FLUSH_S)
                self._taken = time.monotonic()
                if self._machine is not None:
                    self._waiting += _points(*self._machine.due())
                if not self._sending:
                    self._sending, self._waiting = self._waiting, []
                if self._sending or self._closing:
                    return bool(self._sending)

    def _is_due(self) -> bool:
        if self._closing or self._away:
            return self._closing
        waited_s = time.monotonic() - self._taken
        return len(self._waiting) >= FLUSH_POINTS or (bool(self._waiting) and waited_s >= FLUSH_S)

    def _keep(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        try:
            Unsent(self._unsent).keep(self.uri, self.run_id, entries)
        except SostenutoError as error:
            _log.warning(f"{len(entries)} records are in neither MLflow nor its unsent files: {error}")

    def _complain(self, error: BaseException) -> None:
        """Warn once each time the server goes away."""
        if not self._away:
            self._away = True
            reason = re.sub("<[^>]*>", "...", one_line(error))[:200]
            _log.warning(
                f"MLflow at {self.uri} takes nothing for now; what is recorded waits, work does not: {reason}"
            )


def _points(step: int, values: Mapping[str, float]) -> list[Entry]:
    """Metric values of now."""
    kind, now = {"kind": "metric", "step": step}, _now_ms()
    return [kind | {"name": name, "value": float(value), "time_ms": now} for name, value in values.items()]


def _now_ms() -> int:
    return int(time.time() * 1000)
