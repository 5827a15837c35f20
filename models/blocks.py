"""The transformer block of Wan 2.1, with one time per frame and self-attention windowed over frames.

B batch, T latent frames, S tokens per frame, N = T S tokens, D width, H heads, d = D / H, L text tokens.
Modules are named as in diffusers' WanTransformer3DModel, so its weights load by name.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, noop_context_fn

from kernels.ops import dense_attention, window_attention
from kernels.recompute import kept_attention
from models.config import Checkpointing, ModelConfig
from models.context import Context


class TokenGrid(NamedTuple):
    """Tokens of a clip along each axis, and the frames whose tokens are computed here."""

    frames: int
    height: int
    width: int
    own: range

    @classmethod
    def whole(cls, frames: int, height: int, width: int) -> "TokenGrid":
        """All frames are computed here."""
        return cls(frames, height, width, range(frames))


def precise(x: Tensor) -> Tensor:
    """x in float32, or in float64 if that is its own type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalised over the last axis without affine weights, in float32."""
    return F.layer_norm(precise(x), x.shape[-1:], eps=eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with affine weights, in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32, weight, bias = precise(x), self.weight, self.bias
        return F.layer_norm(x32, x.shape[-1:], weight.to(x32), bias.to(x32), self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the full width: Wan normalises q and k across heads."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(precise(x).square().mean(-1, keepdim=True) + self.eps)
        return (precise(x) * scale).to(x.dtype) * self.weight


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that rotate with time, height and width: d - 4 floor(d/6), 2 floor(d/6) twice."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def frequencies(channels: int, theta: float) -> Tensor:
    """The channels/2 angular frequencies theta^(-2i/channels) of one axis, float64, radians per position."""
    return theta ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)


@lru_cache(maxsize=64)
def rotations(grid: TokenGrid, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, d/2], float32, of the rotary angles of a grid's own tokens in raster order."""
    angles = []
    places = grid.own, range(grid.height), range(grid.width)
    sizes = [len(place) for place in places]
    for axis, (place, channels) in enumerate(zip(places, axis_channels(head_dim), strict=True)):
        angle = torch.outer(torch.tensor(place, dtype=torch.float64), frequencies(channels, theta))
        shape = [1, 1, 1, channels // 2]
        shape[axis] = sizes[axis]
        angles.append(angle.view(shape).expand(*sizes, -1))
    flat = torch.cat(angles, dim=-1).flatten(0, 2)
    return flat.cos().float().to(device), flat.sin().float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., N, d] with each channel pair (2i, 2i+1) turned by its token's angle i."""
    even, odd = precise(x).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with RMS-normed queries and keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = RMSNorm(dim)
        self.norm_k = RMSNorm(dim)

    def project(self, x: Tensor, source: Tensor) -> list[Tensor]:
        """Queries [B, H, N, d] of x [B, N, D]; keys and values [B, H, M, d] of source [B, M, D]."""
        qkv = (self.norm_q(self.to_q(x)), self.norm_k(self.to_k(source)), self.to_v(source))
        return [y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in qkv]

    def merge(self, x: Tensor) -> Tensor:
        """[B, H, N, d] -> [B, N, D], through the output projection."""
        merged: Tensor = self.to_out[0](x.transpose(1, 2).flatten(2))
        return merged


class SelfAttention(Attention):
    """Attention among the tokens of a clip.

    Args:
        window: frames to each side that a token sees; None is the whole clip.
        theta: base of the rotary frequencies.
    """

    def __init__(self, dim: int, num_heads: int, window: int | None, theta: float) -> None:
        super().__init__(dim, num_heads)
        self.window = window
        self.theta = theta
        self.context: Context | None = None

    def forward(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """The own tokens [B, N, D] -> [B, N, D]."""
        q, k, v = self.project(x, x)
        cos, sin = rotations(grid, q.shape[-1], self.theta, x.device)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        reach = grid.frames - 1 if self.window is None else min(self.window, grid.frames - 1)
        if self.context is not None:
            # attention rounds both alike; keys are not sent wider than it takes them
            frames = torch.stack((k.to(v.dtype), v)).unflatten(3, (len(grid.own), -1)).movedim(3, 0)
            k, v = self.context.fetch(frames, grid.frames, reach).movedim(0, 3).flatten(3, 4).unbind(0)
        if reach == grid.frames - 1:
            return self.merge(dense_attention(q, k, v))
        per_frame, first = grid.height * grid.width, max(0, grid.own.start - reach)
        return self.merge(
            window_attention(
                q, k, v, tokens_per_frame=per_frame, window=reach, query_frame=grid.own.start - first
            )
        )


class CrossAttention(Attention):
    """Attention of a clip's tokens to its caption's."""

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, N, D], context [B, L, D], mask bool [B, L] or None -> [B, N, D]."""
        q, k, v = self.project(x, context)
        return self.merge(dense_attention(q, k, v, key_mask=mask))


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(dim, hidden)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(hidden, dim)])

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.net[0].proj(x), approximate="tanh")  # type: ignore[operator]
        out: Tensor = self.net[2](hidden)
        return out


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by the time.

    Args:
        config: the model's shape.
        pattern: "W" windowed or "G" global self-attention.
    """

    def __init__(self, config: ModelConfig, pattern: str) -> None:
        super().__init__()
        dim = config.num_heads * config.head_dim
        windowed = pattern == "W"
        theta = config.rope_theta_windowed if windowed else config.rope_theta_global
        self.attn1 = SelfAttention(dim, config.num_heads, config.window if windowed else None, theta)
        self.attn2 = CrossAttention(dim, config.num_heads)
        self.norm2 = LayerNorm(dim)
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))
        self.checkpointing: Checkpointing = "none"
        """What is computed again in the backward pass, for which the block's input is kept."""

    def forward(
        self, x: Tensor, modulation: Tensor, context: Tensor, mask: Tensor | None, grid: TokenGrid
    ) -> Tensor:
        """x [B, T, S, D], modulation [B, T or 1, 6, D], context [B, L, D] -> [B, T, S, D]."""
        given = (x, modulation, context, mask, grid)
        if self.checkpointing == "none" or not torch.is_grad_enabled():
            return self._compute(*given)
        modes = kept_attention if self.checkpointing == "selective" else noop_context_fn
        out: Tensor = checkpoint(
            self._compute, *given, use_reentrant=False, preserve_rng_state=False, context_fn=modes
        )
        return out

    def _compute(
        self, x: Tensor, modulation: Tensor, context: Tensor, mask: Tensor | None, grid: TokenGrid
    ) -> Tensor:
        six = (self.scale_shift_table + precise(modulation)).to(x.dtype).unsqueeze(-2).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = six
        attended = self.attn1((layer_norm(x) * (1 + scale) + shift).flatten(1, 2), grid)
        x = x + attended.view_as(x) * gate
        x = x + self.attn2(self.norm2(x).flatten(1, 2), context, mask).view_as(x)
        out: Tensor = x + self.ffn(layer_norm(x) * (1 + ffn_scale) + ffn_shift) * ffn_gate
        return out


def checkpoint_blocks(model: nn.Module, checkpointing: Checkpointing = "full") -> None:
    """Activation checkpointing: the backward pass holds the activations of one block at a time."""
    for module in model.modules():
        if isinstance(module, Block):
            module.checkpointing = checkpointing


def sinusoids(t: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of t [...] at geometric frequencies 1 .. 1e-4: float32 [..., channels]."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float().unsqueeze(-1) * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Mlp(nn.Module):
    """Two linear layers, whose activation is the caller's."""

    def __init__(self, fan_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(fan_in, dim)
        self.linear_2 = nn.Linear(dim, dim)


class ConditionEmbedder(nn.Module):
    """Embeds times and captions for the blocks."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = Mlp(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = Mlp(text_dim, dim)

    def time(self, t: Tensor, beside: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """t [B] or [B, T] -> embedding [B, T or 1, D] and modulation [B, T or 1, 6, D]; `beside` [B, D] is
        added to the embedding."""
        t = t if t.ndim == 2 else t[:, None]
        waves = sinusoids(1000 * t, self.freq_dim).to(self.time_proj.weight.dtype)
        embedding = self.time_embedder.linear_2(F.silu(self.time_embedder.linear_1(waves)))
        if beside is not None:
            embedding = embedding + beside[:, None].to(embedding)
        return embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))

    def caption(self, text: Tensor) -> Tensor:
        """[B, L, text_dim] -> [B, L, D]."""
        hidden = F.gelu(self.text_embedder.linear_1(text), approximate="tanh")
        out: Tensor = self.text_embedder.linear_2(hidden)
        return out
