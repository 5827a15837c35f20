"""The Wan-shaped diffusion transformer: an encoder that reads a noisy clip, and a head that turns its
residual stream into a velocity. A DiT (teacher, critic) is all blocks in the encoder and a head of none."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import Block, ConditionEmbedder, Span3D, layer_norm
from models.config import ModelConfig
from models.flow import precondition_input, preconditioned_velocity
from models.text.captions import Conditioning

POSITION_WAVES = 8


@dataclass(frozen=True)
class Features:
    """What the encoder hands to a head.

    Args:
        hidden: the residual stream [B, T, S, D].
        embedding: time embedding [B, T or 1, D].
        modulation: [B, T or 1, 6, D].
        context: caption tokens [B, L, D]; mask: bool [B, L] or None.
        x_t, t: the encoder's own input.
        grid: the token grid.
    """

    hidden: Tensor
    embedding: Tensor
    modulation: Tensor
    context: Tensor
    mask: Tensor | None
    x_t: Tensor
    t: Tensor
    grid: Span3D


def clip_positions(num_frames: int, device: torch.device) -> Tensor:
    """Sine and cosine of pi k i / (T - 1), k = 1..8: each frame's place in its clip, [T, 16]."""
    place = torch.linspace(0, torch.pi, num_frames, device=device)
    angles = torch.outer(place, torch.arange(1, POSITION_WAVES + 1, device=device))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Encoder(nn.Module):
    """Patches, conditions and the first blocks.

    Args:
        config: the model's shape.
        channels: latent channels C.
        text_dim: numbers a text token.
        kinds: one letter a block, W or G.
        clip_position: tell each frame its place in the clip.
    """

    def __init__(
        self, config: ModelConfig, channels: int, text_dim: int, kinds: str, clip_position: bool = False
    ) -> None:
        super().__init__()
        dim = config.num_heads * config.head_dim
        self.patch_size = config.patch_size
        self.precondition = config.precondition
        self.patch_embedding = nn.Conv3d(channels, dim, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(dim, config.freq_dim, text_dim)
        self.clip_position = nn.Linear(2 * POSITION_WAVES, dim) if clip_position else None
        self.blocks = nn.ModuleList([Block(config, kind) for kind in kinds])

    def _patches(self, x: Tensor) -> Tensor:
        """x [B, T, C, h, w] -> tokens [B, T', S, D]."""
        pt, ph, pw = self.patch_size
        flat = rearrange(x, "b (t i) c (h j) (w k) -> b t (h w) (c i j k)", i=pt, j=ph, k=pw)
        return F.linear(flat, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Features:
        """Reads x_t [B, T, C, h, w] at t [B] or [B, T].

        Raises:
            ValueError: the clip does not divide into patches.
        """
        grid = token_grid(x_t.shape, self.patch_size)
        hidden = self._patches(precondition_input(x_t, t) if self.precondition else x_t)
        if self.clip_position is not None:
            hidden = hidden + self.clip_position(clip_positions(grid.frames, x_t.device))[:, None]
        embedding, modulation = self.condition_embedder.time(t)
        context = self.condition_embedder.caption(conditioning.text.to(hidden.dtype))
        for block in self.blocks:
            hidden = block(hidden, modulation, context, conditioning.mask, grid)
        return Features(hidden, embedding, modulation, context, conditioning.mask, x_t, t, grid)


def token_grid(shape: torch.Size | tuple[int, ...], patch_size: tuple[int, int, int]) -> Span3D:
    """The token grid of latents [B, T, C, h, w].

    Raises:
        ValueError: an axis is not a multiple of its patch.
    """
    sizes = (shape[1], shape[3], shape[4])
    if any(size % patch for size, patch in zip(sizes, patch_size, strict=True)):
        raise ValueError(
            f"latents of {sizes} frames, rows and columns do not divide into patches {patch_size}"
        )
    return Span3D(*(size // patch for size, patch in zip(sizes, patch_size, strict=True)))


class Head(nn.Module):
    """The last blocks and the output layer.

    Args:
        config: the model's shape.
        channels: latent channels C.
        kinds: one letter a block, W or G.
    """

    def __init__(self, config: ModelConfig, channels: int, kinds: str = "") -> None:
        super().__init__()
        dim = config.num_heads * config.head_dim
        pt, ph, pw = self.patch_size = config.patch_size
        self.precondition = config.precondition
        self.blocks = nn.ModuleList([Block(config, kind) for kind in kinds])
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, channels * pt * ph * pw)

    def forward(self, features: Features) -> Tensor:
        """Velocity [B, T, C, h, w]."""
        hidden = features.hidden
        for block in self.blocks:
            hidden = block(hidden, features.modulation, features.context, features.mask, features.grid)
        two = (self.scale_shift_table + features.embedding.float().unsqueeze(-2)).to(hidden.dtype)
        shift, scale = two.unsqueeze(-2).unbind(2)
        out = self.proj_out(layer_norm(hidden) * (1 + scale) + shift)
        pt, ph, pw = self.patch_size
        raw = rearrange(
            out,
            "b t (h w) (i j k c) -> b (t i) c (h j) (w k)",
            h=features.grid.height,
            i=pt,
            j=ph,
            k=pw,
        ).to(features.x_t.dtype)
        return preconditioned_velocity(raw, features.x_t, features.t) if self.precondition else raw


class DiT(nn.Module):
    """A plain stack: the teacher, the critic, or a Wan 2.1 transformer. A VelocityModel.

    Args:
        config: the model's shape.
        channels: latent channels C.
        text_dim: numbers a text token.
    """

    def __init__(self, config: ModelConfig, channels: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, channels, text_dim, config.attention_pattern)
        self.head = Head(config, channels)

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity at x_t [B, T, C, h, w] and t [B] or [B, T]."""
        velocity: Tensor = self.head(self.encoder(x_t, t, conditioning))
        return velocity
