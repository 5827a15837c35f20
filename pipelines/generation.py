"""From a trained network and captions to latents; only this file knows which sampler suits which head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.config import FlowConfig, SamplingConfig
from models.ddt import Student
from models.device import half_precision
from models.errors import ConfigError
from models.flow import VelocityModel, ode_times, shift, shift_for
from models.rng import Key
from models.sampling import Draw, directed, few_step, guided, ode, ring_turns, roll_out_by_windows
from models.text.conditioning import Conditioning
from pipelines.checkpoints import Network, NetworkSpec

Head = Literal["fm", "dm", "teacher"]
Sampler = Literal["few_step", "ode", "windows"]
ROUNDING = 1e-6
"""Times that differ by less are the same one."""
SAMPLERS: dict[Head, tuple[Sampler, ...]] = {
    "dm": ("few_step",),
    "fm": ("ode",),
    "teacher": ("windows", "ode"),
}
"""Samplers that each head takes."""


@dataclass(frozen=True)
class Method:
    """How a network is sampled.

    Args:
        head: which velocity.
        sampler: `few_step` is stochastic, `ode` takes Euler steps, `windows` rolls a short model out.
        steps: of the sampler; for `windows`, those of one window; for `few_step`, how many times.
    """

    head: Head
    sampler: Sampler
    steps: int

    def evaluations(self, num_frames: int, window: int, guidance_scale: float) -> int:
        """Network evaluations per video of `num_frames` latent frames; guidance takes two per step."""
        if self.sampler == "few_step":
            return self.steps
        steps = self.steps if guidance_scale == 1 else 2 * self.steps
        if self.sampler == "ode":
            return steps
        new = window - window // 2
        return steps * (1 + -(-max(0, num_frames - window) // new))


def require_head(spec: NetworkSpec, head: Head) -> None:
    """Refuses a head that the network has not, or that has not been trained.

    Raises:
        ConfigError: it cannot be used.
    """
    has: tuple[Head, ...] = ("teacher",) if spec.role == "teacher" else ("fm", "dm")
    if head not in has:
        raise ConfigError(f"a {spec.role} has no head {head!r}", f"Choose {' or '.join(has)}")
    if head == "dm" and not spec.distilled:
        raise ConfigError(
            "nothing says that this student's DM head has been trained: only distillation trains it",
            "Take the fm head, or a checkpoint of `distill` (one of an earlier version: train it again)",
        )


def check(spec: NetworkSpec, method: Method) -> None:
    """Refuses a head that cannot be used, or a sampler that does not suit it.

    Raises:
        ConfigError: they do not fit.
    """
    require_head(spec, method.head)
    if method.sampler not in SAMPLERS[method.head]:
        suited = " or ".join(SAMPLERS[method.head])
        raise ConfigError(f"the {method.head} head is not sampled by {method.sampler!r}", f"Choose {suited}")


def check_direction(method: Method) -> None:
    """Refuses to go on from frames, to close a ring or to change captions where a sampler cannot.

    Raises:
        ConfigError: it goes window by window.
    """
    if method.sampler == "windows":
        raise ConfigError(
            "a video made window by window cannot go on from frames, close a loop or change its caption",
            "Take a student's dm or fm head",
        )


def velocity(network: Network, head: Head) -> VelocityModel:
    """The velocity of one head of a network."""
    if isinstance(network.model, Student):
        return network.model.distribution_matching if head == "dm" else network.model.flow_matching
    return network.model


def few_step_times(config: SamplingConfig, flow: FlowConfig, num_frames: int) -> list[float]:
    """The few-step sampler's times for a clip of this length."""
    amount = shift_for(flow, num_frames)
    return [float(shift(torch.tensor(t, dtype=torch.float64), amount)) for t in config.steps]


def path_times(config: SamplingConfig, flow: FlowConfig, num_frames: int) -> list[float]:
    """The ODE sampler's times from the few-step sampler's first to its second, or to 0, both included."""
    first, second = [*few_step_times(config, flow, num_frames), 0.0][:2]
    times = ode_times(config.ode_steps, shift_for(flow, num_frames)).tolist()
    return [first, *(time for time in times if second + ROUNDING < time < first), second]


def generate_latents(
    network: Network,
    method: Method,
    shape: tuple[int, int, int, int],
    conditioning: Conditioning,
    key: Key,
    samples: Sequence[int],
    *,
    sampling: SamplingConfig,
    flow: FlowConfig,
    known: Tensor | None = None,
    ring: bool = False,
    later: Sequence[tuple[int, Conditioning]] = (),
) -> Tensor:
    """Latents [len(samples), *shape] on the network's device: computed in bfloat16 on a GPU, else in float32.

    Args:
        network, method: what is sampled, and how.
        shape: [T, C, h, w] of a video.
        conditioning: one caption per sample, on any device.
        key, samples: name the noise; a row depends on its own, and on its caption, alone.
        sampling, flow: times, guidance and shift.
        known: clean first frames [len(samples), K, C, h, w], which the videos go on from.
        ring: the last frame is followed by the first.
        later: captions [len(samples)] that hold from a frame on, in order.

    Raises:
        ConfigError: `known`, `ring` or `later` for the sampler that goes window by window.
    """
    if known is not None or ring or later:
        check_direction(method)
    device = next(network.model.parameters()).device
    model = velocity(network, method.head)
    if method.sampler != "few_step":
        model = guided(model, sampling.guidance_scale)
    if later:
        model = directed(model, [(first, own.to(device)) for first, own in ((0, conditioning), *later)])
    draw = Draw(
        shape,
        conditioning.to(device),
        key,
        samples,
        None if known is None else known.to(device),
        ring_turns(shape[0], method.steps) if ring else (),
    )
    with half_precision(device, enabled=device.type == "cuda"):
        if method.sampler == "few_step":
            return few_step(model, few_step_times(sampling, flow, shape[0]), draw)
        if method.sampler == "ode":
            return ode(model, method.steps, shift_for(flow, shape[0]), draw)
        window = network.spec.shape[0]
        return roll_out_by_windows(model, window, window // 2, method.steps, shift_for(flow, window), draw)
