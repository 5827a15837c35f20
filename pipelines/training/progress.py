"""Where stages say how far they are, and where a terminal reads it."""

from dataclasses import dataclass
from typing import Any, Protocol

import ray


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Args:
        name: the piece of work.
        done, total: steps.
        text: the newest numbers, for people.
    """

    name: str
    done: int
    total: int
    text: str = ""


class Reporter(Protocol):
    """Takes a piece of work's progress; never blocks."""

    def __call__(self, progress: Progress) -> None:
        """Takes note of it."""


@ray.remote(num_cpus=0)
class ProgressBoard:
    """An actor that keeps the newest progress of every piece of work."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}

    def update(self, progress: Progress) -> None:
        """Replaces what is known of a piece of work."""
        self._latest[progress.name] = progress

    def read(self) -> list[Progress]:
        """The newest of each."""
        return list(self._latest.values())


@dataclass(frozen=True)
class BoardReporter:
    """Sends progress to a board from any process.

    Args:
        board: handle of a ProgressBoard.
    """

    board: Any

    def __call__(self, progress: Progress) -> None:
        """Sends without waiting."""
        self.board.update.remote(progress)
