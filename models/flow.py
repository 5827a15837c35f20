"""The one time convention of the project, and everything that follows from it.

t = 0 is data and t = 1 is noise: x_t = (1 - t) x0 + t eps, with velocity v = eps - x0 (Wan 2.1, diffusers).
arXiv 2602.24289 writes the opposite sign, u = x0 - eps; its equations are translated in docs/method.md.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.config import FlowConfig
from models.rng import Key, normal, uniform
from models.text.conditioning import Conditioning


class VelocityModel(Protocol):
    """The teacher, the critic or one head of the student."""

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning, /) -> Tensor:
        """Velocity at x_t, both [B, T, C, h, w], and time t, [B] or one per frame [B, T]."""
        ...


def over_frames(t: Tensor, like: Tensor) -> Tensor:
    """t [B] or [B, T] with trailing axes of 1 so that it multiplies `like` [B, T, C, h, w]."""
    return t.reshape(*t.shape, *([1] * (like.ndim - t.ndim))).to(like)


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t noise."""
    t = over_frames(t, x0)
    return (1 - t) * x0 + t * noise


def x0_prediction(model: VelocityModel, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """x0 = x_t - t v(x_t, t, c)."""
    return x_t - over_frames(t, x_t) * model(x_t, t, conditioning)


def shift(t: Tensor, amount: float) -> Tensor:
    """t' = s t / (1 + (s - 1) t): fixes 0 and 1, and moves times towards noise when s > 1."""
    return amount * t / (1 + (amount - 1) * t)


def shift_for(config: FlowConfig, num_frames: int) -> float:
    """The shift of a clip of `num_frames` latent frames; it may grow with the square root of the length."""
    longest = config.timestep_shift_frames or num_frames
    return config.timestep_shift * max(1.0, math.sqrt(num_frames / longest))


def logit_normal_times(key: Key, samples: Sequence[int], mean: float, std: float, amount: float) -> Tensor:
    """Times sigmoid(mean + std n), shifted; float32 [len(samples)]."""
    return shift(torch.sigmoid(mean + std * normal((), key, samples)), amount)


def uniform_times(
    key: Key, samples: Sequence[int], amount: float, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Uniform times, shifted, of which the shift makes `low` ... `high`; float32 [len(samples)].

    The shift's inverse is the shift by 1 / amount.
    """
    first, last = shift(torch.tensor([low, high], dtype=torch.float64), 1 / amount).tolist()
    return shift(first + (last - first) * uniform(key, samples), amount).clamp(low, high)


def ode_times(steps: int, amount: float) -> Tensor:
    """The steps + 1 times of an Euler sampler, 1 down to 0, shifted."""
    return shift(torch.linspace(1, 0, steps + 1), amount)


# For networks trained from scratch: with unit-variance data, x_t has variance d = (1-t)^2 + t^2, and
#   x0 = (1-t)/d x_t + t/sqrt(d) F(x_t / sqrt(d)),  hence  v = (2t-1)/d x_t - F / sqrt(d),
# which is finite at t = 0 (Karras et al. 2022, table 1, carried over to the linear path).


def precondition_input(x_t: Tensor, t: Tensor) -> Tensor:
    """x_t / sqrt(d): unit variance at every time."""
    t = over_frames(t, x_t)
    return x_t / ((1 - t) ** 2 + t**2).sqrt()


def preconditioned_velocity(raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """v = (2t - 1)/d x_t - F / sqrt(d), with F = `raw` the network's output."""
    t = over_frames(t, x_t)
    d = (1 - t) ** 2 + t**2
    return (2 * t - 1) / d * x_t - raw / d.sqrt()
