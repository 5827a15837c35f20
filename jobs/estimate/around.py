"""What a run takes around training: ingest, samples, evaluation and checkpoints."""

from jobs.config.schema import RunConfig
from jobs.config.shapes import shapes
from jobs.config.systems import planned_systems
from jobs.estimate.flops import Networks, parameters, stack_flops, tokens
from jobs.estimate.memory import FLOAT, state
from models.autoencoders.conv import BATCH, CROP
from pipelines.generation import Method

INGEST_FRAMES = 1100.0
"""Frames that a core decodes and encodes in a second by `pca` (benchmarks/results/ingest_cpu.json)."""

LEARNED_PIXELS = 780_000.0
"""Pixels that `conv` learns from in a second on a core (benchmarks/bench_autoencoders.py)."""

STUDENT = {"dm": "distribution_matching", "fm": "flow_matching"}


def sampling_flops(config: RunConfig, method: Method, built: Networks) -> float:
    """Operations of one LONG video."""
    sizes, student = shapes(config), built.frozen_student
    window, long = sizes.short_frames, sizes.long_frames
    if method.head == "teacher":
        encoder, head, frames = built.teacher.encoder, built.teacher.head, window
    else:
        shared = config.model.heads == "shared"
        name = "flow_matching" if shared else STUDENT[method.head]
        encoder, head, frames = student.encoder, student.heads[name], long  # type: ignore[assignment]
    once = stack_flops(encoder, head, config.model, tokens(config, frames)).forward
    return once * method.evaluations(long, window, config.sampling.guidance_scale)


def evaluation_cost(config: RunConfig, built: Networks) -> tuple[int, float]:
    """Videos of all systems, at most, and the operations that make them."""
    settings, videos, flops = config.evaluation, 0, 0.0
    per_draw = settings.videos + (min(settings.unseen_videos, settings.videos) if config.uses_world else 0)
    withheld = settings.withheld_videos if config.text.withheld_words else 0
    for _, system in planned_systems(config):
        own = per_draw * system.draws + withheld
        videos += own
        flops += own * sampling_flops(config, system.method, built)
    return videos, flops


def ingest_frames(config: RunConfig) -> int | None:
    """Frames of both corpora; None of folders, which nobody has counted."""
    world = config.world
    if not config.uses_world:
        return None
    return world.short_clips * world.short_frames + world.long_clips * world.long_frames


def fit_seconds(config: RunConfig) -> float | None:
    """Seconds in which a core learns the autoencoder; None where it is not learned in steps."""
    if config.autoencoder.kind != "conv":
        return None
    pixels = min(config.data.height, CROP) * min(config.data.width, CROP)
    return config.autoencoder.fit_steps * BATCH * pixels / LEARNED_PIXELS


def checkpoint_bytes(config: RunConfig, stage: str, built: Networks) -> int:
    """Weights, averages, moments and rollouts of a checkpoint."""
    parts = state(config, stage, built)
    network = built.teacher if stage == "teacher" else built.student
    sizes, distill = shapes(config), config.distill
    kept = ("weights", "moments", "critic", "critic_moments")
    held = sum(parts.get(name, 0) for name in kept) + FLOAT * parameters(network)
    if "critic" in parts:
        frame = sizes.channels * sizes.height * sizes.width
        copies = 1 if distill.first_latent == "masked" else 2
        held += FLOAT * copies * distill.rollout_pool * distill.rollout_batch * sizes.long_frames * frame
    return held
