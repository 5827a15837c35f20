"""The GPUs that a dry run knows, and what to change when a stage does not fit on one.

A remedy is proposed only once the same sums say that the stage then fits.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from jobs.config.checks import validate
from jobs.config.schema import STAGES, RunConfig
from jobs.config.shapes import scored_windows, shapes
from jobs.estimate.flops import networks
from jobs.estimate.memory import footprint
from models.autoencoders.kinds import autoencoder_kind
from models.errors import ConfigError

RANK = 32
"""Rank of the proposed adapters."""

MOST_ALIKE = 8
"""GPUs of a machine, which exchange keys and values quickly: so many may be proposed to share clips."""

USABLE = 0.92
"""Share of a GPU's memory that training can fill; the driver and fragmentation take the rest (assumed)."""


@dataclass(frozen=True)
class Gpu:
    """What data sheets say."""

    name: str
    bytes: int
    """Memory."""
    flops: float
    """Operations per second of dense bfloat16 products."""
    inside: float
    """Bytes per second that one gets from the others of its machine."""
    between: float
    """Bytes per second that one gets from other machines."""

    @property
    def usable(self) -> int:
        return int(self.bytes * USABLE)


# NVIDIA A100, H100 SXM, H200, B200, L40S, GeForce RTX 4090 and 5090; AMD Instinct MI250X (one of its two
# dies), MI300X. Memory is read as GiB, though the data sheets say GB. Bytes go by NVLink or Infinity Fabric
# inside a machine, else by PCIe; between machines by the network of the makers' eight-GPU machines, else by
# 100 Gbit/s (assumed).
_SHEETS = {
    #             GiB TFLOP/s GB/s inside, between
    "rtx4090": (24, 165, 32, 12.5),
    "rtx5090": (32, 210, 64, 12.5),
    "a100-40gb": (40, 312, 300, 25),
    "l40s": (48, 362, 32, 12.5),
    "mi250x": (64, 192, 150, 12.5),
    "a100": (80, 312, 300, 25),
    "h100": (80, 989, 450, 50),
    "h200": (141, 989, 450, 50),
    "b200": (180, 2250, 900, 50),
    "mi300x": (192, 1307, 448, 50),
}
GPUS = {
    name: Gpu(name, gib << 30, 1e12 * flops, 1e9 * inside, 1e9 * between)
    for name, (gib, flops, inside, between) in _SHEETS.items()
}


def gpu(name: str) -> Gpu:
    """Look a GPU up by its name, in upper or lower case.

    Raises:
        ConfigError: the name is not known.
    """
    key = name.lower()
    if key not in GPUS:
        near = difflib.get_close_matches(key, GPUS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no GPU {name!r} in the table", f"{hint}GPUs: {', '.join(GPUS)}")
    return GPUS[key]


def smallest(needed: int) -> Gpu | None:
    """The smallest GPU of the table that holds `needed` bytes."""
    return next(
        (one for one in sorted(GPUS.values(), key=lambda one: one.bytes) if one.usable >= needed), None
    )


def require_fit(config: RunConfig, stages: Mapping[str, Mapping[str, int]], on: Gpu) -> None:
    """Refuse a run if one of its stages does not fit on a GPU.

    Args:
        config: the run's settings.
        stages: of each stage, bytes per worker by part.
        on: the GPU.

    Raises:
        ConfigError: a stage does not fit; names the one that needs most, and what to change.
    """
    stage, parts = max(stages.items(), key=lambda entry: sum(entry[1].values()))
    needed, largest = sum(parts.values()), max(parts, key=lambda name: parts[name])
    if needed <= on.usable:
        return
    larger = smallest(needed)
    or_larger = f", or take {larger.name}" if larger else ""
    chosen: list[str] = []
    remedy = f"No fewer LONG frames, adapters, workers or parts of the weights make it fit{or_larger}"
    for setting, changed in _remedies(config, stage, on):
        chosen.append(setting)
        if worker_bytes(changed, stage) <= on.usable:
            remedy = f"Set {' '.join(chosen)}{or_larger}"
            break
    raise ConfigError(
        f"{stage} needs {_gib(needed)} per worker, {_gib(parts[largest])} of it {largest.replace('_', ' ')}, "
        f"but only {_gib(on.usable)} of {on.name} can be used",
        remedy,
    )


def _remedies(config: RunConfig, stage: str, on: Gpu) -> Iterator[tuple[str, RunConfig]]:
    """Settings that save memory, each with the config that has it and all before it."""
    if config.cluster.activation_checkpointing != "full":
        config = replace(config, cluster=replace(config.cluster, activation_checkpointing="full"))
        yield "cluster.activation_checkpointing=full", config
    name = "distill" if stage == "warmup" else stage
    settings = getattr(config, name)
    if settings.micro_batch != 1:
        settings = replace(settings, micro_batch=1)
        config = replace(config, **{name: settings})
        yield f"{name}.micro_batch=1", config
    batches = ("short_batch", "long_batch", "rollout_batch", "critic_batch")
    most = min(size for size in (getattr(settings, batch, 0) for batch in batches) if size)
    if most > config.cluster.least_workers:
        config = replace(config, cluster=replace(config.cluster, num_workers=most))
        yield f"cluster.num_workers={most}", config
    alike = math.gcd(config.cluster.most_workers, MOST_ALIKE)
    if stage != "teacher" and config.cluster.context_parallel < alike <= shapes(config).long_frames:
        config = replace(
            config,
            cluster=replace(config.cluster, num_workers=config.cluster.most_workers, context_parallel=alike),
        )
        yield f"cluster.context_parallel={alike}", config
    workers = config.cluster.most_workers
    sharded = replace(config, cluster=replace(config.cluster, num_workers=workers, shard="full"))
    if config.cluster.shard == "none" and workers > 1 and allowed(sharded):
        config = sharded
        yield "cluster.shard=full", config
    if not config.lora.rank and stage in config.lora.stages:
        config = replace(config, lora=replace(config.lora, rank=RANK))
        yield f"lora.rank={RANK}", config
    if stage != "teacher":
        yield from _fewer_frames(config, stage, on)


def allowed(config: RunConfig) -> bool:
    """Whether a combination of settings is one that a run may have."""
    try:
        validate(config)
    except ConfigError:
        return False
    return True


def _fewer_frames(config: RunConfig, stage: str, on: Gpu) -> Iterator[tuple[str, RunConfig]]:
    """The longest LONG windows that fit, no shorter than SHORT ones or a curriculum's, longer than the other
    buckets'."""
    data, grain = config.data, autoencoder_kind(config.autoencoder).temporal_factor
    stages = [getattr(config, name) for name in STAGES if name != "warmup"]
    clips = [1 + grain * (latents - 1) for one in stages for _, latents in one.lengths if latents]
    least = max([data.short_frames, *clips, *(length + grain for length in data.long_lengths)])
    low, high = 1, (data.long_frames - least) // grain
    if high < 1:
        return
    while low < high:  # the fewest grains to cut
        middle = (low + high) // 2
        shorter = replace(config, data=replace(data, long_frames=data.long_frames - grain * middle))
        low, high = (low, middle) if worker_bytes(shorter, stage) <= on.usable else (middle + 1, high)
    frames = data.long_frames - grain * high
    changed, setting = replace(config, data=replace(data, long_frames=frames)), f"data.long_frames={frames}"
    windows = scored_windows(changed)
    if windows < (changed.distill.windows_per_video or 0):
        setting += f" distill.windows_per_video={windows}"
        changed = replace(changed, distill=replace(changed.distill, windows_per_video=windows))
    yield setting, changed


def worker_bytes(config: RunConfig, stage: str) -> int:
    """Memory of a worker that has a GPU."""
    return sum(footprint(config, stage, networks(config, stage), half=True).values())


def _gib(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"
