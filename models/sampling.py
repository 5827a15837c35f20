"""Samplers of latents [B, T, C, h, w] from a VelocityModel, and how it is guided, directed and turned."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from models.flow import VelocityModel, interpolate, ode_times, x0_prediction
from models.rng import Key, normal
from models.text.conditioning import Conditioning


def guided(model: VelocityModel, scale: float) -> VelocityModel:
    """u + s (c - u), u the velocity of the null caption (Ho and Salimans 2022); at s = 1 the model itself."""
    if scale == 1:
        return model

    def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        conditional = model(x_t, t, conditioning)
        unconditional = model(x_t, t, conditioning.null())
        return unconditional + scale * (conditional - unconditional)

    return velocity


def directed(model: VelocityModel, parts: Sequence[tuple[int, Conditioning]]) -> VelocityModel:
    """Captions that change along a clip: a frame has the velocity of the whole clip under its own caption.

    Args:
        model: evaluated once per part.
        parts: first frame of each part, rising from 0, and its captions [B]; captions given to the directed
            model are not looked at.
    """
    firsts = torch.tensor([first for first, _ in parts])

    def velocity(x_t: Tensor, t: Tensor, _: Conditioning) -> Tensor:
        under = torch.stack([model(x_t, t, captions) for _, captions in parts], dim=1)
        own = torch.searchsorted(firsts, torch.arange(x_t.shape[1]), right=True) - 1
        return under[:, own.to(x_t.device), torch.arange(x_t.shape[1], device=x_t.device)]

    return velocity


def turned(model: VelocityModel, frames: int) -> VelocityModel:
    """The model on clips that are rings, seen from another frame: its last frame is followed by the first.

    Args:
        model: of clips with two ends.
        frames: by how many the clip is turned while the model sees it.
    """
    if frames == 0:
        return model

    def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        at = t.roll(frames, dims=1) if t.ndim == 2 else t
        return model(x_t.roll(frames, dims=1), at, conditioning).roll(-frames, dims=1)

    return velocity


@dataclass(frozen=True)
class Draw:
    """The videos to sample.

    Row i depends on the key, samples[i], its caption and its known frames alone: samples can be batched and
    placed in any way.
    """

    shape: Sequence[int]
    """[T, C, h, w] of one video."""
    conditioning: Conditioning
    """One caption per sample."""
    key: Key
    samples: Sequence[int]
    known: Tensor | None = None
    """Clean first frames [B, K, C, h, w], 0 < K < T: they stay at t = 0 while the others fall from t = 1."""
    turns: Sequence[int] = ()
    """Of a ring, whose last frame is followed by its first: by how many frames it is turned at each step, so
    that no step has its ends where another has. Empty: a clip with two ends."""

    def noise(self, name: str, frames: int | None = None) -> Tensor:
        """Noise of the videos, or of their first frames."""
        shape = (self.shape[0] if frames is None else frames, *self.shape[1:])
        return normal(shape, self.key.at(purpose=name), self.samples, self.conditioning.text.device)

    def start(self) -> Tensor:
        """Where samplers begin: noise after the known frames."""
        return self.holding(self.noise("noise-0"))

    def holding(self, x: Tensor) -> Tensor:
        """x [B, T, C, h, w] with the known frames in their place."""
        return x if self.known is None else torch.cat((self.known, x[:, self.known.shape[1] :]), dim=1)

    def at(self, t: float) -> Tensor:
        """The time t of every video, [B]; of every frame, [B, T], where some are known."""
        if self.known is None:
            return torch.full((len(self.samples),), t, device=self.conditioning.text.device)
        times = torch.full((len(self.samples), self.shape[0]), t, device=self.conditioning.text.device)
        times[:, : self.known.shape[1]] = 0
        return times

    def seen_by(self, model: VelocityModel, step: int) -> VelocityModel:
        """The model at a step of the sampler."""
        return turned(model, self.turns[step]) if self.turns else model


def ring_turns(frames: int, steps: int) -> tuple[int, ...]:
    """Turns of a ring of so many frames at each step: evenly around it, in quarters at most."""
    parts = min(steps, 4)
    return tuple(step * frames // parts % frames for step in range(steps))


@torch.no_grad()
def noisy_input(model: VelocityModel, times: Sequence[float], draw: Draw) -> Tensor:
    """Backward simulation: x at times[-1], reached from noise through the earlier times, without a graph.

    Each step predicts x0 and adds fresh noise to the next time, as the few-step sampler does.

    Args:
        model: the DM head.
        times: falling from 1; the caller goes on from the last.
        draw: the videos.
    """
    if len(times) == 1:
        return draw.start()
    x0 = few_step(model, times[:-1], draw)
    return interpolate(x0, draw.noise(f"noise-{len(times) - 1}"), draw.at(times[-1]))


@torch.no_grad()
def few_step(model: VelocityModel, times: Sequence[float], draw: Draw) -> Tensor:
    """The stochastic few-step sampler: len(times) network evaluations, latents [B, T, C, h, w]."""
    *_, last = exits(model, times, draw)
    return last


@torch.no_grad()
def exits(model: VelocityModel, times: Sequence[float], draw: Draw) -> Iterator[Tensor]:
    """The x0 that the few-step sampler predicts at each of its times; the last is its video."""
    x = draw.start()
    for step, t in enumerate(times):
        x0 = x0_prediction(draw.seen_by(model, step), x, draw.at(t), draw.conditioning)
        yield x0
        if step + 1 < len(times):
            x = interpolate(x0, draw.noise(f"noise-{step + 1}"), draw.at(times[step + 1]))


@torch.no_grad()
def ode(
    model: VelocityModel, steps: int, shift: float, draw: Draw, continued: Tensor | None = None
) -> Tensor:
    """Euler steps of dx/dt = v from noise at t = 1 to data at t = 0; latents [B, T, C, h, w].

    Args:
        model: the FM head or the teacher, guided or not.
        steps, shift: Euler steps, and the shift of their times.
        draw: the videos.
        continued: clean first frames [B, K, C, h, w] for a model that knows one time per clip: they replace x
            at every step, re-noised to its time.
    """
    x = draw.start()
    for step, (t, following) in enumerate(pairwise(ode_times(steps, shift).tolist())):
        if continued is not None:
            frames = continued.shape[1]
            x[:, :frames] = interpolate(continued, draw.noise(f"known-{step}", frames), draw.at(t))
        velocity = draw.seen_by(model, step)(x, draw.at(t), draw.conditioning)
        x = draw.holding(x + (following - t) * velocity)
    return x


@torch.no_grad()
def roll_out_by_windows(
    teacher: VelocityModel, window: int, overlap: int, steps: int, shift: float, draw: Draw
) -> Tensor:
    """Long videos from a short model, window after window, each knowing the last `overlap` frames.

    Args:
        teacher: a model of `window` frames, guided or not.
        window, overlap: latent frames.
        steps, shift: as in `ode`, for each window.
        draw: the long videos.
    """
    video: Tensor | None = None
    number = 0
    while video is None or video.shape[1] < draw.shape[0]:
        key = draw.key.at(purpose=f"window-{number}")
        own = replace(draw, shape=(window, *draw.shape[1:]), key=key)
        made = ode(teacher, steps, shift, own, None if video is None else video[:, -overlap:])
        video = made if video is None else torch.cat((video, made[:, overlap:]), dim=1)
        number += 1
    return video[:, : draw.shape[0]]
