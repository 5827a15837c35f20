"""`--dry-run`: what a run would take. Sizes come from the networks themselves, built without memory."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from jobs.config import load as configs
from jobs.config.schema import STAGES, RunConfig
from jobs.config.shapes import Shapes, scored_windows, shapes
from jobs.console import print_line
from jobs.estimate.around import (
    INGEST_FRAMES,
    checkpoint_bytes,
    evaluation_cost,
    fit_seconds,
    ingest_frames,
    sampling_flops,
)
from jobs.estimate.flops import networks, parameters, phases, tokens, trained
from jobs.estimate.gpus import Gpu, require_fit
from jobs.estimate.gpus import gpu as gpu_named
from jobs.estimate.memory import footprint
from jobs.estimate.meshes import Mesh, meshes
from jobs.estimate.pace import ASSUMED, Spent, machine, pace, step_seconds
from jobs.estimate.passes import places
from jobs.estimate.traffic import layer_bytes
from models.errors import ConfigError
from pipelines.generation import Method
from pipelines.training.config import ClusterConfig
from pipelines.training.monitors.phases import Plan

CPU_FLOPS, GPU_FLOPS = 5e10, 1.5e14
"""Floating-point operations per second of a CPU core (measured: 47-62e9 in training) and a GPU (assumed)."""


@dataclass(frozen=True)
class StageCost:
    """What one stage would take."""

    stage: str
    steps: int
    phases: Mapping[str, float]
    """Floating-point operations per step over all workers, by phase."""
    parts: Mapping[str, int]
    """Bytes per worker, by part."""
    trained: int
    """Trainable parameter count."""
    seconds: float
    """A rough figure, on the workers asked for."""
    checkpoint: int
    """Bytes of a checkpoint on storage."""
    pace: Mapping[str, Spent] = field(default_factory=dict)
    """Seconds per step by phase, where the GPU is known."""
    layers: Mapping[str, float] = field(default_factory=dict)
    """Bytes per step that a worker gets in a layer of each kind, where workers share clips."""
    meshes: Sequence[Mesh] = ()
    """That fit, the fewest GPUs first, where the GPU is known."""

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

    shapes: Shapes
    teacher_parameters: int
    student_parameters: int
    stages: tuple[StageCost, ...]
    use_gpu: bool
    sample: float
    """Floating-point operations of a LONG video of the student's few steps."""
    evaluation: tuple[int, float]
    """Videos of an evaluation of all systems, and their operations."""
    ingest: int | None
    """Frames of the corpora, where they are known."""

    @property
    def seconds(self) -> float:
        """Of all stages, one after another."""
        return sum(stage.seconds for stage in self.stages)


def describe(config: RunConfig, stage: str | None = None, gpu: Gpu | None = None) -> Description:
    """Build the networks on torch's meta device and add up what training would cost.

    Args:
        config: the run's settings.
        stage: the only stage to describe; None is every stage of the run.
        gpu: train on this one; None is what the config says.

    Raises:
        ConfigError: pretrained weights stand for the stage, or it has no steps.
    """
    skipped = {"teacher"} if config.model.pretrained is not None else set()
    skipped |= {"warmup"} if config.warmup.steps == 0 else set()
    wanted = [name for name in STAGES if stage in (None, name) and name not in skipped]
    if not wanted:
        remedy = "Name another, or set model.pretrained=null (teacher) or warmup.steps (warmup)"
        raise ConfigError(f"this run has no stage {stage}", remedy)
    use_gpu, built = config.cluster.use_gpu or gpu is not None, networks(config, wanted[0])
    return Description(
        shapes=shapes(config),
        teacher_parameters=parameters(built.teacher),
        student_parameters=parameters(built.frozen_student),
        stages=tuple(stage_cost(config, name, use_gpu=use_gpu, gpu=gpu) for name in wanted),
        use_gpu=use_gpu,
        sample=sampling_flops(config, Method("dm", "few_step", len(config.sampling.steps)), built),
        evaluation=evaluation_cost(config, built),
        ingest=ingest_frames(config),
    )


def stage_cost(config: RunConfig, stage: str, *, use_gpu: bool, gpu: Gpu | None = None) -> StageCost:
    """What one stage would take; by phase and mesh, too, on a GPU that is known."""
    built, steps = networks(config, stage), getattr(config, stage).steps
    by_phase = phases(config, stage, built)
    own = {"teacher": (built.teacher,), "warmup": (built.critic,), "distill": (built.student, built.critic)}
    speed = (GPU_FLOPS if use_gpu else CPU_FLOPS) * config.cluster.most_workers
    paced = {} if gpu is None else pace(config, stage, built, machine(gpu))
    busiest = places(config, stage)[-1]
    return StageCost(
        stage=stage,
        steps=steps,
        phases=by_phase,
        parts=footprint(config, stage, built, half=use_gpu),
        trained=sum(trained(network) for network in own.get(stage, (built.student,))),
        seconds=steps * (step_seconds(paced) if paced else sum(by_phase.values()) / speed),
        checkpoint=checkpoint_bytes(config, stage, built),
        pace=paced,
        layers=layer_bytes(config, stage, busiest, half=use_gpu) if busiest.alike > 1 else {},
        meshes=[] if gpu is None else meshes(config, stage, gpu),
    )


def plan(config: RunConfig, stage: str) -> Plan:
    """What a stage's log compares itself with."""
    flops = sum(phases(config, stage, networks(config, stage)).values())
    return Plan(flops, GPU_FLOPS if config.cluster.use_gpu else CPU_FLOPS)


def dry_run(
    config: RunConfig, *, stage: str | None = None, gpu: str | None = None, as_json: bool = False
) -> None:
    """Print settings, sizes and cost, then refuse what does not fit.

    Args:
        config: the run's settings.
        stage: the only stage to describe; None is all.
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


def to_json(config: RunConfig, described: Description, gpu: Gpu | None = None) -> str:
    """The description as one JSON object.

    `flops` are per step over all workers, `bytes` per worker, `seconds` and `layer_bytes` per step; `fits` is
    null without a GPU.
    """
    sizes = described.shapes
    fits = {cost.stage: None if gpu is None else cost.bytes <= gpu.usable for cost in described.stages}
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
            "short_window": tokens(config, sizes.short_frames).clip,
            "long_window": tokens(config, sizes.long_frames).clip,
            "scored_window": tokens(config, config.distill.window_frames).clip,
            "text": config.text.max_tokens,
        },
        "workers": config.cluster.num_workers,
        "gpu": None if gpu is None else {"name": gpu.name, "bytes": gpu.bytes, "usable_bytes": gpu.usable},
        "stages": {
            cost.stage: {
                "steps": cost.steps,
                "flops": dict(cost.phases),
                "flops_a_step": sum(cost.phases.values()),
                "bytes": dict(cost.parts),
                "bytes_a_worker": cost.bytes,
                "checkpoint_bytes": cost.checkpoint,
                "seconds": {phase: asdict(spent) for phase, spent in cost.pace.items()},
                "layer_bytes": dict(cost.layers),
                "meshes": [asdict(mesh) for mesh in cost.meshes],
                "fits": fits[cost.stage],
            }
            for cost in described.stages
        },
        "sample": {"flops_a_video": described.sample},
        "evaluation": {"videos": described.evaluation[0], "flops": described.evaluation[1]},
        "ingest": {"frames": described.ingest},
        "fits": None if gpu is None else all(fits.values()),
    }
    return json.dumps(value, indent=1)


def render(config: RunConfig, described: Description | None = None, gpu: Gpu | None = None) -> str:
    """The resolved settings and the description, as `--dry-run` prints them."""
    described = described or describe(config, gpu=gpu)
    return "\n".join((configs.to_yaml(config), *_lines(config, described, gpu)))


def _lines(config: RunConfig, described: Description, gpu: Gpu | None) -> Iterator[str]:
    sizes, data = described.shapes, config.data
    note = "" if sizes.channels_known else " (ingest decides; assumed here)"
    latent = f"{sizes.channels}, {sizes.height}, {sizes.width}]"
    yield f"config hash       {configs.config_hash(config)}"
    yield f"latent channels   {sizes.channels}{note}"
    yield f"SHORT window      {data.short_frames} frames -> latents [{sizes.short_frames}, {latent}"
    yield f"LONG window       {data.long_frames} frames -> latents [{sizes.long_frames}, {latent}"
    if data.has_buckets:
        counts = f"{len(data.cuts_of('long'))} LONG lengths, {len(data.sizes)} picture sizes"
        yield f"buckets           {counts}; the figures are for the largest"
    length = tokens(config, sizes.long_frames).clip
    yield f"tokens            {sizes.tokens_per_frame} per frame, {length} per LONG window"
    yield f"teacher, critic   {described.teacher_parameters:,} parameters"
    yield f"student           {described.student_parameters:,} parameters"
    scored = f"{scored_windows(config)} of {config.distill.window_frames} latent frames"
    yield f"scored windows    {scored} per rollout"
    cluster = config.cluster
    elastic = f" (at least {cluster.least_workers})" if cluster.least_workers < cluster.most_workers else ""
    where = f"{cluster.most_workers} {'GPU' if described.use_gpu else 'CPU core'}(s){elastic}"
    for cost in described.stages:
        fits = "" if gpu is None else f"; {'fits' if cost.bytes <= gpu.usable else 'does not fit'} {gpu.name}"
        yield (
            f"{cost.stage:<17} {cost.steps} steps, {cost.flops:.2g} FLOP, about {cost.seconds:,.0f} s on "
            f"{where}, {_mib(cost.bytes)} per worker{fits}"
        )
        flops = (f"{name.replace('_', ' ')} {value:.2g}" for name, value in cost.phases.items() if value)
        yield f"  FLOP per step   {', '.join(flops)}"
        parts = (f"{name.replace('_', ' ')} {_mib(value)}" for name, value in cost.parts.items() if value)
        yield f"  memory          {', '.join(parts)}"
        yield f"  a checkpoint    {_mib(cost.checkpoint)}"
        yield from _mesh_lines(cost, cluster)
    speed, on = (GPU_FLOPS, "a GPU") if described.use_gpu else (CPU_FLOPS, "a core")
    frames, videos, made = described.ingest, *described.evaluation
    if frames is None:
        yield f"ingest            about {INGEST_FRAMES:,.0f} frames a second on a core by pca"
    else:
        yield f"ingest            {frames:,} frames, about {frames / INGEST_FRAMES:,.0f} s on a core"
    if (learned := fit_seconds(config)) is not None:
        steps = config.autoencoder.fit_steps
        yield f"autoencoder       {steps:,} steps at ingest, about {learned:,.0f} s on a core"
    yield f"a sample          {described.sample:.2g} FLOP, about {described.sample / speed:,.2g} s on {on}"
    yield f"evaluation        {videos:,} videos, {made:.2g} FLOP, about {made / speed:,.0f} s on {on}"
    yield f"training          about {described.seconds:,.0f} s in all; nothing was read or written"


def _mesh_lines(cost: StageCost, cluster: ClusterConfig) -> Iterator[str]:
    """What a worker exchanges, how long a step takes, and what it takes on other meshes."""
    if cost.layers:
        kinds = (f"{_mib(size)} in a {letter} layer" for letter, size in cost.layers.items())
        yield f"  gets per step   {', '.join(kinds)}"
    if cost.pace:
        spent = [(name.replace("_", " "), one.seconds) for name, one in cost.pace.items() if one.seconds]
        waits = sum(one.exchange for one in cost.pace.values())
        whole = step_seconds(cost.pace)
        by_phase = ", ".join(f"{name} {seconds:,.1f}" for name, seconds in spent)
        hours = cost.seconds * cluster.most_workers / 3600
        yield f"  seconds a step  {by_phase}: {whole:,.1f}, of which {waits:,.1f} in exchanges"
        yield f"  the stage       about {hours:,.0f} GPU-hours (computed, {ASSUMED})"
    for number, mesh in enumerate(cost.meshes):
        yield f"  {'or' if number else 'smallest mesh':<15} {mesh}"


def _mib(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"
