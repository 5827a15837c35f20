"""Floating-point operations of a network, added up layer by layer from the network itself.

A product of [m, k] and [k, n] is 2 m k n operations. Attention is two products over the pairs of tokens that
see each other, and four in the backward pass: what a kernel computes twice, or masks away, is not counted.
What activation checkpointing computes again counts with the backward pass.
A linear layer's backward pass is one product for its weights if they are trained, and one for its input if
anything before it is. Norms, activations and rotations are not counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from models.blocks import Block
from models.config import ModelConfig
from models.dit import Encoder, Head


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
