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
    known: Tensor | None = None,
) -> Tensor:
    """Euler steps of dx/dt = v from noise at t = 1 to data at t = 0; latents [B, T, C, h, w].

    Args:
        model: the FM head or the teacher.
        shape: [T, C, h, w] of one video.
        steps: Euler steps.
        shift: of their times.
        conditioning: one caption per sample.
        key, samples: name the noise.
        guidance_scale: s of the guided velocity u + s (c - u).
        known: clean first frames [B, K, C, h, w], which replace x at every step, re-noised to its time.
    """
    device = conditioning.text.device
    x = normal(shape, key.at(purpose="noise-0"), samples, device)
    for step, (t, following) in enumerate(pairwise(ode_times(steps, shift).tolist())):
        at = _times(t, len(x), device)
        if known is not None:
            noise = normal(known.shape[1:], key.at(purpose=f"known-{step}"), samples, device)
            x[:, : known.shape[1]] = interpolate(known, noise, at)
        velocity = model(x, at, conditioning)
        if guidance_scale != 1:
            unconditional = model(x, at, conditioning.null())
            velocity = unconditional + guidance_scale * (velocity - unconditional)
        x = x + (following - t) * velocity
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
    """A long video from a short model, window after window, each knowing the last `overlap` frames.

    Args:
        teacher: a model of `window` frames.
        num_frames, window, overlap: latent frames.
        steps: Euler steps per window.
        shape: [C, h, w] of one frame.
        shift, conditioning, key, samples, guidance_scale: as in `ode`, for each window.
    """

    def sample(number: int, known: Tensor | None = None) -> Tensor:
        named = key.at(purpose=f"window-{number}")
        given = (conditioning, named, samples, guidance_scale, known)
        return ode(teacher, (window, *shape), steps, shift, *given)

    video, number = sample(0), 0
    while video.shape[1] < num_frames:
        number += 1
        video = torch.cat((video, sample(number, video[:, -overlap:])[:, overlap:]), dim=1)
    return video[:, :num_frames]
