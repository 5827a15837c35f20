"""`--dry-run`: what a run would do. Sizes come from the networks themselves, built without memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from jobs import config as configs
from jobs import shapes
from jobs.settings import STAGES, RunConfig
from models.ddt import Student
from models.dit import DiT
from pipelines.training.config import StageConfig, WarmupConfig

CPU_FLOPS, GPU_FLOPS = 5e10, 1.5e14
"""Floating-point operations a second of a CPU core (measured: 47-62e9 in training) and a GPU (assumed)."""

NUMBER_BYTES = 4
"""Weights, gradients, moments and averages are float32."""

TRAINED, FROZEN = 5, 1
"""Copies of the weights in memory: weight, gradient, two moments, average; or the weight alone."""


@dataclass(frozen=True)
class StageCost:
    """What one stage would take."""

    stage: str
    steps: int
    flops: float
    """Floating-point operations in all."""
    state_bytes: int
    """Weights, gradients, optimiser and averages that a worker holds; activations come on top."""


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


def describe(config: RunConfig) -> Description:
    """Build the networks on torch's meta device and add up what training would cost."""
    sizes = shapes.shapes(config)
    with torch.device("meta"):
        teacher = DiT(config.model, sizes.channels, config.text.dim)
        student = Student(config.model, sizes.channels, config.text.dim)
    counts = (_count(teacher), _count(student))
    windows = shapes.scored_windows(config)
    costs = tuple(_stage_cost(config, stage, *counts, windows) for stage in STAGES if _runs(config, stage))
    return Description(
        shapes=sizes,
        teacher_parameters=counts[0],
        student_parameters=counts[1],
        windows=windows,
        stages=costs,
        workers=config.cluster.num_workers,
        use_gpu=config.cluster.use_gpu,
    )


def render(config: RunConfig) -> str:
    """The resolved settings and the description, as `--dry-run` prints them."""
    described = describe(config)
    return "\n".join((configs.to_yaml(config), *_lines(config, described)))


def forward_flops(config: RunConfig, parameters: int, frames: int) -> float:
    """Operations of one clip through a plain stack: 2 P N, and 4 N M D of each block's attention."""
    tokens_per_frame = shapes.shapes(config).tokens_per_frame
    steps = frames // config.model.patch_size[0]
    tokens, width = steps * tokens_per_frame, config.model.num_heads * config.model.head_dim
    seen = {"G": steps, "W": min(steps, 2 * config.model.window + 1)}
    attended = sum(seen[kind] * tokens_per_frame for kind in config.model.attention_pattern)
    return 2.0 * parameters * tokens + 4.0 * tokens * attended * width


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _runs(config: RunConfig, stage: str) -> bool:
    """Pretrained weights replace the teacher's stage, and the warm-up may have no steps."""
    if stage == "teacher":
        return config.model.pretrained is None
    return stage != "warmup" or config.warmup.steps > 0


def _stage_cost(config: RunConfig, stage: str, teacher: int, student: int, windows: int) -> StageCost:
    """Operations and state of a stage; a training pass is three forward passes."""
    settings: StageConfig | WarmupConfig
    if stage == "warmup":
        step, settings = _critic_flops(config, teacher), config.warmup
    elif stage == "distill":
        step = _supervised_flops(config, config.distill, teacher) + _critic_flops(config, teacher)
        step += _score_flops(config, teacher, windows)
        settings = config.distill
    else:
        settings = getattr(config, stage)
        step = _supervised_flops(config, getattr(config, stage), teacher)
    copies = TRAINED * (teacher if stage == "teacher" else student)
    if stage in ("warmup", "distill"):
        copies += (TRAINED + FROZEN) * teacher + (FROZEN * student if config.loss.anchor_weight else 0)
    return StageCost(stage, settings.steps, step * settings.steps, copies * NUMBER_BYTES)


def _supervised_flops(config: RunConfig, stage: StageConfig, teacher: int) -> float:
    """One flow-matching step on SHORT and LONG."""
    sizes = shapes.shapes(config)
    short = stage.short_batch * forward_flops(config, teacher, sizes.short_frames)
    return 3 * (short + stage.long_batch * forward_flops(config, teacher, sizes.long_frames))


def _critic_flops(config: RunConfig, teacher: int) -> float:
    """One rollout without gradients, and the critic's steps on its windows."""
    distill, exits = config.distill, len(config.sampling.steps)
    rollout = (exits + 1) / 2 * distill.rollout_batch
    trained = 3 * max(distill.critic_updates, 1) * distill.critic_batch
    return rollout * forward_flops(
        config, teacher, shapes.shapes(config).long_frames
    ) + trained * forward_flops(config, teacher, distill.window_frames)


def _score_flops(config: RunConfig, teacher: int, windows: int) -> float:
    """Teacher and critic on every scored window, and the backward pass through the rollout's last step."""
    calls = 2 if config.loss.guidance_scale == 1.0 else 3
    scored = calls * windows * forward_flops(config, teacher, config.distill.window_frames)
    backward = 2 * forward_flops(config, teacher, shapes.shapes(config).long_frames)
    return config.distill.rollout_batch * (scored + backward)


def _lines(config: RunConfig, described: Description) -> Iterator[str]:
    sizes = described.shapes
    note = "" if sizes.channels_known else " (ingest decides; assumed here)"
    yield f"config hash       {configs.config_hash(config)}"
    yield f"latent channels   {sizes.channels}{note}"
    data, tokens = config.data, sizes.tokens_per_frame
    yield f"SHORT window      {data.short_frames} frames -> latents {_shape(sizes, sizes.short_frames)}"
    yield f"LONG window       {data.long_frames} frames -> latents {_shape(sizes, sizes.long_frames)}"
    yield f"tokens            {tokens} a frame, {tokens * sizes.long_frames} a LONG window"
    yield f"teacher, critic   {described.teacher_parameters:,} parameters"
    yield f"student           {described.student_parameters:,} parameters"
    yield f"scored windows    {described.windows} of {config.distill.window_frames} latent frames a rollout"
    where = "GPU" if described.use_gpu else "CPU core"
    for stage in described.stages:
        yield (
            f"{stage.stage:<17} {stage.steps} steps, {stage.flops:.2g} FLOP, about "
            f"{stage_seconds(described, stage):,.0f} s on {described.workers} {where}(s), "
            f"state {stage.state_bytes / 2**20:,.0f} MiB a worker"
        )
    yield f"training          about {described.seconds:,.0f} s in all; nothing was read or written"


def _shape(sizes: shapes.Shapes, frames: int) -> str:
    return f"[{frames}, {sizes.channels}, {sizes.height}, {sizes.width}]"
