"""What to change when a stage does not fit on a GPU. Each remedy has been tried by the same sums."""

import dataclasses
import math
from collections.abc import Callable

from jobs.config.schema import RunConfig
from jobs.estimate.describe import Description, StageCost, stage_cost
from jobs.estimate.gpus import Gpu, smallest
from jobs.estimate.shapes import scored_windows
from models.autoencoders.kinds import autoencoder_kind
from models.errors import ConfigError

RANK = 32
"""Rank of the adapters that are proposed."""

Step = tuple[str, RunConfig]
"""A setting as `--set` takes it, and the config that has it."""


def require_fit(config: RunConfig, described: Description, gpu: Gpu) -> None:
    """Refuse a run of which a stage does not fit on a GPU.

    Raises:
        ConfigError: the stage that needs most, and what to change.
    """
    worst = max(described.stages, key=lambda cost: cost.bytes)
    if worst.bytes <= gpu.usable:
        return
    part = max(worst.parts, key=lambda name: worst.parts[name])
    raise ConfigError(
        f"{worst.stage} needs {_gib(worst.bytes)} a worker, {_gib(worst.parts[part])} of it "
        f"{part.replace('_', ' ')}, but of {gpu.name} {_gib(gpu.usable)} can be used",
        _remedy(config, worst, gpu),
    )


def _remedy(config: RunConfig, cost: StageCost, gpu: Gpu) -> str:
    """Settings under which the stage fits, as few as do; else what would be needed."""
    chosen: list[str] = []
    for propose in (_checkpointing, _workers, _adapters, _frames):
        for setting, changed in propose(config, cost.stage, gpu):
            chosen.append(setting)
            config = changed
            if _needed(config, cost.stage) <= gpu.usable:
                return f"Set {' '.join(chosen)}{_larger(cost)}; weights are not sharded over GPUs"
    return (
        f"No fewer LONG frames, adapters or workers make it fit{_larger(cost)}; nothing is sharded over GPUs"
    )


def _needed(config: RunConfig, stage: str) -> int:
    return stage_cost(config, stage, use_gpu=True).bytes


def _larger(cost: StageCost) -> str:
    larger = smallest(cost.bytes)
    return f", or take {larger.name}" if larger else ""


def _checkpointing(config: RunConfig, _stage: str, _gpu: Gpu) -> list[Step]:
    """Activations computed again, not kept."""
    if config.cluster.activation_checkpointing:
        return []
    cluster = dataclasses.replace(config.cluster, activation_checkpointing=True)
    return [("cluster.activation_checkpointing=true", dataclasses.replace(config, cluster=cluster))]


def _workers(config: RunConfig, stage: str, _gpu: Gpu) -> list[Step]:
    """More workers take fewer samples each; batches must divide among them."""
    settings = config.distill if stage == "warmup" else getattr(config, stage)
    names = ("short_batch", "long_batch", "rollout_batch", "critic_batch")
    most = math.gcd(*(getattr(settings, name, 0) for name in names))
    if most <= config.cluster.num_workers:
        return []
    cluster = dataclasses.replace(config.cluster, num_workers=most)
    return [(f"cluster.num_workers={most}", dataclasses.replace(config, cluster=cluster))]


def _adapters(config: RunConfig, stage: str, _gpu: Gpu) -> list[Step]:
    """Low-rank adapters in place of all weights."""
    if config.lora.rank or stage not in config.lora.stages:
        return []
    lora = dataclasses.replace(config.lora, rank=RANK)
    return [(f"lora.rank={RANK}", dataclasses.replace(config, lora=lora))]


def _frames(config: RunConfig, stage: str, gpu: Gpu) -> list[Step]:
    """The longest LONG windows that fit, not shorter than SHORT ones, longer than those of other buckets."""
    data, grain = config.data, autoencoder_kind(config.autoencoder).temporal_factor
    least = max([data.short_frames, *(length + grain for length in data.long_lengths)])
    most = (data.long_frames - least) // grain

    def shortened(cut: int) -> RunConfig:
        frames = data.long_frames - grain * cut
        return dataclasses.replace(config, data=dataclasses.replace(data, long_frames=frames))

    if stage == "teacher" or most < 1:
        return []
    cut = _first(most, lambda cut: _needed(shortened(cut), stage) <= gpu.usable)
    changed = shortened(cut)
    setting = f"data.long_frames={changed.data.long_frames}"
    windows = scored_windows(changed)
    if windows < (changed.distill.windows_per_video or 0):
        setting += f" distill.windows_per_video={windows}"
        distill = dataclasses.replace(changed.distill, windows_per_video=windows)
        changed = dataclasses.replace(changed, distill=distill)
    return [(setting, changed)]


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The least number in 1 ... most for which `holds`, which stays true once it is; `most` if none."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
