"""Every request and how it fared, in a sqlite file beside the clips; the queue is its unfinished part."""

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.errors import ClusterError

CANCEL = "cancel"
"""File in a request's folder that tells its replica to end."""
State = Literal["queued", "running", "done", "failed", "cancelled"]
_COLUMNS = "id, number, wanted, state, attempts, created, started, ended, error"
_SCHEMA = """
create table if not exists jobs (
    number integer primary key autoincrement, id text unique not null, wanted text not null,
    state text not null, attempts integer not null, created real not null, started real, ended real,
    error text not null
);
create index if not exists jobs_by_state on jobs (state, number);
"""


@dataclass(frozen=True)
class Job:
    """A request."""

    id: str
    number: int
    """Its place in the order of requests."""
    wanted: str
    """As JSON."""
    state: State
    attempts: int
    """How often a replica has begun with it."""
    created: float
    """Seconds since 1970, as are the others."""
    started: float | None
    ended: float | None
    error: str


class History:
    """The requests of one folder. One process holds it; what another left unfinished is queued again.

    Args:
        folder: on a disk; made if it is not there.

    Raises:
        ClusterError: another process holds it, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_WRONLY)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whichever thread opens it, only that of the event loop uses it
            self._store = sqlite3.connect(
                folder / "history.db", isolation_level=None, check_same_thread=False
            )
            self._store.executescript(_SCHEMA)
            self._end_running()
            self._store.execute("update jobs set state = 'queued' where state = 'running'")
        except BlockingIOError as error:
            os.close(self._lock)
            raise ClusterError(
                f"another server works in {folder}", "End it, or set serve.folder to another place"
            ) from error
        except (OSError, sqlite3.Error) as error:
            os.close(self._lock)
            raise _unusable(folder, error) from error

    def close(self) -> None:
        self._end_running()
        self._store.close()
        os.close(self._lock)

    def files(self, job: str) -> Path:
        """The folder of a request's files."""
        return self.folder / "jobs" / job

    def add(self, wanted: str, job: str | None = None) -> Job:
        """Queue a request, as JSON; `job` is its id where its folder was made before."""
        name = job or new_id()
        self._store.execute(
            "insert into jobs (id, wanted, state, attempts, created, error) "
            "values (?, ?, 'queued', 0, ?, '')",
            (name, wanted, time.time()),
        )
        return self._one("id = ?", name)

    def get(self, job: str) -> Job | None:
        found = self._read("where id = ?", (job,))
        return found[0] if found else None

    def page(self, before: int | None, count: int) -> list[Job]:
        """The newest requests, those before a number where one is given."""
        return self._read("where number < ? order by number desc limit ?", (before or 1 << 62, count))

    def queued(self) -> int:
        """How many wait."""
        (count,) = self._store.execute("select count(*) from jobs where state = 'queued'").fetchone()
        return int(count)

    def position(self, job: Job) -> int:
        """How many wait before it."""
        (count,) = self._store.execute(
            "select count(*) from jobs where state = 'queued' and number < ?", (job.number,)
        ).fetchone()
        return int(count)

    def take(self) -> Job | None:
        """The one that has waited longest, running from now on."""
        found = self._store.execute(
            "update jobs set state = 'running', attempts = attempts + 1, started = ? where number = "
            "(select min(number) from jobs where state = 'queued') returning id",
            (time.time(),),
        ).fetchone()
        return self._one("id = ?", found[0]) if found else None

    def give_back(self, job: str) -> None:
        """Queue a running request again, in its old place."""
        self._store.execute("update jobs set state = 'queued' where id = ? and state = 'running'", (job,))

    def end(self, job: str, state: State, error: str = "") -> None:
        self._store.execute(
            "update jobs set state = ?, error = ?, ended = ? where id = ?", (state, error, time.time(), job)
        )

    def cancel_queued(self, job: str) -> bool:
        """Whether it had been waiting, and is cancelled now."""
        changed = self._store.execute(
            "update jobs set state = 'cancelled', ended = ? where id = ? and state = 'queued'",
            (time.time(), job),
        )
        return changed.rowcount > 0

    def delete(self, job: str) -> None:
        self._store.execute("delete from jobs where id = ?", (job,))

    def _end_running(self) -> None:
        """Have replicas that outlive their server end: who takes a request up again writes its files."""
        for (job,) in self._store.execute("select id from jobs where state = 'running'"):
            with suppress(FileNotFoundError):
                (self.files(job) / CANCEL).touch()

    def _one(self, condition: str, *values: object) -> Job:
        return self._read(f"where {condition}", values)[0]

    def _read(self, rest: str, values: Sequence[object]) -> list[Job]:
        return [Job(*row) for row in self._store.execute(f"select {_COLUMNS} from jobs {rest}", values)]


def _unusable(folder: Path, error: Exception) -> ClusterError:
    return ClusterError(
        f"{folder} cannot keep results: {error}", "Set serve.folder to a folder that can be written"
    )


def new_id() -> str:
    """Names a request; cannot be guessed."""
    return secrets.token_hex(8)
