"""RunConfig: every setting of a run, put together from dataclasses that live beside the code they steer."""

import functools
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from models.config import AutoencoderConfig, NonNegativeInt, PositiveFloat, PositiveInt
from pipelines.data.config import DataConfig
from pipelines.evaluation.config import EvaluationConfig
from pipelines.training.config import TrainingConfig
from pipelines.world.config import WorldConfig

STAGES = ("teacher", "sft", "mixed", "warmup", "distill")
"""Every stage of training, in order."""


@dataclass(frozen=True, kw_only=True)
class StorageConfig:
    """Where everything that a run makes is kept."""

    root: str = "runs"
    """A folder, or an fsspec URI that every node can reach; the run is the folder `name` in it."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """The tracking service (jobs/tracking.py)."""

    uri: str | None = None
    """MLflow's address; None is $MLFLOW_TRACKING_URI, and without that a sqlite file in `storage.root`."""
    experiment: str = "sostenuto"
    """MLflow experiment that runs are filed under."""
    enabled: bool = True
    """False records nothing."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A search over any settings by their dotted names (jobs/commands/sweep.py)."""

    name: str = ""
    """Tells sweeps of one run apart: the folder of this one is `sweep-NAME`, or `sweep` without a name."""
    stage: Literal["teacher", "sft", "mixed", "distill"] = "distill"
    """Stage that each trial trains, from the checkpoints of the stages before it."""
    space: dict[str, Any] = field(
        default_factory=lambda: {
            "loss.reverse_kl_weight": {"low": 0.3, "high": 3.0, "log": True},
            "loss.flow_matching_weight": [0.5, 1.0, 2.0],
        }
    )
    """Dotted name to a list of choices, or to `{low, high}` with an optional `log` or `integer`."""
    trials: PositiveInt = 4
    """Trials in all."""
    max_concurrent: PositiveInt = 1
    """Trials at once."""
    search: Literal["random", "optuna"] = "random"
    """How the next trial is chosen."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops the worst trials early."""
    metric: str = "window_frechet"
    """Metric of evaluation, by its name in summary.json, that trials are compared by at checkpoints."""
    mode: Literal["min", "max"] = "min"
    """Whether less or more of it is better."""
    videos: PositiveInt = 60
    """Videos that a checkpoint is measured on; distances depend on it, so it is the same for all trials."""
    grace_reports: PositiveInt = 1
    """Checkpoints a trial reports before `asha` may stop it."""
    reduction_factor: int = 2
    """`asha` keeps one trial of this many at each rung."""
    seed: int = 0
    """Seed of the search."""

    @property
    def folder(self) -> str:
        """Of its trials below the run's, and the name of its MLflow run."""
        return f"sweep-{self.name}" if self.name else "sweep"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The page and its replicas (jobs/serve/): what it takes at most, and what it may use."""

    folder: str | None = None
    """Where results, uploads and their index lie, on a disk that every replica mounts; None is serve/ in the
    run's folder."""
    longest_seconds: PositiveFloat = 60.0
    """Longest clip, with what it goes on from."""
    upload_bytes: PositiveInt = 256 << 20
    """Largest file to go on from; a larger one is cut off while it comes."""
    upload_pixels: PositiveInt = 4096 * 2304
    """Largest frame of such a file."""
    queue_length: PositiveInt = 100
    """Requests that may wait; more are refused."""
    prompt_length: PositiveInt = 1000
    """Characters of a caption."""
    min_replicas: NonNegativeInt = 1
    """Replicas that are always there; 0 frees the machine while nothing is wanted."""
    max_replicas: PositiveInt = 1
    """Most replicas; Ray Serve adds them while requests wait. Each takes a CPU, or a GPU with
    `cluster.use_gpu`."""
    networks: PositiveInt = 3
    """Networks that a replica holds; another one takes the place of the one used longest ago."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """Every setting of a run. Its dotted name is its only name: in YAML, `--set`, Ray Tune and MLflow."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = "run"
    """Folder of the run in `storage.root`."""
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sweep: SweepConfig = field(default_factory=SweepConfig)
    storage: StorageConfig = StorageConfig()
    tracking: TrackingConfig = TrackingConfig()
    serve: ServeConfig = ServeConfig()

    @property
    def uses_world(self) -> bool:
        """Whether both corpora are the built-in world's."""
        return self.data.short is None and self.data.long is None


@functools.cache
def settings(group: type = RunConfig) -> dict[str, Any]:
    """Dotted name to type of every setting below a group."""
    hints = typing.get_type_hints(group, include_extras=True)
    found: dict[str, Any] = {}
    for name in (entry.name for entry in fields(group)):
        kind = hints[name]
        if isinstance(kind, type) and is_dataclass(kind):
            found |= {f"{name}.{inner}": type_ for inner, type_ in settings(kind).items()}
        else:
            found[name] = kind
    return found
