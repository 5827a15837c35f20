"""Samplers of latents [B, T, C, h, w] from a VelocityModel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from models.flow import VelocityModel, interpolate, ode_times, x0_prediction
from models.rng import Key, normal
from models.text.conditioning import Conditioning


@dataclass(frozen=True)
class Draw:
    """The videos to sample.

    Row i depends on the key, samples[i] and its caption alone: samples can be batched and placed in any way.
    """

    shape: Sequence[int]
    """[T, C, h, w] of one video."""
    conditioning: Conditioning
    """One caption per sample."""
    key: Key
    samples: Sequence[int]

    def noise(self, name: str, frames: int | None = None) -> Tensor:
        """Noise of the videos, or of their first frames."""
        shape = (self.shape[0] if frames is None else frames, *self.shape[1:])
        return normal(shape, self.key.at(purpose=name), self.samples, self.conditioning.text.device)

    def at(self, t: float) -> Tensor:
        """The time t of every video, [B]."""
        return torch.full((len(self.samples),), t, device=self.conditioning.text.device)


@torch.no_grad()
def noisy_input(model: VelocityModel, times: Sequence[float], draw: Draw) -> Tensor:
    """Backward simulation: x at times[-1], reached from noise through the earlier times, without a graph.

    Each step predicts x0 and adds fresh noise to the next time, as the few-step sampler does.

    Args:
        model: the DM head.
        times: falling from 1; the caller goes on from the last.
        draw: the videos.
    """
    x = draw.noise("noise-0")
    for step, (t, following) in enumerate(pairwise(times), start=1):
        x0 = x0_prediction(model, x, draw.at(t), draw.conditioning)
        x = interpolate(x0, draw.noise(f"noise-{step}"), draw.at(following))
    return x


@torch.no_grad()
def few_step(model: VelocityModel, times: Sequence[float], draw: Draw) -> Tensor:
    """The stochastic few-step sampler: len(times) network evaluations, latents [B, T, C, h, w]."""
    *_, last = exits(model, times, draw)
    return last


@torch.no_grad()
def exits(model: VelocityModel, times: Sequence[float], draw: Draw) -> Iterator[Tensor]:
    """The x0 that the few-step sampler predicts at each of its times; the last is its video."""
    x = draw.noise("noise-0")
    for step, t in enumerate(times, start=1):
        x0 = x0_prediction(model, x, draw.at(t), draw.conditioning)
        yield x0
        if step < len(times):
            x = interpolate(x0, draw.noise(f"noise-{step}"), draw.at(times[step]))


@torch.no_grad()
def ode(
    model: VelocityModel,
    steps: int,
    shift: float,
    draw: Draw,
    guidance_scale: float = 1.0,
    known: Tensor | None = None,
) -> Tensor:
    """Euler steps of dx/dt = v from noise at t = 1 to data at t = 0; latents [B, T, C, h, w].

    Args:
        model: the FM head or the teacher.
        steps, shift: Euler steps, and the shift of their times.
        draw: the videos.
        guidance_scale: s of the guided velocity u + s (c - u).
        known: clean first frames [B, K, C, h, w], which replace x at every step, re-noised to its time.
    """
    x = draw.noise("noise-0")
    for step, (t, following) in enumerate(pairwise(ode_times(steps, shift).tolist())):
        at = draw.at(t)
        if known is not None:
            frames = known.shape[1]
            x[:, :frames] = interpolate(known, draw.noise(f"known-{step}", frames), at)
        velocity = model(x, at, draw.conditioning)
        if guidance_scale != 1:
            unconditional = model(x, at, draw.conditioning.null())
            velocity = unconditional + guidance_scale * (velocity - unconditional)
        x = x + (following - t) * velocity
    return x


@torch.no_grad()
def roll_out_by_windows(
    teacher: VelocityModel,
    window: int,
    overlap: int,
    steps: int,
    shift: float,
    draw: Draw,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Long videos from a short model, window after window, each knowing the last `overlap` frames.

    Args:
        teacher: a model of `window` frames.
        window, overlap: latent frames.
        steps, shift, guidance_scale: as in `ode`, for each window.
        draw: the long videos.
    """
    video: Tensor | None = None
    number = 0
    while video is None or video.shape[1] < draw.shape[0]:
        key = draw.key.at(purpose=f"window-{number}")
        own = replace(draw, shape=(window, *draw.shape[1:]), key=key)
        known = None if video is None else video[:, -overlap:]
        made = ode(teacher, steps, shift, own, guidance_scale, known)
        video = made if video is None else torch.cat((video, made[:, overlap:]), dim=1)
        number += 1
    return video[:, : draw.shape[0]]
