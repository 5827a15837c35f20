"""What `sostenuto compare` takes: CPU-seconds of training and of evaluation, and how long that is here."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.config.schema import RunConfig
from jobs.estimate.around import INGEST_FRAMES, ingest_frames, sampling_flops
from jobs.estimate.flops import networks
from jobs.estimate.report import CPU_FLOPS, GPU_FLOPS, stage_cost
from pipelines.evaluation.settings import System
from pipelines.training.recipes import BASELINES

START_S = 12.0
"""CPU-seconds of a Ray Train run beside its steps (assumed)."""

VIDEO_S = 0.02
"""CPU-seconds to decode, measure and score a video of 32 frames of 128 x 128 (assumed)."""


@dataclass(frozen=True)
class Plan:
    """Costs by what they are for."""

    seeds: int
    ingest: float
    """CPU-seconds of the corpora, and of those that rows have of their own."""
    training: Mapping[str, float]
    """CPU-seconds of a seed by row and stage; GPU-seconds where the config asks for GPUs."""
    evaluation: Mapping[str, float]
    """The same by system."""
    cores: int
    """That share the work here."""

    @property
    def seconds(self) -> float:
        """Of a core, in all."""
        return self.ingest + self.seeds * (sum(self.training.values()) + sum(self.evaluation.values()))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `minutes` are on this machine."""
        return asdict(self) | {"minutes": self.seconds / self.cores / 60}

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"ingest      {'':<28} {self.ingest:8,.0f} s of a core"
        for what, costs in (("train", self.training), ("evaluate", self.evaluation)):
            for name, seconds in costs.items():
                yield f"{what:<11} {name:<28} {seconds:8,.0f} s a seed"
        train, judge = (self.seeds * sum(costs.values()) for costs in (self.training, self.evaluation))
        yield (
            f"{self.seeds} seeds     {train:,.0f} s of training and {judge:,.0f} s of evaluation: about "
            f"{self.seconds / self.cores / 60:,.0f} minutes on {self.cores} cores"
        )
        yield "what is finished does not count again; nothing was read or written"


def plan(
    stages: Mapping[str, tuple[RunConfig, str]],
    systems: Mapping[str, tuple[RunConfig, System]],
    datasets: Sequence[RunConfig],
    seeds: int,
) -> Plan:
    """Adds up what training and evaluation cost.

    Args:
        stages: settings and name, by label, of each stage that a seed trains.
        systems: settings and sampler of each row.
        datasets: settings of each dataset.
        seeds: how many.
    """
    config = datasets[0]
    speed, wanted = GPU_FLOPS if config.cluster.use_gpu else CPU_FLOPS, config.evaluation
    videos = wanted.videos + (min(wanted.unseen_videos, wanted.videos) if config.uses_world else 0)
    return Plan(
        seeds=seeds,
        ingest=sum(ingest_frames(one) or 0 for one in datasets) / INGEST_FRAMES,
        training={label: START_S + _stage_s(own, stage) for label, (own, stage) in stages.items()},
        evaluation={
            name: videos * (VIDEO_S + sampling_flops(own, system.method, networks(own, "distill")) / speed)
            for name, (own, system) in systems.items()
        },
        cores=len(os.sched_getaffinity(0)),
    )


def _stage_s(config: RunConfig, stage: str) -> float:
    """Seconds of a stage's steps over all workers; a baseline goes on for as long as distillation takes."""
    cost = stage_cost(config, "distill" if stage in BASELINES else stage, use_gpu=config.cluster.use_gpu)
    return cost.seconds * config.cluster.most_workers
