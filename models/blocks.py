"""Wan 2.1's transformer block and embeddings, with a time a frame and windowed attention.

Shapes: B batch, T latent frames, S tokens a frame, N = T S tokens, D width, L text tokens.
Module names are those of diffusers' WanTransformer3DModel, so its weights load by name.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kernels.ops import dense_attention, window_attention
from models.config import ModelConfig
from models.rope import rotate, rotations


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalised over the last axis without affine weights, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm with affine weights, computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] normalised, scaled and shifted."""
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), self.eps).to(
            x.dtype
        )


class RMSNorm(nn.Module):
    """Root-mean-square norm over the full width (Wan norms q and k across heads)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] divided by its root mean square, scaled."""
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale).to(x.dtype) * self.weight


@dataclass(frozen=True)
class Span3D:
    """The token grid of a clip.

    Args:
        frames, height, width: tokens along each axis.
    """

    frames: int
    height: int
    width: int

    @property
    def per_frame(self) -> int:
        """Tokens a frame."""
        return self.height * self.width


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

    def split(self, x: Tensor) -> Tensor:
        """[B, N, D] -> [B, heads, N, head_dim]."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x [B, N, D]; keys and values of source [B, M, D]; each [B, heads, ., head_dim]."""
        q, k = self.norm_q(self.to_q(x)), self.norm_k(self.to_k(source))
        return self.split(q), self.split(k), self.split(self.to_v(source))

    def merge(self, x: Tensor) -> Tensor:
        """[B, heads, N, head_dim] -> [B, N, D] through the output projection."""
        merged: Tensor = self.to_out[0](x.transpose(1, 2).flatten(2))
        return merged


class SelfAttention(Attention):
    """Attention among the tokens of a clip: windowed over frames, or global.

    Args:
        window: frames to each side; None is global.
        theta: base of the rotary frequencies.
    """

    def __init__(self, dim: int, num_heads: int, window: int | None, theta: float) -> None:
        super().__init__(dim, num_heads)
        self.window = window
        self.theta = theta

    def forward(self, x: Tensor, grid: Span3D) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        q, k, v = self.project(x, x)
        cos, sin = rotations((grid.frames, grid.height, grid.width), q.shape[-1], self.theta, x.device)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.window is None or self.window >= grid.frames - 1:
            return self.merge(dense_attention(q, k, v))
        return self.merge(window_attention(q, k, v, tokens_per_frame=grid.per_frame, window=self.window))


class CrossAttention(Attention):
    """Attention of the clip's tokens to the caption's."""

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
        """x [..., dim] -> [..., dim]."""
        hidden = F.gelu(self.net[0].proj(x), approximate="tanh")  # type: ignore[operator]
        out: Tensor = self.net[2](hidden)
        return out


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, modulated by the time.

    Args:
        config: the model's shape.
        kind: "W" windowed or "G" global self-attention.
    """

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        dim = config.num_heads * config.head_dim
        windowed = kind == "W"
        theta = config.rope_theta_windowed if windowed else config.rope_theta_global
        self.attn1 = SelfAttention(dim, config.num_heads, config.window if windowed else None, theta)
        self.attn2 = CrossAttention(dim, config.num_heads)
        self.norm2 = LayerNorm(dim)
        self.ffn = FeedForward(dim, config.ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / math.sqrt(dim))
        self.checkpointed = False
        """Keep the input alone for the backward pass, which then computes the block again."""

    def forward(
        self, x: Tensor, modulation: Tensor, context: Tensor, mask: Tensor | None, grid: Span3D
    ) -> Tensor:
        """x [B, T, S, D], modulation [B, T or 1, 6, D], context [B, L, D] -> [B, T, S, D]."""
        if not (self.checkpointed and torch.is_grad_enabled()):
            return self._compute(x, modulation, context, mask, grid)
        out: Tensor = checkpoint(
            self._compute, x, modulation, context, mask, grid, use_reentrant=False, preserve_rng_state=False
        )
        return out

    def _compute(
        self, x: Tensor, modulation: Tensor, context: Tensor, mask: Tensor | None, grid: Span3D
    ) -> Tensor:
        six = (self.scale_shift_table + modulation.float()).to(x.dtype).unsqueeze(-2).unbind(2)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = six
        attended = self.attn1((layer_norm(x) * (1 + scale) + shift).flatten(1, 2), grid)
        x = x + attended.view_as(x) * gate
        x = x + self.attn2(self.norm2(x).flatten(1, 2), context, mask).view_as(x)
        out: Tensor = x + self.ffn(layer_norm(x) * (1 + ffn_scale) + ffn_shift) * ffn_gate
        return out


def checkpoint_blocks(model: nn.Module) -> None:
    """Activation checkpointing of every block: the backward pass holds the activations of one at a time."""
    for module in model.modules():
        if isinstance(module, Block):
            module.checkpointed = True


def sinusoids(t: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of t [...] at geometric frequencies 1 .. 1e-4: float32 [..., channels]."""
    half = channels // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float().unsqueeze(-1) * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Mlp(nn.Module):
    """Two linear layers; named linear_1 and linear_2 as diffusers names them."""

    def __init__(self, fan_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(fan_in, dim)
        self.linear_2 = nn.Linear(dim, dim)


class ConditionEmbedder(nn.Module):
    """Time and caption as the blocks take them."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = Mlp(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = Mlp(text_dim, dim)

    def time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """t [B] or [B, T] -> embedding [B, T or 1, D] and modulation [B, T or 1, 6, D]."""
        t = t if t.ndim == 2 else t[:, None]
        waves = sinusoids(1000 * t, self.freq_dim).to(self.time_proj.weight.dtype)
        embedding = self.time_embedder.linear_2(F.silu(self.time_embedder.linear_1(waves)))
        return embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))

    def caption(self, text: Tensor) -> Tensor:
        """text [B, L, text_dim] -> [B, L, D]."""
        hidden = F.gelu(self.text_embedder.linear_1(text), approximate="tanh")
        out: Tensor = self.text_embedder.linear_2(hidden)
        return out
