"""Progress and warnings of every process, shown by the one that watches."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.ray_map import on_this_node
from pipelines.tracking import Progress

POLL_S = 0.5


@ray.remote(num_cpus=0)
class _Board:
    """An actor with the progress that nobody has seen yet, and all warnings."""

    def __init__(self) -> None:
        self._progress: list[tuple[str, int, int, str]] = []
        self._warnings: list[str] = []

    def update(self, task: str, done: int, total: int, note: str) -> None:
        self._progress.append((task, done, total, note))

    def warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    def take(self) -> tuple[list[tuple[str, int, int, str]], list[str]]:
        progress, self._progress = self._progress, []
        return progress, self._warnings


@dataclass(frozen=True)
class BoardProgress:
    """A `Progress` for every process of the cluster: it sends to a board and does not wait."""

    board: Any
    prefix: str = ""
    """Of the names of tasks, which tells those apart that several runs share."""

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        self.board.update.remote(f"{self.prefix}{task}", done, total, note)


class _ToBoard(logging.Handler):
    """Sends warnings to a board, and waits until they are there: a worker may end right after."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(ray.exceptions.RayError):
            ray.get(self._board.warn.remote(record.getMessage()), timeout=POLL_S)


@contextmanager
def relayed_warnings(progress: Progress | None) -> Iterator[None]:
    """What this process's `sostenuto` loggers warn of is said by the process that watches the board, once."""
    if not isinstance(progress, BoardProgress):
        yield
        return
    log, handler = logging.getLogger("sostenuto"), _ToBoard(progress.board)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def progress_board(progress: Progress) -> Iterator[BoardProgress]:
    """Shows by `progress` what other processes report to the board, and repeats what they warn of, for the
    length of a `with` block."""
    board: Any = _Board.options(scheduling_strategy=on_this_node()).remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    said: list[str] = []

    def show() -> None:
        told, warnings = ray.get(board.take.remote())
        for update in told:
            progress(*update)
        for text in warnings[len(said) :]:
            said.append(text)
            logging.getLogger("sostenuto").warning(text)

    def watch() -> None:
        while not stop.wait(POLL_S):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield BoardProgress(board)
    finally:
        stop.set()
        watcher.join()
        show()
        ray.kill(board)
