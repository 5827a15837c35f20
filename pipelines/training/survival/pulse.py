"""What every worker does, once a second: who hangs is named and ended, and whoever shall stop learns of it.

A worker that has begun fewer exchanges than another keeps it waiting. On a GPU, too, where waiting workers
stand wherever they ask for a number.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from pipelines.ray_map import on_this_node
from pipelines.training.collectives import Workers

BEAT_S = 1.0
ROOT = Path(__file__).parents[3]
"""The repository: a worker's place is told by a line of the project's own."""


@dataclass(frozen=True)
class Beat:
    """What a worker does.

    Args:
        rank: the worker.
        exchanges: how many it has begun.
        still_s: seconds since it began one, or a step; 0 between steps, where one worker may take its time.
        step: finished steps.
        name: the worker, its machine and process, for people.
        place: the line of code that it is at.
    """

    rank: int
    exchanges: int
    still_s: float
    step: int
    name: str
    place: str


@dataclass(frozen=True)
class Order:
    """What a worker is told.

    Args:
        stop: save at the end of this step, and end.
        say: what it has to warn of.
        end: end this process: Ray Train starts the group again.
    """

    stop: bool = False
    say: str = ""
    end: bool = False


class Guard:
    """Judges the beats of one group of workers.

    Args:
        patience_s: how long workers wait for one of them.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._beats: dict[int, tuple[float, Beat]] = {}
        self._stop = self._said = False
        self._began = time.monotonic()

    def begin(self) -> None:
        """A new group starts."""
        self._beats, self._said, self._began = {}, False, time.monotonic()

    def stop(self) -> None:
        """From now on every worker is told to stop."""
        self._stop = True

    def silent_s(self) -> float:
        """Seconds since a worker has beaten, or since its group began."""
        return time.monotonic() - max([self._began, *(at for at, _ in self._beats.values())])

    def beat(self, beat: Beat, size: int) -> Order:
        """Takes a worker's beat; what it has to do.

        Args:
            beat: the worker's.
            size: workers of its group.
        """
        now = time.monotonic()
        self._beats[beat.rank] = (now, beat)
        if len(self._beats) < size:
            return Order(self._stop)
        silent = [other for at, other in self._beats.values() if now - at > self._patience_s]
        heard = [other for at, other in self._beats.values() if now - at <= self._patience_s]
        if min(other.still_s for other in heard) <= self._patience_s:
            return Order(self._stop)
        fewest = min(other.exchanges for other in heard)
        late = silent or [other for other in heard if other.exchanges == fewest]
        waited = f"for {self._patience_s / 60:.3g} minutes"
        if len(late) == size:
            if self._said or size == 1:
                return Order(self._stop)
            self._said = True
            return Order(self._stop, f"no worker has come on {waited}: {_told(late)}")
        # who hangs ends itself; for one that cannot even beat, one that waits for it does
        if beat not in late and not silent:
            return Order(self._stop)
        self._beats = {}
        does = "shows no sign of life" if silent else "has not come on"
        text = f"the others wait for a worker that {does} {waited}: {_told(late)}. All start again from the "
        return Order(
            self._stop, f"{text}last checkpoint; if its steps are that long, raise hang_minutes", True
        )


def _told(beats: list[Beat]) -> str:
    return "; ".join(f"{beat.name}, in step {beat.step + 1} at {beat.place}" for beat in beats)


@contextmanager
def guarding(patience_s: float) -> Iterator[Any]:
    """The actor that guards a stage's workers, for the length of a `with` block."""
    guard = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(Guard).remote(patience_s)
    try:
        yield guard
    finally:
        ray.kill(guard)


class Pulse:
    """This worker's beats, and what it was told, in a `with` block of the thread that takes its steps.

    Args:
        guard: the actor.
        workers: this worker's place.
    """

    def __init__(self, guard: Any, workers: Workers) -> None:
        self._guard, self._workers = guard, workers
        self._over = threading.Event()
        self._steps = threading.get_ident()
        self._moved, self._at = time.monotonic(), (0, 0)
        self._stepping: int | None = None
        self.stop = False
        """Whether this worker shall save at the end of its step, and end."""
        address = ray.util.get_node_ip_address()
        self._name = (
            f"worker {workers.rank} of {workers.size} ({address}, {socket.gethostname()}, {os.getpid()})"
        )
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        if self._workers.rank == 0:
            ray.get(self._guard.begin.remote())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The time between two steps does not count."""
        self._stepping = number
        try:
            yield
        finally:
            self._stepping = None

    def _beat(self) -> None:
        log = logging.getLogger("sostenuto.training")
        while not self._over.wait(BEAT_S):
            try:
                order: Order = ray.get(self._guard.beat.remote(self._now(), self._workers.size))
            except ray.exceptions.RayError:
                return  # the driver has gone, and its workers with it
            self.stop |= order.stop
            if order.say:
                log.warning("%s", order.say)
            if order.end:
                os.kill(os.getpid(), signal.SIGKILL)

    def _now(self) -> Beat:
        step = self._stepping
        at = (-1 if step is None else step, self._workers.exchanges.begun)
        if at != self._at or step is None:
            self._moved, self._at = time.monotonic(), at
        still_s = time.monotonic() - self._moved
        return Beat(self._workers.rank, at[1], still_s, at[0], self._name, self._place())

    def _place(self) -> str:
        """The innermost line of this project's code that takes steps."""
        frame = sys._current_frames().get(self._steps)  # noqa: SLF001 - documented
        while frame is not None and ROOT not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        if frame is None:
            return "a place that is not known"
        path = Path(frame.f_code.co_filename).relative_to(ROOT)
        return f"{path}:{frame.f_lineno} ({frame.f_code.co_name})"
