"""Memory of one worker while a stage takes a step, by what it is spent on.

Weights, gradients, moments and averages are float32 on every device. On a GPU the passes run in bfloat16
autocast, and autograd keeps a bfloat16 copy of the weights of linear layers for the length of a pass. Nothing
is sharded: every worker holds all of it, and every block's activations unless activation checkpointing keeps
their inputs alone.
"""

from dataclasses import dataclass

from jobs.config.schema import RunConfig
from jobs.estimate.flops import SCORED, Networks, Tokens, parameters, tokens, trained
from jobs.estimate.shapes import scored_windows, shapes
from models.ddt import Student
from pipelines.training.batches import HELD_OUT_WINDOWS
from pipelines.training.collectives import MESSAGE

FLOAT, HALF = 4, 2
"""Bytes of a number in float32 and bfloat16."""

MOMENTS = 2
"""Of AdamW, beside each weight."""

LATENT_COPIES = 4
"""Of a batch in a step: data, noise, their mixture and the velocity."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that autograd keeps of one block, measured in both precisions
    (tests/jobs/estimate/test_memory.py).

    Args:
        width: bytes a token and unit of width.
        hidden: bytes a token and unit of the feed-forward layers.
        text: bytes a caption's token and unit of width.
        output: bytes a token and unit of width of the output layer.
    """

    width: int
    hidden: int
    text: int
    output: int


SIZES = {False: Sizes(92, 8, 16, 12), True: Sizes(70, 4, 14, 8)}
"""By whether the passes run in bfloat16."""

NORMS = 10
"""Float32 numbers a token and block: means and deviations of the norms."""


def activations(config: RunConfig, read: Tokens, *, half: bool) -> int:
    """Bytes that autograd keeps of one clip through a plain stack, from its input to its output.

    With activation checkpointing, the inputs of all blocks and what the one keeps that is computed again.
    """
    model, size = config.model, SIZES[half]
    width = model.num_heads * model.head_dim
    block = read.clip * (size.width * width + size.hidden * model.ffn_dim)
    block += read.clip * FLOAT * (NORMS + 2 * model.num_heads) + read.text * size.text * width
    rotations = read.clip * model.head_dim * FLOAT
    thetas = len({model.rope_theta_windowed, model.rope_theta_global})
    kept = model.num_layers * block
    if config.cluster.activation_checkpointing:
        kept = block + model.num_layers * read.clip * width * (HALF if half else FLOAT)
    return kept + read.clip * size.output * width + thetas * rotations


def footprint(config: RunConfig, stage: str, built: Networks, *, half: bool) -> dict[str, int]:
    """Bytes of one worker by part; with adapters the activations are an upper bound.

    Args:
        config: the run's settings.
        stage: its stage.
        built: the networks of that stage.
        half: whether the passes run in bfloat16.
    """
    parts = _scored(config, stage, built) if stage in SCORED else _supervised(stage, built)
    largest = parameters(built.student if stage != "teacher" else built.teacher)
    parts["bfloat16_weights"] = HALF * largest if half else 0
    message = min(parts["gradients"], 2 * FLOAT * MESSAGE)
    parts["gradient_exchange"] = message if config.cluster.num_workers > 1 else 0
    parts["activations"] = max(
        clips * activations(config, tokens(config, frames), half=half)
        for clips, frames in _passes(config, stage)
    )
    parts["temporaries"] = _temporaries(config, stage, half=half)
    parts["latents_and_text"] = _latents(config, stage)
    return parts


def _supervised(stage: str, built: Networks) -> dict[str, int]:
    network = built.teacher if stage == "teacher" else built.student
    moves = trained(network)
    return {
        "weights": FLOAT * parameters(network),
        "gradients": FLOAT * moves,
        "moments": FLOAT * MOMENTS * moves,
        "average": FLOAT * moves,
    }


def _scored(config: RunConfig, stage: str, built: Networks) -> dict[str, int]:
    """Student and critic have gradients one after the other; the warm-up never steps the student."""
    student, critic = trained(built.student), trained(built.critic)
    warm = stage == "warmup"
    return {
        "weights": FLOAT * parameters(built.student),
        "gradients": FLOAT * (critic if warm else max(student, critic)),
        "moments": 0 if warm else FLOAT * MOMENTS * student,
        "average": 0 if warm else FLOAT * student,
        "teacher": FLOAT * parameters(built.teacher),
        "anchor": 0 if warm or not config.loss.anchor_weight else FLOAT * _anchor(built.frozen_student),
        "critic": FLOAT * parameters(built.critic),
        "critic_moments": FLOAT * MOMENTS * critic if config.distill.critic_updates else 0,
    }


def _anchor(student: Student) -> int:
    """Numbers of the encoder and the FM head."""
    return parameters(student.encoder) + parameters(student.heads["flow_matching"])


def share(config: RunConfig, batch: int) -> int:
    """Samples of a global batch that one worker takes."""
    return -(-batch // config.cluster.num_workers)


def _passes(config: RunConfig, stage: str) -> list[tuple[int, int]]:
    """Clips a worker and their latent frames, of each pass with a graph; one graph lives at a time."""
    size, distill = shapes(config), config.distill
    critic = (share(config, distill.critic_batch), distill.window_frames)
    if stage == "warmup":
        return [critic]
    settings = getattr(config, stage)
    short = (share(config, settings.short_batch), size.short_frames)
    long = (share(config, settings.long_batch), size.long_frames)
    if stage == "distill":
        return [long, (share(config, distill.rollout_batch), size.long_frames), critic]
    return [short, long]


def _temporaries(config: RunConfig, stage: str, *, half: bool) -> int:
    """Feed-forward layers of the largest pass: hidden numbers, their gradients, the residual stream."""
    clips = _passes(config, stage)
    if stage in SCORED:
        rows = share(config, config.distill.rollout_batch)
        clips += [(rows * scored_windows(config), config.distill.window_frames)]
        clips += [(rows, shapes(config).long_frames)]
    most = max(rows * tokens(config, frames).clip for rows, frames in clips)
    width = config.model.num_heads * config.model.head_dim
    return most * (2 * config.model.ffn_dim + 4 * width) * (HALF if half else FLOAT)


def _latents(config: RunConfig, stage: str) -> int:
    """Batches with their captions, rollouts kept for the critic, and held-out windows."""
    size = shapes(config)
    frame = FLOAT * size.channels * size.height * size.width
    caption = FLOAT * config.text.max_tokens * config.text.dim
    held = sum(clips * (LATENT_COPIES * frames * frame + caption) for clips, frames in _passes(config, stage))
    if stage in SCORED:
        return held + config.distill.rollout_pool * config.distill.rollout_batch * size.long_frames * frame
    frames = size.short_frames if stage == "teacher" else size.long_frames
    return held + (share(config, HELD_OUT_WINDOWS) * frames * frame if config.data.holdout else 0)
