"""The diffusion transformer in the shape of Wan 2.1: an encoder reads a noisy clip into a residual stream,
and a head turns the stream into a velocity.

B batch, T latent frames, C latent channels, h and w latent rows and columns, S tokens per frame, D width,
L text tokens. `pattern` has one letter per block, W windowed or G global (models/blocks.py).
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks import (
    Block,
    ConditionEmbedder,
    SelfAttention,
    TokenGrid,
    axis_channels,
    frequencies,
    layer_norm,
    precise,
)
from models.config import ModelConfig
from models.context import Context
from models.flow import VelocityModel, precondition_input, preconditioned_velocity
from models.rng import Key
from models.text.conditioning import Conditioning
from models.weights import copy_into

POSITION_WAVES = 8
LOOK_OFFSETS = (-1, 1, 0)
LOOK_FREQUENCIES = 4


@dataclass(frozen=True)
class Features:
    """What the encoder hands to a head."""

    hidden: Tensor
    """The residual stream [B, T, S, D], of the grid's own frames."""
    embedding: Tensor
    """Of the time, [B, T or 1, D], likewise."""
    modulation: Tensor
    """Of the blocks by the time, [B, T or 1, 6, D], likewise."""
    context: Tensor
    """Caption tokens [B, L, D]."""
    mask: Tensor | None
    """Bool [B, L], True at caption tokens that are there."""
    x_t: Tensor
    """The encoder's input [B, T, C, h, w], at time `t`."""
    t: Tensor
    grid: TokenGrid


def clip_positions(num_frames: int, device: torch.device) -> Tensor:
    """Sine and cosine of pi k i / (T - 1), k = 1..8, for each frame i of a clip: [T, 16]."""
    place = torch.linspace(0, torch.pi, num_frames, device=device)
    angles = torch.outer(place, torch.arange(1, POSITION_WAVES + 1, device=device))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def token_grid(shape: torch.Size | tuple[int, ...], patch_size: tuple[int, int, int]) -> TokenGrid:
    """The token grid of latents [B, T, C, h, w].

    Raises:
        ValueError: an axis is not a multiple of its patch.
    """
    sizes = (shape[1], shape[3], shape[4])
    if any(size % patch for size, patch in zip(sizes, patch_size, strict=True)):
        raise ValueError(
            f"latents of {sizes} frames, rows and columns do not divide into patches {patch_size}"
        )
    return TokenGrid.whole(*(size // patch for size, patch in zip(sizes, patch_size, strict=True)))


class Encoder(nn.Module):
    """Embeds patches, times and captions, and runs the first blocks."""

    def __init__(
        self,
        config: ModelConfig,
        channels: int,
        text_dim: int,
        pattern: str,
        clip_position: bool = False,
        exits: int = 0,
    ) -> None:
        super().__init__()
        dim = config.num_heads * config.head_dim
        self.patch_size = config.patch_size
        self.precondition = config.precondition
        self.patch_embedding = nn.Conv3d(channels, dim, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(dim, config.freq_dim, text_dim)
        self.clip_position = nn.Linear(2 * POSITION_WAVES, dim) if clip_position else None
        self.exits = nn.Embedding(exits, dim) if exits else None
        self.blocks = nn.ModuleList([Block(config, letter) for letter in pattern])
        self.context: Context | None = None

    def forward(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, exits: Tensor | None = None
    ) -> Features:
        """Reads x_t [B, T, C, h, w] at t [B] or [B, T]; a critic is told the `exits` [B] too.

        Raises:
            ValueError: the clip does not divide into patches.
        """
        grid = token_grid(x_t.shape, self.patch_size)
        pt, ph, pw = self.patch_size
        x, times = precondition_input(x_t, t) if self.precondition else x_t, t
        if self.context is not None:
            grid = grid._replace(own=(own := self.context.own(grid.frames)))
            x = x[:, own.start * pt : own.stop * pt]
            times = t[:, own.start : own.stop] if t.ndim == 2 else t
        patches = rearrange(x, "b (t i) c (h j) (w k) -> b t (h w) (c i j k)", i=pt, j=ph, k=pw)
        hidden = F.linear(patches, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        if self.clip_position is not None:
            places = clip_positions(grid.frames, x_t.device)[grid.own.start : grid.own.stop]
            hidden = hidden + self.clip_position(places)[:, None]
        told = None if self.exits is None or exits is None else self.exits(exits)
        embedding, modulation = self.condition_embedder.time(times, told)
        context = self.condition_embedder.caption(conditioning.text.to(hidden.dtype))
        for block in self.blocks:
            hidden = block(hidden, modulation, context, conditioning.mask, grid)
        return Features(hidden, embedding, modulation, context, conditioning.mask, x_t, t, grid)


class Head(nn.Module):
    """Runs the last blocks and the output layer."""

    def __init__(self, config: ModelConfig, channels: int, pattern: str = "") -> None:
        super().__init__()
        dim = config.num_heads * config.head_dim
        pt, ph, pw = self.patch_size = config.patch_size
        self.precondition = config.precondition
        self.blocks = nn.ModuleList([Block(config, letter) for letter in pattern])
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)
        self.proj_out = nn.Linear(dim, channels * pt * ph * pw)
        self.context: Context | None = None

    def forward(self, features: Features) -> Tensor:
        """Velocity [B, T, C, h, w]."""
        hidden = features.hidden
        for block in self.blocks:
            hidden = block(hidden, features.modulation, features.context, features.mask, features.grid)
        two = (self.scale_shift_table + precise(features.embedding).unsqueeze(-2)).to(hidden.dtype)
        shift, scale = two.unsqueeze(-2).unbind(2)
        out = self.proj_out(layer_norm(hidden) * (1 + scale) + shift)
        axes = dict(zip("ijkh", (*self.patch_size, features.grid.height), strict=True))
        if self.context is not None:
            out = self.context.join(out.transpose(0, 1), features.grid.frames).transpose(0, 1)
        raw = rearrange(out, "b t (h w) (i j k c) -> b (t i) c (h j) (w k)", **axes).to(features.x_t.dtype)
        return preconditioned_velocity(raw, features.x_t, features.t) if self.precondition else raw


class DiT(nn.Module):
    """A plain stack, all of it in the encoder but the output layer: teacher, critic or Wan 2.1 transformer.

    Args:
        config: the model's shape.
        channels: latent channels C.
        text_dim: numbers per text token.
        exits: steps of the few-step sampler that a critic tells apart; 0 for the others.
    """

    def __init__(self, config: ModelConfig, channels: int, text_dim: int, exits: int = 0) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, channels, text_dim, config.attention_pattern, exits=exits)
        self.head = Head(config, channels)

    def forward(
        self, x_t: Tensor, t: Tensor, conditioning: Conditioning, exits: Tensor | None = None
    ) -> Tensor:
        """Velocity at x_t [B, T, C, h, w] and t [B] or [B, T]; `exits` [B] as in `told`."""
        velocity: Tensor = self.head(self.encoder(x_t, t, conditioning, exits))
        return velocity

    def told(self, exits: Tensor) -> VelocityModel:
        """A critic's velocity at what the few-step sampler makes in its steps `exits`, int [B] or [1].

        The x0 of an early step is blurred and that of the last is sharp: told which it sees, the critic need
        not give one score for all.
        """

        def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            out: Tensor = self(x_t, t, conditioning, exits)
            return out

        return velocity

    def start_from(self, teacher: "DiT") -> None:
        """Copies a teacher into a critic, which then equals it whatever it is told."""
        own = {
            name: torch.zeros_like(tensor) for name, tensor in self.state_dict().items() if "exits" in name
        }
        copy_into(self, teacher.state_dict() | own, "the teacher")


@torch.no_grad()
def initialize(model: DiT, key: Key) -> None:
    """Wan 2.1's initialisation: Xavier, small text and time layers, zero output; `look` and `place` change
    values only.

    Every tensor has its own generator, keyed by its name.
    """
    small = ("text_embedder", "time_embedder") if model.config.init == "wan" else ()
    for name, parameter in model.named_parameters():
        generator = key.at(purpose=name).torch()
        if "scale_shift_table" in name:
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draw / math.sqrt(parameter.shape[-1]))
        elif name.endswith("bias") or "proj_out" in name:
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        elif any(layer in name for layer in small):
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
        else:
            bound = math.sqrt(6 / sum(parameter.flatten(1).shape))
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) * bound)
    if model.config.init != "wan":
        for block in model.encoder.blocks:
            assert isinstance(block, Block)
            block.scale_shift_table[:, [2, 5]] = 1.0
            _look(block.attn1, model.config)


def _look(attention: SelfAttention, config: ModelConfig) -> None:
    """Heads 0, 1, 2 start by looking at the previous, next and own frame through their rotary positions, by
    `place` at their own row and column there.

    Queries and keys are constant on the first frequencies f of an axis: after rotation the logit of position
    i for position j is a sum of cos(f (i - j + offset)), largest at j = i + offset. All other channels stay
    as they are, and everything is trainable.
    """
    windowed = attention.window is not None
    amplitude = config.look_amplitude_windowed if windowed else config.look_amplitude_global
    strength = math.sqrt(amplitude * math.sqrt(config.head_dim))
    axes = axis_channels(config.head_dim)[: 3 if config.init == "place" else 1]
    for head, offset in zip(range(config.num_heads - 1), LOOK_OFFSETS, strict=False):
        start = head * config.head_dim
        for channels, way in zip(axes, (offset, 0, 0), strict=False):
            turns = frequencies(channels, attention.theta)[:LOOK_FREQUENCIES]
            rows = slice(start, start + 2 * len(turns))
            for layer, angles in ((attention.to_q, torch.zeros_like(turns)), (attention.to_k, -turns * way)):
                layer.weight[rows] = 0.0
                layer.bias[rows] = torch.stack((angles.cos(), angles.sin()), dim=-1).flatten().float()
            for norm in (attention.norm_q, attention.norm_k):
                norm.weight[rows] = strength
            start += channels
