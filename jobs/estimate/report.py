"""`--dry-run`: what a run would take. Sizes come from the networks themselves, built without memory."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.config import load as configs
from jobs.config.schema import STAGES, RunConfig
from jobs.console import print_line
from jobs.estimate import shapes
from jobs.estimate.flops import networks, parameters, phases, tokens, trained
from jobs.estimate.gpus import Gpu, require_fit
from jobs.estimate.gpus import gpu as gpu_named
from jobs.estimate.memory import footprint
from models.errors import ConfigError

CPU_FLOPS, GPU_FLOPS = 5e10, 1.5e14
"""Floating-point operations a second of a CPU core (measured: 47-62e9 in training) and a GPU (assumed)."""


@dataclass(frozen=True)
class StageCost:
    """What one stage would take."""

    stage: str
    steps: int
    phases: Mapping[str, float]
    """Floating-point operations of a step over all workers, by phase."""
    parts: Mapping[str, int]
    """Bytes per worker, by part."""
    trained: int
    """Trainable parameter count."""

    @property
    def flops(self) -> float:
        """Floating-point operations of all steps."""
        return self.steps * sum(self.phases.values())

    @property
    def bytes(self) -> int:
        """Bytes per worker."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Description:
    """What a run would do."""

    shapes: shapes.Shapes
    teacher_parameters: int
    student_parameters: int
    windows: int
    """Windows scored in one rollout."""
    stages: tuple[StageCost, ...]
    workers: int
    use_gpu: bool

    @property
    def seconds(self) -> float:
        """Seconds of all stages one after another, on the workers asked for; a rough figure."""
        return sum(stage_seconds(self, stage) for stage in self.stages)


def stage_seconds(description: Description, stage: StageCost) -> float:
    """Rough seconds of a stage on the workers asked for."""
    return stage.flops / (GPU_FLOPS if description.use_gpu else CPU_FLOPS) / description.workers


def describe(config: RunConfig, stage: str | None = None, gpu: Gpu | None = None) -> Description:
    """Build the networks on torch's meta device and add up what training would cost.

    Args:
        config: the run's settings.
        stage: the stage alone; None is all that the run has.
        gpu: train on this one; None is what the config says.

    Raises:
        ConfigError: pretrained weights stand for the stage, or it has no steps.
    """
    wanted = [name for name in STAGES if stage in (None, name) and _runs(config, name)]
    if not wanted:
        raise ConfigError(
            f"this run has no stage {stage}",
            "Name another, or set model.pretrained=null (teacher) or warmup.steps (warmup)",
        )
    use_gpu = config.cluster.use_gpu or gpu is not None
    built = networks(config, wanted[0])
    return Description(
        shapes=shapes.shapes(config),
        teacher_parameters=parameters(built.teacher),
        student_parameters=parameters(built.frozen_student),
        windows=shapes.scored_windows(config),
        stages=tuple(stage_cost(config, name, use_gpu=use_gpu) for name in wanted),
        workers=config.cluster.num_workers,
        use_gpu=use_gpu,
    )


def stage_cost(config: RunConfig, stage: str, *, use_gpu: bool) -> StageCost:
    """Operations and memory of one stage."""
    built = networks(config, stage)
    own = {"teacher": (built.teacher,), "warmup": (built.critic,), "distill": (built.student, built.critic)}
    return StageCost(
        stage=stage,
        steps=getattr(config, stage).steps,
        phases=phases(config, stage, built),
        parts=footprint(config, stage, built, half=use_gpu),
        trained=sum(trained(network) for network in own.get(stage, (built.student,))),
    )


def dry_run(
    config: RunConfig, *, stage: str | None = None, gpu: str | None = None, as_json: bool = False
) -> None:
    """Print settings, sizes and cost, then refuse what does not fit.

    Args:
        config: the run's settings.
        stage: a stage of training; None is all.
        gpu: train on this one; None is what the config says, and nothing is refused.
        as_json: print one JSON object and nothing else.

    Raises:
        ConfigError: there is no such GPU or stage, or a stage does not fit on the GPU.
    """
    asked = None if gpu is None else gpu_named(gpu)
    described = describe(config, stage, asked)
    print_line(to_json(config, described, asked) if as_json else render(config, described, asked))
    if asked is not None:
        require_fit(config, {cost.stage: cost.parts for cost in described.stages}, asked)


def render(config: RunConfig, described: Description | None = None, gpu: Gpu | None = None) -> str:
    """The resolved settings and the description, as `--dry-run` prints them."""
    described = described or describe(config, gpu=gpu)
    return "\n".join((configs.to_yaml(config), *_lines(config, described, gpu)))


def to_json(config: RunConfig, described: Description, gpu: Gpu | None = None) -> str:
    """The description as one JSON object.

    `flops` are of a step over all workers and `bytes` of one worker; `fits` is null without a GPU.
    """
    sizes = described.shapes
    value = {
        "config": config.name,
        "config_hash": configs.config_hash(config),
        "parameters": {
            "teacher": described.teacher_parameters,
            "student": described.student_parameters,
            "trained": {cost.stage: cost.trained for cost in described.stages},
        },
        "tokens": {
            "frame": sizes.tokens_per_frame,
            "short_window": _tokens(config, sizes.short_frames),
            "long_window": _tokens(config, sizes.long_frames),
            "scored_window": _tokens(config, config.distill.window_frames),
            "text": config.text.max_tokens,
        },
        "workers": described.workers,
        "gpu": None if gpu is None else {"name": gpu.name, "bytes": gpu.bytes, "usable_bytes": gpu.usable},
        "stages": {cost.stage: _stage_json(cost, gpu) for cost in described.stages},
        "fits": None if gpu is None else all(cost.bytes <= gpu.usable for cost in described.stages),
    }
    return json.dumps(value, indent=1)


def _stage_json(cost: StageCost, gpu: Gpu | None) -> dict[str, Any]:
    return {
        "steps": cost.steps,
        "flops": dict(cost.phases),
        "flops_a_step": sum(cost.phases.values()),
        "bytes": dict(cost.parts),
        "bytes_a_worker": cost.bytes,
        "fits": None if gpu is None else cost.bytes <= gpu.usable,
    }


def _tokens(config: RunConfig, frames: int) -> int:
    return tokens(config, frames).clip


def _runs(config: RunConfig, stage: str) -> bool:
    """Pretrained weights replace the teacher's stage, and the warm-up may have no steps."""
    if stage == "teacher":
        return config.model.pretrained is None
    return stage != "warmup" or config.warmup.steps > 0


def _lines(config: RunConfig, described: Description, gpu: Gpu | None) -> Iterator[str]:
    sizes = described.shapes
    note = "" if sizes.channels_known else " (ingest decides; assumed here)"
    yield f"config hash       {configs.config_hash(config)}"
    yield f"latent channels   {sizes.channels}{note}"
    data, length = config.data, _tokens(config, sizes.long_frames)
    yield f"SHORT window      {data.short_frames} frames -> latents {_shape(sizes, sizes.short_frames)}"
    yield f"LONG window       {data.long_frames} frames -> latents {_shape(sizes, sizes.long_frames)}"
    if data.has_buckets:
        counts = f"{len(data.cuts_of('long'))} LONG lengths, {len(data.sizes)} picture sizes"
        yield f"buckets           {counts}; the largest is meant here"
    yield f"tokens            {sizes.tokens_per_frame} a frame, {length} a LONG window"
    yield f"teacher, critic   {described.teacher_parameters:,} parameters"
    yield f"student           {described.student_parameters:,} parameters"
    yield f"scored windows    {described.windows} of {config.distill.window_frames} latent frames a rollout"
    for cost in described.stages:
        yield from _stage_lines(described, cost, gpu)
    yield f"training          about {described.seconds:,.0f} s in all; nothing was read or written"


def _stage_lines(described: Description, cost: StageCost, gpu: Gpu | None) -> Iterator[str]:
    """Cost of a stage, then operations by phase and memory by part."""
    where = "GPU" if described.use_gpu else "CPU core"
    verdict = "" if gpu is None else f"; {'fits' if cost.bytes <= gpu.usable else 'does not fit'} {gpu.name}"
    yield (
        f"{cost.stage:<17} {cost.steps} steps, {cost.flops:.2g} FLOP, about "
        f"{stage_seconds(described, cost):,.0f} s on {described.workers} {where}(s), "
        f"{_mib(cost.bytes)} a worker{verdict}"
    )
    flops = (f"{name.replace('_', ' ')} {value:.2g}" for name, value in cost.phases.items() if value)
    yield f"  FLOP a step     {', '.join(flops)}"
    parts = (f"{name.replace('_', ' ')} {_mib(value)}" for name, value in cost.parts.items() if value)
    yield f"  memory          {', '.join(parts)}"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _shape(sizes: shapes.Shapes, frames: int) -> str:
    return f"[{frames}, {sizes.channels}, {sizes.height}, {sizes.width}]"
