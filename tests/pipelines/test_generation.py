"""Which sampler suits which head, in what numbers it works, and how many evaluations it takes."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.config import load as configs
from jobs.config.shapes import shapes
from models.config import FlowConfig, SamplingConfig
from models.device import half_precision
from models.errors import ConfigError
from models.flow import shift_for
from models.rng import Key
from models.text.conditioning import Conditioning
from pipelines import generation
from pipelines.checkpoints import Network, NetworkSpec, Role
from pipelines.generation import Head, Method, check, generate_latents
from tests.models.builders import TINY, captions, randomize
from tests.pipelines.training.makers import TEXT

METHODS = [
    Method("dm", "few_step", 2),
    Method("fm", "ode", 3),
    Method("teacher", "windows", 2),
    Method("teacher", "ode", 2),
]
KEY = Key(0, purpose="test")


def network(role: Role = "student", frames: int = 6, distilled: bool = True) -> Network:
    spec = NetworkSpec(role, TINY, TEXT, 4, (frames, 4, 1, 1), distilled=distilled)
    model = spec.build()
    randomize(model)
    return Network(model.eval().requires_grad_(False), spec)


def of(method: Method, **changes: Any) -> Network:
    return network("teacher" if method.head == "teacher" else "student", **changes)


@pytest.mark.parametrize(
    ("method", "plain", "guided"),
    [
        (Method("dm", "few_step", 4), 4, 4),
        (Method("fm", "ode", 50), 50, 100),
        (Method("teacher", "windows", 3), 3 * 7, 6 * 7),
    ],
)
def test_a_guided_step_is_two_evaluations(method: Method, plain: int, guided: int) -> None:
    assert method.evaluations(32, 8, 1.0) == plain
    assert method.evaluations(32, 8, 5.0) == guided


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("method", METHODS)
def test_evaluations_are_those_that_are_made(
    method: Method, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def model(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        calls.append(float(t[0]))
        return x_t

    monkeypatch.setattr(generation, "velocity", lambda *_: model)
    sampling = SamplingConfig(steps=(1.0, 0.5), guidance_scale=guidance)
    generate_latents(
        of(method, frames=4),
        method,
        (10, 4, 1, 1),
        captions(1),
        KEY,
        [0],
        sampling=sampling,
        flow=FlowConfig(),
    )
    assert len(calls) == method.evaluations(10, 4, guidance)


@pytest.mark.parametrize("preset", ["ci", "tiny", "minute", "clips"])
def test_the_small_presets_have_neither_shift_nor_guidance_in_a_window(preset: str) -> None:
    """Their tables stand: a rollout's windows are sampled as they were."""
    config = configs.load(preset)
    assert config.sampling.guidance_scale == 1
    assert shift_for(config.flow, shapes(config).short_frames) == 1


def test_a_rollout_is_as_the_teachers_own_sampler() -> None:
    """Wan's shift and guidance reach the windows."""
    made, shape = network("teacher"), (6, 4, 1, 1)
    settings = {"sampling": SamplingConfig(guidance_scale=5.0), "flow": FlowConfig(timestep_shift=5.0)}
    rolled, own = (
        generate_latents(made, method, shape, captions(2), key, [0, 1], **settings)
        for method, key in (
            (Method("teacher", "windows", 3), KEY),
            (Method("teacher", "ode", 3), KEY.at(purpose="window-0")),
        )
    )
    assert torch.equal(rolled, own)


class OnAGpu:
    """Stands for a network whose weights lie on a GPU; it computes here."""

    def __init__(self) -> None:
        self.layer, self.seen = torch.nn.Linear(4, 4), list[torch.dtype]()

    def parameters(self) -> Iterator[Any]:
        yield SimpleNamespace(device=torch.device("cuda"))

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        out: Tensor = self.layer(x_t.flatten(2))
        self.seen.append(out.dtype)
        return out.reshape(x_t.shape)


class Captions:
    """Stands for conditioning; says where it was sent."""

    def __init__(self) -> None:
        self.sent: list[torch.device] = []

    def to(self, device: torch.device) -> Conditioning:
        self.sent.append(device)
        return captions(1)


@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_every_sampler_works_there_and_in_bfloat16(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions: list[tuple[str, bool]] = []

    def region(device: torch.device, enabled: bool) -> torch.autocast:
        regions.append((device.type, enabled))
        return half_precision(torch.device("cpu"), enabled)

    monkeypatch.setattr(generation, "half_precision", region)
    model, given = OnAGpu(), Captions()
    latents = generate_latents(
        Network(model, of(method).spec),  # type: ignore[arg-type]
        method,
        (6, 4, 1, 1),
        given,  # type: ignore[arg-type]
        KEY,
        [0],
        sampling=SamplingConfig(guidance_scale=2.0),
        flow=FlowConfig(),
    )
    assert regions == [("cuda", True)]
    assert given.sent == [torch.device("cuda")]
    assert set(model.seen) == {torch.bfloat16}
    assert latents.dtype == torch.float32


@pytest.mark.parametrize("method", METHODS)
def test_on_the_cpu_nothing_is_halved(method: Method) -> None:
    made = of(method)
    seen: set[torch.dtype] = set()
    for layer in made.model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    settings = {"sampling": SamplingConfig(), "flow": FlowConfig()}
    generate_latents(made, method, (6, 4, 1, 1), captions(1), KEY, [0], **settings)
    assert seen == {torch.float32}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_samples_finite_latents(method: Method) -> None:
    made = of(method)
    latents = generate_latents(
        dataclasses.replace(made, model=made.model.cuda()),
        method,
        (6, 4, 1, 1),
        captions(1),
        KEY,
        [0],
        sampling=SamplingConfig(guidance_scale=2.0),
        flow=FlowConfig(),
    )
    assert latents.device.type == "cuda"
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    ("role", "distilled", "head", "problem"),
    [
        ("student", False, "dm", "only distillation trains it"),
        ("student", True, "teacher", "has no head"),
        ("teacher", False, "dm", "has no head"),
    ],
)
def test_a_head_that_is_not_there_or_not_trained_is_refused(
    role: Role, distilled: bool, head: Head, problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        check(network(role, distilled=distilled).spec, Method(head, "few_step", 4))


def test_trained_heads_and_their_samplers_pass() -> None:
    check(network(distilled=True).spec, Method("dm", "few_step", 4))
    check(network(distilled=False).spec, Method("fm", "ode", 4))
    with pytest.raises(ConfigError, match="not sampled by"):
        check(network().spec, Method("fm", "few_step", 4))
