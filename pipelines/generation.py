"""From a trained network and captions to latents: the one place that knows which sampler suits which head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.config import FlowConfig, SamplingConfig
from models.ddt import Student
from models.errors import ConfigError
from models.flow import VelocityModel, shift, shift_for
from models.rng import Key
from models.sampling import few_step, ode, roll_out_by_windows
from models.text import Conditioning
from pipelines.training.networks import Network, NetworkSpec

Head = Literal["fm", "dm", "teacher"]
Sampler = Literal["few_step", "ode", "windows"]
SAMPLERS: dict[Head, tuple[Sampler, ...]] = {
    "dm": ("few_step",),
    "fm": ("ode",),
    "teacher": ("windows", "ode"),
}
"""Samplers that suit a head."""


@dataclass(frozen=True)
class Method:
    """How a network is sampled.

    Args:
        head: which velocity.
        sampler: `few_step` is stochastic, `ode` takes Euler steps, `windows` rolls a short model out.
        steps: network evaluations; for `windows`, those of one window; for `few_step`, how many times.
    """

    head: Head
    sampler: Sampler
    steps: int

    def evaluations(self, num_frames: int, window: int) -> int:
        """Network evaluations a video of `num_frames` latent frames."""
        if self.sampler != "windows":
            return self.steps
        new = window - window // 2
        return self.steps * (1 + -(-max(0, num_frames - window) // new))


def check(spec: NetworkSpec, method: Method) -> None:
    """Refuses a head that the network has not, or a sampler that does not suit it.

    Raises:
        ConfigError: they do not fit.
    """
    has: tuple[Head, ...] = ("teacher",) if spec.role == "teacher" else ("fm", "dm")
    if method.head not in has:
        raise ConfigError(f"a {spec.role} has no head {method.head!r}", f"Choose {' or '.join(has)}")
    if method.sampler not in SAMPLERS[method.head]:
        suited = " or ".join(SAMPLERS[method.head])
        raise ConfigError(f"the {method.head} head is not sampled by {method.sampler!r}", f"Choose {suited}")


def velocity(network: Network, head: Head) -> VelocityModel:
    """The velocity of one head of a network."""
    if isinstance(network.model, Student):
        return network.model.distribution_matching if head == "dm" else network.model.flow_matching
    return network.model


def few_step_times(config: SamplingConfig, flow: FlowConfig, num_frames: int) -> list[float]:
    """The few-step sampler's times for a clip of this length."""
    amount = shift_for(flow, num_frames)
    return [float(shift(torch.tensor(t, dtype=torch.float64), amount)) for t in config.steps]


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
) -> Tensor:
    """Latents [len(samples), *shape]; row i depends on key, samples[i] and its caption alone.

    Args:
        network: on the conditioning's device.
        method: head, sampler and steps.
        shape: [T, C, h, w] of a video.
        conditioning: a caption a sample.
        key, samples: name the noise.
        sampling, flow: times, guidance and shift.
    """
    model = velocity(network, method.head)
    if method.sampler == "few_step":
        times = few_step_times(sampling, flow, shape[0])
        return few_step(model, shape, times, conditioning, key, samples)
    if method.sampler == "ode":
        amount, scale = shift_for(flow, shape[0]), sampling.guidance_scale
        return ode(model, shape, method.steps, amount, conditioning, key, samples, scale)
    window = network.spec.shape[0]
    return roll_out_by_windows(
        model, shape[0], window, window // 2, method.steps, shape[1:], conditioning, key, samples
    )
