"""A worker's beats, once a second: its guard hears what it does, and it hears what it has to do."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray

from pipelines.ray_map import on_this_node
from pipelines.training.collectives import Workers
from pipelines.training.survival.guard import Beat, Guard, Order

BEAT_S = 1.0
ROOT = Path(__file__).parents[3]
"""The repository: a worker's place is told by a line of the project's own."""


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
            f"worker {workers.place} of {workers.count} ({address}, {socket.gethostname()}, {os.getpid()})"
        )
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        if self._workers.place == 0:
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
                order: Order = ray.get(self._guard.beat.remote(self._now(), self._workers.count))
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
        return Beat(self._workers.place, at[1], still_s, at[0], self._name, self._place())

    def _place(self) -> str:
        """The innermost line of this project's code that takes steps."""
        frame = sys._current_frames().get(self._steps)  # noqa: SLF001 - documented
        while frame is not None and ROOT not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        if frame is None:
            return "a place that is not known"
        path = Path(frame.f_code.co_filename).relative_to(ROOT)
        return f"{path}:{frame.f_lineno} ({frame.f_code.co_name})"
