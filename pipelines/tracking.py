"""What a pipeline may tell a tracking service. jobs/tracking.py gives the MLflow one."""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """One run of a tracking service, held by one process. No method raises when the service is away."""

    def params(self, values: Mapping[str, object]) -> None:
        """Record settings under their dotted names; a second value for a name does not replace the first."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers such as `train/loss` at a step. Cheap enough to be called at every step."""

    def artifact(self, path: str, folder: str = "") -> None:
        """Copy a local file into `folder` of the run's artifacts."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a second value for a name replaces the first."""

    def close(self, status: RunStatus = "FINISHED") -> None:
        """Send what is held back and end the run. Nothing may be recorded afterwards."""


class NullTracker:
    """A Tracker that forgets everything."""

    def params(self, values: Mapping[str, object]) -> None:
        """Forget the settings."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Forget the numbers."""

    def artifact(self, path: str, folder: str = "") -> None:
        """Leave the file where it is."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Forget the tags."""

    def close(self, status: RunStatus = "FINISHED") -> None:
        """Nothing is open."""


TrackerFactory = Callable[[], Tracker]
"""Opens a Tracker in the process that calls it. Picklable, so that it can travel to a worker."""
