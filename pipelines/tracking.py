"""What pipelines report while they work: metrics and files to a tracker, progress to whoever watches.

jobs/tracking.py has the MLflow tracker, jobs/console.py the progress of a terminal.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Progress(Protocol):
    """Shows how far a task is. It returns at once and may be called from any thread."""

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        """`done` of `total` units of `task` are done; the note has the newest numbers, for people."""


def no_progress(task: str, done: int, total: int, note: str = "", /) -> None:
    """Shows nothing."""


class Tracker(Protocol):
    """One run of a tracking service, held by one process. No method raises when the service is away, and none
    waits for it; only `close` gives it some seconds."""

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings under their dotted names; the first value of a name stays."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers such as `train/loss` at a step. Cheap enough for every step."""

    def artifact(self, path: str, folder: str = "") -> None:
        """Copy a local file into `folder` of the run's artifacts."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a second value for a name replaces the first."""

    def close(self, status: RunStatus | None = "FINISHED") -> None:
        """Send what is buffered; end the run, unless None. Nothing may be recorded afterwards."""


class NullTracker:
    """A Tracker that records nothing."""

    def params(self, values: Mapping[str, object]) -> None: ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...

    def artifact(self, path: str, folder: str = "") -> None: ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def close(self, status: RunStatus | None = "FINISHED") -> None: ...


TrackerFactory = Callable[[], Tracker]
"""Opens a Tracker in the calling process. Picklable: it travels to a worker."""
