"""Floating-point operations per step, added up layer by layer from the networks of a stage.

A product of [m, k] and [k, n] is 2 m k n operations. Attention is two products over the pairs of tokens that
see each other, and four in the backward pass; what a kernel recomputes or masks away is not counted.
What activation checkpointing recomputes counts with the backward pass. A linear layer's backward pass is one
product for its weights if they are trained, and one for its input if anything before it is. Norms,
activations and rotations are not counted.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from jobs.config.schema import RunConfig
from jobs.config.shapes import shapes
from jobs.estimate.passes import ALL, SCORED, Pass, Place, passes
from models.blocks import Block, checkpoint_blocks
from models.config import Checkpointing, LoraConfig, ModelConfig
from models.ddt import Student
from models.dit import DiT, Encoder, Head
from models.lora import add_adapters
from pipelines.training.supervised import freeze_unused_head

SHARING = ("student", "frozen_student")
"""Networks whose clips workers share the frames of."""


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
    """The networks of a stage, adapters and frozen heads as the trainer sets them; shared, so read-only.

    Raises:
        ConfigError: adapters are asked for, and peft is not installed.
    """
    lora = config.lora if stage in config.lora.stages else LoraConfig()
    size = config.model, shapes(config).channels, config.text.dim
    exits = len(config.sampling.steps)
    return _built(size, exits, lora, stage in SCORED, config.cluster.activation_checkpointing)


@lru_cache(maxsize=8)
def _built(
    size: tuple[ModelConfig, int, int],
    exits: int,
    lora: LoraConfig,
    scored: bool,
    checkpointing: Checkpointing,
) -> Networks:
    with torch.device("meta"):
        built = Networks(DiT(*size), Student(*size), DiT(*size, exits=exits), Student(*size))
    if lora.rank:
        add_adapters(built.student, lora)
        add_adapters(built.critic, lora)
    if not scored:
        freeze_unused_head(built.student)
    for network in (built.teacher, built.student, built.critic):
        checkpoint_blocks(network, checkpointing)
    return built


@lru_cache(maxsize=512)
def parameters(module: nn.Module) -> int:
    """Parameter count of a network that stays as it is."""
    return sum(parameter.numel() for parameter in module.parameters())


@lru_cache(maxsize=512)
def trained(module: nn.Module) -> int:
    """Trainable parameter count, likewise."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class Flops:
    """Operations of a forward pass, and of the backward pass that may follow it."""

    forward: float = 0.0
    backward: float = 0.0

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> "Flops":
        return Flops(self.forward * times, self.backward * times)


@dataclass(frozen=True)
class Tokens:
    """What a network reads per clip.

    Args:
        frames: token frames.
        per_frame: tokens per frame.
        text: tokens per caption.
        clips: clips in the batch, which share one pass through the clip-position layer.
        own: token frames that are computed; None is all.
    """

    frames: int
    per_frame: int
    text: int
    clips: int = 1
    own: range | None = None

    @property
    def computed(self) -> range:
        """Token frames that are computed."""
        return range(self.frames) if self.own is None else self.own

    @property
    def clip(self) -> int:
        """Tokens of a clip that are computed."""
        return len(self.computed) * self.per_frame

    def pairs(self, window: int | None) -> int:
        """Pairs of computed tokens and those they see; `window` frames to each side, None is all."""
        reach = self.frames if window is None else window
        seen = (min(i + reach, self.frames - 1) - max(i - reach, 0) + 1 for i in self.computed)
        return sum(seen) * self.per_frame**2


def tokens(config: RunConfig, frames: int, clips: int = 1) -> Tokens:
    """What a network reads of clips of `frames` latent frames; captions count with all their tokens."""
    steps = frames // config.model.patch_size[0]
    return Tokens(steps, shapes(config).tokens_per_frame, config.text.max_tokens, clips)


@lru_cache(maxsize=256)
def stack_flops(
    encoder: Encoder, head: Head, config: ModelConfig, tokens: Tokens, *, detached: bool = False
) -> Flops:
    """One clip through an encoder and a head, which stay as they are, with the gradients that their
    `requires_grad` asks for; of a `detached` head nothing reaches the encoder."""
    count = _Count(tokens, config.num_heads * config.head_dim)
    count.conditions(encoder)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        count.block(block)
    if detached:
        count.total, count.moving, count.context_moves = Flops(count.total.forward), False, False
    for block in head.blocks:
        assert isinstance(block, Block)
        count.block(block)
    count.moving |= head.scale_shift_table.requires_grad
    count.linear(head.proj_out, tokens.clip, count.moving)
    return count.total


class _Count:
    """Adds up a stack from its input on; `moving` says whether anything so far is trained."""

    def __init__(self, tokens: Tokens, width: int) -> None:
        self.tokens, self.width = tokens, width
        self.total = Flops()
        self.moving = False
        self.context_moves = False

    def linear(self, module: nn.Module, rows: float, moves: bool) -> bool:
        """A linear layer, or one with an adapter: the base, down to the rank, and up again.

        Returns:
            Whether its output depends on anything that is trained.
        """
        moved = moves
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv3d):
                below = moved if "lora_B" in name else moves
                forward = 2.0 * rows * layer.weight.numel()
                self.total += Flops(forward, forward * (int(layer.weight.requires_grad) + int(below)))
                moved |= below or layer.weight.requires_grad
        return moved

    def conditions(self, encoder: Encoder) -> None:
        """Patches, the place in the clip, the time (once per clip) and the caption."""
        self.moving = self.linear(encoder.patch_embedding, self.tokens.clip, False)
        if encoder.clip_position is not None:
            places = len(self.tokens.computed) / self.tokens.clips
            self.moving |= self.linear(encoder.clip_position, places, False)
        embedder = encoder.condition_embedder
        time = self.linear(embedder.time_embedder.linear_1, 1, False)
        time = self.linear(embedder.time_embedder.linear_2, 1, time)
        time |= encoder.exits is not None and encoder.exits.weight.requires_grad
        self.moving |= self.linear(embedder.time_proj, 1, time)
        caption = self.linear(embedder.text_embedder.linear_1, self.tokens.text, False)
        self.context_moves = self.linear(embedder.text_embedder.linear_2, self.tokens.text, caption)

    def block(self, block: Block) -> None:
        """Both attentions and the feed-forward layers; what the backward pass recomputes of them twice."""
        before, kept = self.total.forward, 0.0
        tokens, own, cross = self.tokens, block.attn1, block.attn2
        moves = self.moving or block.scale_shift_table.requires_grad
        projected = [self.linear(layer, tokens.clip, moves) for layer in (own.to_q, own.to_k, own.to_v)]
        attended = self.total.forward
        self.moving = self.attention(tokens.pairs(own.window), *projected)
        if block.checkpointing == "selective":
            kept = self.total.forward - attended
        self.moving = self.linear(own.to_out[0], tokens.clip, self.moving)
        norm_trained = any(parameter.requires_grad for parameter in block.norm2.parameters())
        query = self.linear(cross.to_q, tokens.clip, self.moving or norm_trained)
        context = [self.linear(layer, tokens.text, self.context_moves) for layer in (cross.to_k, cross.to_v)]
        self.moving = self.attention(tokens.clip * tokens.text, query, *context)
        for layer in (cross.to_out[0], block.ffn.net[0].proj, block.ffn.net[2]):
            assert isinstance(layer, nn.Module)
            self.moving = self.linear(layer, tokens.clip, self.moving)
        if block.checkpointing != "none" and self.moving:
            self.total += Flops(0.0, self.total.forward - before - kept)

    def attention(self, pairs: int, query: bool, key: bool, value: bool) -> bool:
        """Two products over the pairs; backward, one for each operand that moves and one for the weights."""
        product = 2.0 * pairs * self.width
        backward = (query or key) + query + key + value
        self.total += Flops(2 * product, backward * product)
        return query or key or value


def phases(config: RunConfig, stage: str, built: Networks, place: Place = ALL) -> dict[str, float]:
    """Operations of one step by phase: of all workers, or of the one at a place."""
    found: dict[str, float] = {}
    for one in passes(config, stage, place):
        network = getattr(built, one.role)
        read = tokens(config, one.frames, one.together)
        if one.role in SHARING:
            read = replace(read, own=place.own(read.frames))
        once = stack_flops(network.encoder, head_of(network, one), config.model, read, detached=one.detached)
        found[one.phase] = found.get(one.phase, 0.0) + one.clips * (
            once.backward if one.backward else once.forward
        )
    return found


def head_of(network: DiT | Student, one: Pass) -> Head:
    """The head that a pass goes through."""
    if isinstance(network, DiT):
        return network.head
    assert one.head is not None
    head = network.heads[one.head if network.config.heads == "decoupled" else "flow_matching"]
    assert isinstance(head, Head)
    return head
