"""Requests go to replicas in the order in which they came; those of a replica that died go again."""

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Awaitable, Callable

from jobs.serve.history import CANCEL, History, Job, State
from jobs.serve.studio import Outcome
from models.errors import ClusterError

ATTEMPTS = 2
"""Replicas that may die with a request."""
RETRY_S = 5.0

Make = Callable[[str, str], Awaitable[Outcome]]
"""Has a replica make the clips of a request: its id and its JSON. Raises where the replica died."""
log = logging.getLogger(__name__)


class QueueFull(ClusterError):
    """As many requests wait as may."""


class Queue:
    """Hands the requests of a history to replicas.

    Args:
        history: its unfinished part is the queue.
        make: as above.
        most: requests at once.
        length: most that may wait.
    """

    def __init__(self, history: History, make: Make, *, most: int, length: int) -> None:
        self.history, self._make, self._most, self._length = history, make, most, length
        self._waiting = asyncio.Semaphore(history.queued())

    def check_room(self) -> None:
        """Raises QueueFull if no more may wait."""
        if self.history.queued() >= self._length:
            raise QueueFull(
                f"{self._length} requests are waiting, as many as serve.queue_length allows",
                "Try again when some are done",
            )

    def add(self, wanted: str, job: str | None = None) -> Job:
        """Queue a request, as History.add does.

        Raises:
            QueueFull: no more may wait.
        """
        self.check_room()
        added = self.history.add(wanted, job)
        self._waiting.release()
        return added

    def cancel(self, job: Job) -> None:
        """End a request that waits now, one that is being made at its next network evaluation."""
        if not self.history.cancel_queued(job.id) and job.state == "running":
            (self.history.files(job.id) / CANCEL).touch()

    def delete(self, job: Job) -> None:
        """Forget a request that has ended, and its files."""
        self.history.delete(job.id)
        shutil.rmtree(self.history.files(job.id), ignore_errors=True)

    async def run(self) -> None:
        """Works until it is cancelled; what is being made then is queued again by the next History."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._most):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await self._waiting.acquire()
            try:
                if job := self.history.take():
                    await self._have_made(job)
            except (OSError, sqlite3.Error):
                log.exception("the queue cannot write to %s, and tries again", self.history.folder)
                await asyncio.sleep(RETRY_S)
                self._waiting.release()

    async def _have_made(self, job: Job) -> None:
        files = self.history.files(job.id)
        try:
            files.mkdir(parents=True, exist_ok=True)
            (files / CANCEL).unlink(missing_ok=True)
            outcome = await self._make(job.id, job.wanted)
        except Exception as error:  # noqa: BLE001 - a replica can die in any way
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning("request %s lost its replica: %s", job.id, reason)
            if (files / CANCEL).exists():
                self._end(job, "cancelled")
            elif job.attempts >= ATTEMPTS:
                self._end(job, "failed", f"the replica that made it died {ATTEMPTS} times: {reason}")
            else:
                self.history.give_back(job.id)
                self._waiting.release()
            return
        self._end(job, *outcome)

    def _end(self, job: Job, state: State, error: str = "") -> None:
        (self.history.files(job.id) / CANCEL).unlink(missing_ok=True)
        self.history.end(job.id, state, error)
