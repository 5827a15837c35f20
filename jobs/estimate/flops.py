"""Floating-point operations of a step, added up layer by layer from the networks of its stage.

A product of [m, k] and [k, n] is 2 m k n operations. Attention is two products over the pairs of tokens that
see each other, and four in the backward pass: what a kernel computes twice, or masks away, is not counted.
What activation checkpointing computes again counts with the backward pass.
A linear layer's backward pass is one product for its weights if they are trained, and one for its input if
anything before it is. Norms, activations and rotations are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from jobs.config.schema import RunConfig
from jobs.estimate.shapes import scored_windows, shapes
from models.blocks import Block, checkpoint_blocks
from models.config import LoraConfig, ModelConfig
from models.ddt import HeadName, Student
from models.dit import DiT, Encoder, Head
from models.lora import add_adapters
from pipelines.training.config import StageConfig
from pipelines.training.supervised import freeze_unused_head

SCORED = ("warmup", "distill")
"""Stages with a critic and a frozen teacher."""


@dataclass(frozen=True)
class Networks:
    """The networks of a stage on torch's meta device, as the stage trains them."""

    teacher: DiT
    """All weights trained: the teacher's stage, or the shape of a frozen one."""
    student: Student
    critic: DiT
    frozen_student: Student
    """The long-SFT network that the student starts from."""


def networks(config: RunConfig, stage: str) -> Networks:
    """The networks of a stage, adapters and frozen heads as the trainer sets them; not to be changed.

    Raises:
        ConfigError: adapters are asked for, and peft is not installed.
    """
    lora = config.lora if stage in config.lora.stages else LoraConfig()
    size = config.model, shapes(config).channels, config.text.dim
    return _built(size, lora, stage in SCORED, config.cluster.activation_checkpointing)


@lru_cache(maxsize=8)
def _built(
    size: tuple[ModelConfig, int, int], lora: LoraConfig, scored: bool, checkpointed: bool
) -> Networks:
    with torch.device("meta"):
        built = Networks(DiT(*size), Student(*size), DiT(*size), Student(*size))
    if lora.rank:
        add_adapters(built.student, lora)
        add_adapters(built.critic, lora)
    if not scored:
        freeze_unused_head(built.student)
    if checkpointed:
        for network in (built.teacher, built.student, built.critic):
            checkpoint_blocks(network)
    return built


def parameters(module: nn.Module) -> int:
    """Parameter count."""
    return sum(parameter.numel() for parameter in module.parameters())


def trained(module: nn.Module) -> int:
    """Trainable parameter count."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class Flops:
    """Operations of the forward pass, and of the backward pass that may follow it."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.forward * times, self.backward * times)


@dataclass(frozen=True)
class Tokens:
    """What a network reads of one clip.

    Args:
        frames: token frames.
        per_frame: tokens a frame.
        text: tokens of the caption.
        clips: those that are read together: the layer of clip positions serves all of them at once.
    """

    frames: int
    per_frame: int
    text: int
    clips: int = 1

    @property
    def clip(self) -> int:
        """Tokens of the clip."""
        return self.frames * self.per_frame

    def pairs(self, window: int | None) -> int:
        """Pairs of tokens that see each other; `window` frames to each side, None is all."""
        reach = self.frames if window is None else window
        seen = (min(i + reach, self.frames - 1) - max(i - reach, 0) + 1 for i in range(self.frames))
        return sum(seen) * self.per_frame**2


def stack_flops(encoder: Encoder, head: Head, config: ModelConfig, tokens: Tokens) -> Flops:
    """One clip through an encoder and a head, with the gradients that their `requires_grad` asks for."""
    count = _Count(tokens, config.num_heads * config.head_dim)
    count.conditions(encoder)
    for block in (*encoder.blocks, *head.blocks):
        assert isinstance(block, Block)
        count.block(block)
    count.moving |= head.scale_shift_table.requires_grad
    count.linear(head.proj_out, tokens.clip, count.moving)
    return count.total


class _Count:
    """Adds up a stack from its input on; `moving` tells whether what came before is trained."""

    def __init__(self, tokens: Tokens, width: int) -> None:
        self.tokens, self.width = tokens, width
        self.total = Flops()
        self.moving = False
        self.context_moves = False

    def linear(self, layer: nn.Module, rows: float, moves: bool) -> bool:
        """One linear layer; whether its output depends on something that is trained."""
        weight = layer.weight
        assert isinstance(weight, nn.Parameter)
        forward = 2.0 * rows * weight.numel()
        self.total += Flops(forward, forward * (int(weight.requires_grad) + int(moves)))
        return moves or weight.requires_grad

    def conditions(self, encoder: Encoder) -> None:
        """Patches, the place in the clip, the time (one a clip) and the caption."""
        self.moving = self.linear(encoder.patch_embedding, self.tokens.clip, False)
        if encoder.clip_position is not None:
            self.moving |= self.linear(encoder.clip_position, self.tokens.frames / self.tokens.clips, False)
        embedder = encoder.condition_embedder
        time = self.linear(embedder.time_embedder.linear_1, 1, False)
        time = self.linear(embedder.time_embedder.linear_2, 1, time)
        self.moving |= self.linear(embedder.time_proj, 1, time)
        caption = self.linear(embedder.text_embedder.linear_1, self.tokens.text, False)
        self.context_moves = self.linear(embedder.text_embedder.linear_2, self.tokens.text, caption)

    def block(self, block: Block) -> None:
        """Both attentions and the feed-forward layers; twice where the backward pass computes them again."""
        before = self.total.forward
        tokens, own, cross = self.tokens, block.attn1, block.attn2
        moves = self.moving or block.scale_shift_table.requires_grad
        projected = [self.layers(layer, tokens.clip, moves) for layer in (own.to_q, own.to_k, own.to_v)]
        self.moving = self.attention(tokens.pairs(own.window), *projected)
        self.moving = self.layers(own.to_out[0], tokens.clip, self.moving)
        query = self.layers(cross.to_q, tokens.clip, self.moving or _trains(block.norm2))
        context = [self.layers(layer, tokens.text, self.context_moves) for layer in (cross.to_k, cross.to_v)]
        self.moving = self.attention(tokens.clip * tokens.text, query, *context)
        for layer in (cross.to_out[0], block.ffn.net[0].proj, block.ffn.net[2]):
            assert isinstance(layer, nn.Module)
            self.moving = self.layers(layer, tokens.clip, self.moving)
        if block.checkpointed and self.moving:
            self.total += Flops(0.0, self.total.forward - before)

    def layers(self, module: nn.Module, rows: int, moves: bool) -> bool:
        """A linear layer, or one with an adapter: the base, down to the rank, and up again."""
        moved = moves
        for name, layer in _linears(module):
            moved |= self.linear(layer, rows, moved if "lora_B" in name else moves)
        return moved

    def attention(self, pairs: int, query: bool, key: bool, value: bool) -> bool:
        """Two products over the pairs; backward one for each that moves, and one for their weights."""
        product = 2.0 * pairs * self.width
        backward = (query or key) + query + key + value
        self.total += Flops(2 * product, backward * product)
        return query or key or value


def _linears(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear))


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def tokens(config: RunConfig, frames: int, clips: int = 1) -> Tokens:
    """What a network reads of clips of `frames` latent frames; captions count with all their tokens."""
    steps = frames // config.model.patch_size[0]
    return Tokens(steps, shapes(config).tokens_per_frame, config.text.max_tokens, clips)


def plain_flops(config: RunConfig, network: DiT, frames: int) -> Flops:
    """One clip through the teacher or the critic."""
    return stack_flops(network.encoder, network.head, config.model, tokens(config, frames))


def student_flops(config: RunConfig, student: Student, name: HeadName, frames: int, clips: int) -> Flops:
    """One of `clips` clips through the student's encoder and one head."""
    head = student.heads[name if config.model.heads == "decoupled" else "flow_matching"]
    read = tokens(config, frames, clips)
    return stack_flops(student.encoder, head, config.model, read)  # type: ignore[arg-type]


def phases(config: RunConfig, stage: str, built: Networks) -> dict[str, float]:
    """Operations of one step by phase.

    A rollout stops at a step drawn at random, so that its part, and the anchor's, are means.
    """
    if stage == "teacher":
        size = shapes(config).short_frames
        one = plain_flops(config, built.teacher, size) * config.teacher.short_batch
        return {"forward": one.forward, "backward": one.backward}
    if stage not in ("warmup", "distill"):
        return _supervised(config, getattr(config, stage), built.student)
    shared = {"rollout": _rollout(config, built), **_critic(config, built)}
    if stage == "warmup":
        return shared
    return _supervised(config, config.distill, built.student) | shared | _student(config, built)


def _supervised(config: RunConfig, stage: StageConfig, student: Student) -> dict[str, float]:
    size, total = shapes(config), Flops()
    for batch, frames in ((stage.short_batch, size.short_frames), (stage.long_batch, size.long_frames)):
        if batch:
            total += student_flops(config, student, "flow_matching", frames, batch) * batch
    return {"forward": total.forward, "backward": total.backward}


def _one(config: RunConfig, built: Networks) -> Flops:
    """One LONG clip through the student's DM head."""
    clips = config.distill.rollout_batch
    return student_flops(config, built.student, "distribution_matching", shapes(config).long_frames, clips)


def _rollout(config: RunConfig, built: Networks) -> float:
    """Forward passes up to the exit step, which carries the graph."""
    passes = (len(config.sampling.steps) + 1) / 2
    return passes * config.distill.rollout_batch * _one(config, built).forward


def _student(config: RunConfig, built: Networks) -> dict[str, float]:
    """Backward pass of the exit step, the scores, and the anchor when the exit step is the first."""
    distill, rows = config.distill, config.distill.rollout_batch
    windows = rows * scored_windows(config)
    teacher_calls = 1 if config.loss.guidance_scale == 1 else 2
    frozen = plain_flops(config, built.teacher, distill.window_frames).forward
    critic = plain_flops(config, built.critic, distill.window_frames).forward
    share = bool(config.loss.anchor_weight) / len(config.sampling.steps)
    reference = student_flops(config, built.frozen_student, "flow_matching", shapes(config).long_frames, rows)
    return {
        "student_backward": rows * _one(config, built).backward,
        "score_teacher": windows * teacher_calls * frozen,
        "score_critic": windows * critic,
        "anchor": rows * share * reference.forward,
    }


def _critic(config: RunConfig, built: Networks) -> dict[str, float]:
    distill = config.distill
    one = plain_flops(config, built.critic, distill.window_frames)
    updates = one * (distill.critic_updates * distill.critic_batch)
    return {"critic_forward": updates.forward, "critic_backward": updates.backward}
