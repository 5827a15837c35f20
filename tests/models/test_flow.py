"""The time convention against closed forms."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.config import FlowConfig
from models.flow import (
    interpolate,
    logit_normal_times,
    ode_times,
    precondition_input,
    preconditioned_velocity,
    shift,
    shift_for,
    uniform_times,
    x0_prediction,
)
from models.rng import Key
from tests.models.builders import captions


def _pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 4, 2, 1, 1)
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


def test_time_zero_is_data_and_time_one_is_noise() -> None:
    x0, noise = _pair()
    assert torch.equal(interpolate(x0, noise, torch.zeros(3)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(3)), noise)


def test_the_velocity_points_from_data_to_noise() -> None:
    x0, noise = _pair()
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    h = 1e-6
    slope = (interpolate(x0, noise, t + h) - interpolate(x0, noise, t - h)) / (2 * h)
    assert torch.allclose(slope, noise - x0, atol=1e-8)
    assert torch.allclose(x0_prediction(lambda *_: noise - x0, interpolate(x0, noise, t), t, captions(3)), x0)


def test_times_may_differ_by_frame() -> None:
    x0, noise = _pair()
    t = torch.zeros(3, 4)
    t[:, 2] = 1
    mixed = interpolate(x0, noise, t)
    assert torch.equal(mixed[:, 2], noise[:, 2])
    assert torch.equal(mixed[:, 0], x0[:, 0])


@given(st.floats(0.001, 0.999), st.floats(0.2, 8), st.floats(0.2, 8))
def test_shifts_compose_by_multiplication(t: float, a: float, b: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    assert float(shift(shift(time, a), b)) == pytest.approx(float(shift(time, a * b)))


def test_the_shift_grows_with_the_square_root_of_the_length() -> None:
    config = FlowConfig(timestep_shift=2.0, timestep_shift_frames=32)
    assert [shift_for(config, n) for n in (8, 32, 128)] == [2.0, 2.0, 4.0]
    fixed = FlowConfig(timestep_shift=5.0, timestep_shift_frames=None)
    assert [shift_for(fixed, n) for n in (8, 121, 1000)] == [5.0, 5.0, 5.0]
    assert ode_times(4, 1.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_training_times_have_the_logit_normal_median() -> None:
    t = logit_normal_times(Key(0, purpose="t"), range(4001), mean=0.6, std=1.0, amount=1.0)
    assert float(t.median()) == pytest.approx(float(torch.sigmoid(torch.tensor(0.6))), abs=0.01)
    assert 0 < float(t.min()) < float(t.max()) < 1


@pytest.mark.parametrize("amount", [1.0, 5.0])
def test_shifted_uniform_times_keep_their_ends_and_have_no_lumps_there(amount: float) -> None:
    """Their distribution is known: P(t < x) = (shift(x, 1/s) - shift(low, 1/s)) / (...), from `low` on."""
    t = uniform_times(Key(0, purpose="t"), range(4000), amount, 0.02, 0.98)
    assert 0.02 <= float(t.min()) < 0.04
    assert 0.975 < float(t.max()) <= 0.98
    ends = shift(torch.tensor([0.02, 0.5, 0.98]), 1 / amount)
    below = float((ends[1] - ends[0]) / (ends[2] - ends[0]))
    assert float((t < 0.5).float().mean()) == pytest.approx(below, abs=0.03)
    assert float((t == t.min()).sum()) == 1


def test_preconditioning_is_exact_for_the_best_network() -> None:
    """Solve v = (2t-1)/d x_t - F/sqrt(d) for F: the velocity comes back at every time, t = 0 included."""
    x0, noise = _pair()
    for value in (0.0, 0.3, 1.0):
        t = torch.full((3,), value, dtype=torch.float64)
        x_t = interpolate(x0, noise, t)
        d = (1 - value) ** 2 + value**2
        raw = (2 * value - 1) / d**0.5 * x_t - d**0.5 * (noise - x0)
        assert torch.allclose(preconditioned_velocity(raw, x_t, t), noise - x0)


def test_preconditioned_input_has_unit_variance_for_unit_data() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 500, 20, 1, 1, generator=generator) for _ in range(2))
    for value in (0.1, 0.5, 0.9):
        t = torch.full((2,), value)
        assert float(precondition_input(interpolate(x0, noise, t), t).var()) == pytest.approx(1, abs=0.03)


def test_the_gaussian_score_velocity_carries_noise_to_data() -> None:
    """For data N(m, s^2) the exact velocity is known; Euler steps along -v must reach that Gaussian."""
    mean, std = 2.0, 0.5
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(20000, generator=generator, dtype=torch.float64)
    times = ode_times(400, 1.0).double()
    for t, following in pairwise(times):
        variance = (1 - t) ** 2 * std**2 + t**2
        centred = x - (1 - t) * mean
        velocity = (t - (1 - t) * std**2) / variance * centred - mean
        x = x + (following - t) * velocity
    assert float(x.mean()) == pytest.approx(mean, abs=0.02)
    assert float(x.std()) == pytest.approx(std, abs=0.02)
