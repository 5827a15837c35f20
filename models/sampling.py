"""Samplers of latents [B, T, C, h, w] from a VelocityModel, a Key and captions.

Row i depends on the key and samples[i] alone: the samples can be batched and placed in any way.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from models.flow import VelocityModel, interpolate, ode_times, velocity_to_x0
from models.rng import Key, normal
from models.text.conditioning import Conditioning


def _times(t: float, batch: int, device: torch.device) -> Tensor:
    return torch.full((batch,), t, device=device)


def noisy_input(
    model: VelocityModel,
    shape: Sequence[int],
    times: Sequence[float],
    conditioning: Conditioning,
    key: Key,
    samples: Sequence[int],
) -> Tensor:
    """Backward simulation: x at times[-1], reached from noise through the earlier times, without a graph.

    Each step predicts x0 and adds fresh noise to the next time, as the few-step sampler does.

    Args:
        model: the DM head.
        shape: [T, C, h, w] of one video.
        times: falling from 1; the caller goes on from the last.
        conditioning: one caption per sample.
        key, samples: name the noise.
    """
    device = conditioning.text.device
    x = normal(shape, key.at(purpose="noise-0"), samples, device)
    with torch.no_grad():
        for step, (t, following) in enumerate(pairwise(times), start=1):
            at, to = _times(t, len(x), device), _times(following, len(x), device)
            x0 = velocity_to_x0(x, model(x, at, conditioning), at)
            x = interpolate(x0, normal(shape, key.at(purpose=f"noise-{step}"), samples, device), to)
    return x


@torch.no_grad()
def few_step(
    model: VelocityModel,
    shape: Sequence[int],
    times: Sequence[float],
    conditioning: Conditioning,
    key: Key,
    samples: Sequence[int],
) -> Tensor:
    """The stochastic few-step sampler: len(times) network evaluations, latents [B, T, C, h, w]."""
    x = noisy_input(model, shape, times, conditioning, key, samples)
    t = _times(times[-1], len(x), x.device)
    return velocity_to_x0(x, model(x, t, conditioning), t)


def _velocity(model: VelocityModel, x: Tensor, t: Tensor, conditioning: Conditioning, scale: float) -> Tensor:
    """Guided velocity u + s (c - u); a single evaluation when s = 1."""
    conditional = model(x, t, conditioning)
    if scale == 1:
        return conditional
    unconditional = model(x, t, conditioning.null())
    return unconditional + scale * (conditional - unconditional)


@torch.no_grad()
def ode(
    model: VelocityModel,
    shape: Sequence[int],
    steps: int,
    shift: float,
    conditioning: Conditioning,
    key: Key,
    samples: Sequence[int],
    guidance_scale: float = 1.0,
) -> Tensor:
    """Euler steps of dx/dt = v from noise at t = 1 to data at t = 0; latents [B, T, C, h, w]."""
    device = conditioning.text.device
    x = normal(shape, key.at(purpose="noise-0"), samples, device)
    times = ode_times(steps, shift)
    for t, following in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        v = _velocity(model, x, _times(t, len(x), device), conditioning, guidance_scale)
        x = x + (following - t) * v
    return x


@torch.no_grad()
def roll_out_by_windows(
    teacher: VelocityModel,
    num_frames: int,
    window: int,
    overlap: int,
    steps: int,
    shift: float,
    shape: Sequence[int],
    conditioning: Conditioning,
    key: Key,
    samples: Sequence[int],
    guidance_scale: float = 1.0,
) -> Tensor:
    """A long video from a short model, window after window, each starting with the last `overlap` frames.

    At every step these known frames are replaced by their clean values, re-noised to the step's time.

    Args:
        teacher: a model of `window` frames.
        num_frames, window, overlap: latent frames.
        steps: Euler steps per window.
        shape: [C, h, w] of one frame.
        shift, conditioning, key, samples, guidance_scale: as in `ode`, for each window.
    """
    first = key.at(purpose="window-0")
    video = ode(teacher, (window, *shape), steps, shift, conditioning, first, samples, guidance_scale)
    times = ode_times(steps, shift).tolist()
    number = 0
    while video.shape[1] < num_frames:
        number += 1
        known = video[:, -overlap:]
        name = key.at(purpose=f"window-{number}")
        new = _continue(teacher, known, window, times, conditioning, name, samples, guidance_scale)
        video = torch.cat((video, new), dim=1)
    return video[:, :num_frames]


def _continue(
    teacher: VelocityModel,
    known: Tensor,
    window: int,
    times: Sequence[float],
    conditioning: Conditioning,
    key: Key,
    samples: Sequence[int],
    guidance_scale: float,
) -> Tensor:
    """The frames of a window after its `known` first ones."""
    overlap, frame = known.shape[1], known.shape[2:]
    x = normal((window, *frame), key.at(purpose="noise-0"), samples, known.device)
    for step, (t, following) in enumerate(pairwise(times)):
        at = _times(t, len(x), x.device)
        noise = normal((overlap, *frame), key.at(purpose=f"known-{step}"), samples, x.device)
        x[:, :overlap] = interpolate(known, noise, at)
        x = x + (following - t) * _velocity(teacher, x, at, conditioning, guidance_scale)
    return x[:, overlap:]
