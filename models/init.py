"""Initialisation of networks trained from scratch."""

import math

import torch
from torch import Tensor, nn

from models.blocks import Block, SelfAttention, axis_channels, frequencies
from models.config import ModelConfig
from models.dit import DiT
from models.rng import Key

LOOK_OFFSETS = (-1, 1, 0)
LOOK_FREQUENCIES = 4


@torch.no_grad()
def initialize(model: DiT, key: Key) -> None:
    """Wan 2.1's initialisation: Xavier, small text and time layers, zero output; `look` changes values only.

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
    if model.config.init == "look":
        for block in model.encoder.blocks:
            assert isinstance(block, Block)
            block.scale_shift_table[:, [2, 5]] = 1.0
            _look(block.attn1, model.config)


def _look(attention: SelfAttention, config: ModelConfig) -> None:
    """Heads 0, 1, 2 start by looking at the previous, next and own frame through their rotary positions.

    Queries and keys are constant on the first time frequencies f: after rotation the logit of frame i for
    frame j is a sum of cos(f (i - j + offset)), largest at j = i + offset. All other channels stay as they
    are, and everything is trainable.
    """
    windowed = attention.window is not None
    amplitude = config.look_amplitude_windowed if windowed else config.look_amplitude_global
    strength = math.sqrt(amplitude * math.sqrt(config.head_dim))
    turns = frequencies(axis_channels(config.head_dim)[0], attention.theta)[:LOOK_FREQUENCIES]
    for head, offset in zip(range(config.num_heads - 1), LOOK_OFFSETS, strict=False):
        start = head * config.head_dim
        rows = slice(start, start + 2 * len(turns))
        _constant(attention.to_q, rows, torch.zeros_like(turns))
        _constant(attention.to_k, rows, -turns * offset)
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight[rows] = strength


def _constant(layer: nn.Linear, rows: slice, angles: Tensor) -> None:
    """Make the layer's rows output, for each pair of channels, a constant unit vector at `angles`."""
    layer.weight[rows] = 0.0
    layer.bias[rows] = torch.stack((angles.cos(), angles.sin()), dim=-1).flatten().float()
