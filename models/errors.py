"""The errors that a user can meet. Each carries what happened and what to do about it."""

from collections.abc import Mapping


class SostenutoError(Exception):
    """An error with its remedy.

    Args:
        problem: one sentence: what is wrong, and where.
        remedy: one sentence: what the user can do.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}. {self.remedy}"


class ConfigError(SostenutoError):
    """A value or a combination of values that cannot work."""


class DataError(SostenutoError):
    """A corpus, a video, a shard or a dataset that cannot be used."""


class CheckpointError(SostenutoError):
    """Weights or training state that cannot be written, found or trusted."""


class ClusterError(SostenutoError):
    """Ray, MLflow or storage that cannot be reached."""


class StorageRefused(ClusterError):
    """Storage that takes nothing: full, read-only, or not this user's. Trying again does not help."""


class TrainingDiverged(SostenutoError):
    """A non-finite loss, gradient or score; the last checkpoint stands."""

    rate = "learning_rate"
    """The stage's setting that makes the steps smaller of what diverged."""
    changes: Mapping[str, object] = {}
    """Settings with a value each, any of which lets the run go on from its checkpoint."""
