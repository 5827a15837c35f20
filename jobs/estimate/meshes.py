"""Meshes that a stage could run on: which of them fit, and what each costs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from jobs.config.schema import RunConfig
from jobs.estimate.flops import networks
from jobs.estimate.gpus import MOST_ALIKE, Gpu, allowed, worker_bytes
from jobs.estimate.pace import machine, pace, step_seconds

Shard = Literal["none", "full", "hybrid"]
COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""GPUs of the alternatives that a dry run looks at."""


@dataclass(frozen=True)
class Mesh:
    """Settings of a mesh and what a stage takes on it."""

    workers: int
    context_parallel: int
    shard: Shard
    micro_batch: int | None
    bytes: int
    """Of a worker."""
    seconds: float
    """A step."""
    gpu_hours: float
    """The stage."""

    def __str__(self) -> str:
        clips = "" if self.micro_batch is None else f", {self.micro_batch} at once"
        return (
            f"{self.workers} GPUs, context_parallel {self.context_parallel}, shard {self.shard}{clips}: "
            f"{self.bytes / 2**30:.1f} GiB a worker, {self.seconds:,.1f} s a step, "
            f"{self.gpu_hours:,.0f} GPU-hours"
        )


def meshes(config: RunConfig, stage: str, gpu: Gpu, counts: Sequence[int] = COUNTS) -> list[Mesh]:
    """The fastest mesh of each number of GPUs that fits on them, the fewest first."""
    found = []
    for workers in counts:
        fitting = [
            one for one in candidates(config, stage, workers) if worker_bytes(one, stage) <= gpu.usable
        ]
        if fitting:
            found.append(min((costed(one, stage, gpu) for one in fitting), key=lambda mesh: mesh.seconds))
    return found


def candidates(config: RunConfig, stage: str, workers: int) -> Iterator[RunConfig]:
    """Settings of every mesh of so many GPUs that a run may have; clips go through as they say, or one by
    one."""
    name = "distill" if stage == "warmup" else stage
    settings = getattr(config, name)
    shards = get_args(Shard)[: 1 if workers == 1 else 2 if workers <= MOST_ALIKE else 3]
    for micro_batch in dict.fromkeys((settings.micro_batch, 1)):
        split = replace(config, **{name: replace(settings, micro_batch=micro_batch)})
        for alike in (size for size in (1, 2, 4, 8) if workers % size == 0):
            for shard in shards:
                cluster = replace(
                    config.cluster,
                    num_workers=workers,
                    context_parallel=alike,
                    shard=shard,
                    shard_group=MOST_ALIKE,
                )
                changed = replace(split, cluster=cluster)
                if allowed(changed):
                    yield changed


def costed(config: RunConfig, stage: str, gpu: Gpu) -> Mesh:
    """What a stage takes on the mesh of its settings."""
    cluster, settings = config.cluster, getattr(config, "distill" if stage == "warmup" else stage)
    seconds = step_seconds(pace(config, stage, networks(config, stage), machine(gpu)))
    return Mesh(
        workers=cluster.most_workers,
        context_parallel=cluster.context_parallel,
        shard=cluster.shard,
        micro_batch=settings.micro_batch,
        bytes=worker_bytes(config, stage),
        seconds=seconds,
        gpu_hours=getattr(config, stage).steps * seconds * cluster.most_workers / 3600,
    )
