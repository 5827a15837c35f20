"""Memory of one worker during a step of a stage, by what it holds.

Weights, gradients, moments and averages are float32 on every device; a worker holds all of them, or its part
where they are sharded, and what a block that computes has gathered. On a GPU the passes run in bfloat16
autocast, and autograd keeps a bfloat16 copy of the weights of linear layers for the length of a pass, or of
one block's computation where its activations are computed again. Of activations a worker holds those of its
frames where workers share clips, and every block's unless activation checkpointing computes them again.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jobs.config.schema import RunConfig
from jobs.config.shapes import scored_windows, shapes
from jobs.estimate.flops import Networks, Tokens, parameters, tokens, trained
from jobs.estimate.passes import SCORED
from models.ddt import Student
from pipelines.training.batches import HELD_OUT_WINDOWS
from pipelines.training.collectives import MESSAGE
from pipelines.training.config import StageConfig

FLOAT, HALF = 4, 2
"""Bytes of a number in float32 and bfloat16."""

MOMENTS = 2
"""AdamW's, per weight."""

LATENT_COPIES = 4
"""A step holds the data of a batch, and noise, mixture and velocity of what goes through at once."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that autograd keeps of one block, as tests/jobs/estimate/test_memory.py measures them."""

    width: int
    """Per token and unit of width."""
    hidden: int
    """Per token and unit of the feed-forward layers."""
    text: int
    """Per caption token and unit of width."""
    output: int
    """Per token and unit of width of the output layer."""


SIZES = {False: Sizes(92, 8, 16, 12), True: Sizes(70, 4, 14, 8)}
"""By whether the passes run in bfloat16."""

SAVED = ("weights", "moments", "average", "critic", "critic_moments")
"""Parts that a checkpoint holds: it is copied, and written while training goes on."""

NORMS = 10
"""Float32 numbers per token and block: means and deviations of the norms."""


def activations(config: RunConfig, read: Tokens, *, half: bool, alike: int = 1) -> int:
    """Bytes that autograd keeps of one clip through a plain stack, from its input to its output.

    With activation checkpointing: the inputs of all blocks, and everything of the one being recomputed; with
    the selective one also what self-attention gives in the others, and its log-sum-exps.

    Args:
        config: the run's settings.
        read: the clip.
        half: whether the pass runs in bfloat16.
        alike: workers that share its frames; these are the bytes of one with most of them.
    """
    model, size, number = config.model, SIZES[half], HALF if half else FLOAT
    width, frames = model.num_heads * model.head_dim, -(-read.frames // alike)
    own = frames * read.per_frame
    block = own * (size.width * width + size.hidden * model.ffn_dim)
    block += own * FLOAT * (NORMS + 2 * model.num_heads) + read.text * size.text * width
    rotations = own * model.head_dim * FLOAT
    thetas = len({model.rope_theta_windowed, model.rope_theta_global})
    # keys and values of the other workers' frames
    reaches = [model.window if letter == "W" else read.frames for letter in model.attention_pattern]
    seen = [min(read.frames, frames + 2 * reach) - frames for reach in reaches]
    fetched = [2 * more * read.per_frame * width * number for more in seen]
    kept = model.num_layers * block + sum(fetched)
    if config.cluster.activation_checkpointing != "none":
        kept = block + max(fetched) + model.num_layers * own * width * number
    if config.cluster.activation_checkpointing == "selective":
        kept += (model.num_layers - 1) * own * (width * number + model.num_heads * FLOAT)
    return kept + own * size.output * width + thetas * rotations


def footprint(config: RunConfig, stage: str, built: Networks, *, half: bool) -> dict[str, int]:
    """Bytes of one worker by part; with adapters the activations are an upper bound.

    Args:
        config: the run's settings.
        stage: the stage of training.
        built: the networks of that stage.
        half: whether the passes run in bfloat16.
    """
    number = HALF if half else FLOAT
    parts = {name: -(-size // shared_by(config)) for name, size in state(config, stage, built).items()}
    # beside a GPU it lies in main memory
    parts["checkpoint_copy"] = 0 if half else sum(parts[name] for name in SAVED if name in parts)
    parts |= _gathered(config, stage, built, half=half)
    if not parts["gathered_weights"] and config.cluster.most_workers > 1:
        parts["gradient_exchange"] = min(parts["gradients"], 2 * FLOAT * MESSAGE)

    passes, sizes, distill = _passes(config, stage), shapes(config), config.distill
    parts["activations"] = max(
        one.once * activations(config, tokens(config, one.frames), half=half, alike=one.alike)
        for one in passes
    )
    if stage == "distill" and config.loss.adversarial_weight:
        # the student's videos and their windows through the teacher are one graph
        video = _clips(config, distill, distill.rollout_batch, sizes.long_frames, together(config))
        graph = activations(config, tokens(config, sizes.long_frames), half=half, alike=video.alike)
        window = activations(config, tokens(config, distill.window_frames), half=half)
        graph += scored_windows(config) * window
        parts["activations"] = max(parts["activations"], video.once * graph)
    through = list(passes)
    if stage in SCORED:
        rollout = _clips(config, distill, distill.rollout_batch, sizes.long_frames, together(config))
        windows = -(-rollout.once * scored_windows(config) // together(config))
        through += [rollout, Passed(windows, windows, distill.window_frames)]
    most = max(
        one.once * -(-one.frames // one.alike) * tokens(config, one.frames).per_frame for one in through
    )
    # hidden units of the feed-forward layers, their gradients, the residual stream
    parts["temporaries"] = (
        most * (2 * config.model.ffn_dim + 4 * config.model.num_heads * config.model.head_dim) * number
    )

    frame = FLOAT * sizes.channels * sizes.height * sizes.width
    caption = FLOAT * config.text.max_tokens * config.text.dim
    held = sum(
        one.clips * (one.frames * frame + caption) + one.once * (LATENT_COPIES - 1) * one.frames * frame
        for one in passes
    )
    if stage in SCORED:
        copies = 1 if distill.first_latent == "masked" else 2
        held += copies * distill.rollout_pool * distill.rollout_batch * sizes.long_frames * frame
    elif config.data.holdout:
        frames = sizes.short_frames if stage == "teacher" else sizes.long_frames
        held += share(config, HELD_OUT_WINDOWS) * frames * frame
    parts["latents_and_text"] = held
    return parts


def _gathered(config: RunConfig, stage: str, built: Networks, *, half: bool) -> dict[str, int]:
    """What is whole in every worker for as long as a block computes: the weights of the block and of the next
    one, its gradients twice (they are added up from a copy), and what lies outside the blocks."""
    network = built.teacher if stage == "teacher" else built.student
    stacks = [network.encoder, *(network.heads.values() if isinstance(network, Student) else [network.head])]
    blocks = [block for stack in stacks for block in stack.blocks]  # type: ignore[attr-defined]
    block, around = max(map(parameters, blocks)), parameters(network) - sum(map(parameters, blocks))
    moving = max(map(trained, blocks)), trained(network) - sum(map(trained, blocks))
    sharded = shared_by(config) > 1
    computed_again = config.cluster.activation_checkpointing != "none"
    return {
        "bfloat16_weights": HALF * (block + around if computed_again else parameters(network)) if half else 0,
        "gathered_weights": FLOAT * (2 * block + around) if sharded else 0,
        "gradient_exchange": FLOAT * 2 * sum(moving) if sharded else 0,
    }


def shared_by(config: RunConfig) -> int:
    """Workers that have a part of the weights each."""
    cluster = config.cluster
    return {"none": 1, "full": cluster.most_workers, "hybrid": cluster.shard_group}[cluster.shard]


def state(config: RunConfig, stage: str, built: Networks) -> dict[str, int]:
    """Bytes of networks, gradients, moments and averages, over all workers that have parts of them.

    Student and critic have gradients one after the other; the warm-up never steps the student.
    """
    network = built.teacher if stage == "teacher" else built.student
    moves = 0 if stage == "warmup" else trained(network)
    parts = {
        "weights": FLOAT * parameters(network),
        "gradients": FLOAT * moves,
        "moments": FLOAT * MOMENTS * moves,
        "average": FLOAT * moves,
    }
    if stage in SCORED:
        critic, frozen = trained(built.critic), built.frozen_student
        anchored = stage == "distill" and (config.loss.anchor_weight or config.loss.forward_kl_weight)
        anchor = parameters(frozen.encoder) + parameters(frozen.heads["flow_matching"])
        parts |= {
            "gradients": FLOAT * max(moves, critic),
            "teacher": FLOAT * parameters(built.teacher),
            "anchor": FLOAT * anchor if anchored else 0,
            "critic": FLOAT * parameters(built.critic),
            "critic_moments": FLOAT * MOMENTS * critic if config.distill.critic_updates else 0,
        }
    return parts


def share(config: RunConfig, batch: int, alike: int = 1) -> int:
    """Most samples of a global batch that one worker takes: the first one, of the fewest workers, of which
    `alike` take the same ones."""
    return -(-batch // (config.cluster.least_workers // alike))


def together(config: RunConfig) -> int:
    """Workers that share the frames of a student's clips."""
    return config.cluster.context_parallel


class Passed(NamedTuple):
    """What goes through a network."""

    clips: int
    """Of one worker, in a step."""
    once: int
    """Of them at once."""
    frames: int
    """Latent ones of a clip."""
    alike: int = 1
    """Workers that share a clip's frames."""


def _clips(config: RunConfig, settings: StageConfig, batch: int, frames: int, alike: int) -> Passed:
    """One worker's part of a global batch."""
    own = share(config, batch, alike)
    return Passed(own, min(own, settings.micro_batch or own), frames, alike)


def _passes(config: RunConfig, stage: str) -> list[Passed]:
    """The passes with a graph; one graph lives at a time."""
    size, distill, alike = shapes(config), config.distill, together(config)
    critic = _clips(config, distill, distill.critic_batch, distill.window_frames, 1)
    if stage == "warmup":
        return [critic]
    settings = getattr(config, stage)
    if stage == "teacher":
        return [_clips(config, settings, settings.short_batch, size.short_frames, 1)]
    long = _clips(config, settings, settings.long_batch, size.long_frames, alike)
    if stage == "distill":
        return [long, _clips(config, settings, distill.rollout_batch, size.long_frames, alike), critic]
    return [_clips(config, settings, settings.short_batch, size.short_frames, alike), long]
