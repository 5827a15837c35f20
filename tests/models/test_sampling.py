"""Samplers on data whose velocity is known exactly."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.flow import ode_times, x0_prediction
from models.rng import Key
from models.sampling import Draw, exits, few_step, noisy_input, ode, roll_out_by_windows
from models.text.conditioning import Conditioning
from tests.models.builders import GaussianVelocity

SHAPE = (6, 5, 1, 1)
KEY = Key(0, purpose="test")


def _draw(samples: Sequence[int], frames: int = SHAPE[0], key: Key = KEY, caption: float = 0.0) -> Draw:
    return Draw((frames, *SHAPE[1:]), Conditioning(torch.full((len(samples), 1, 1), caption)), key, samples)


def test_euler_steps_reach_the_gaussian() -> None:
    x = ode(GaussianVelocity(2.0, 0.5), 100, 1.0, _draw(range(600)))
    assert float(x.mean()) == pytest.approx(2.0, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)


def test_the_first_step_gives_the_mean_and_more_steps_give_back_spread() -> None:
    model, draw = GaussianVelocity(2.0, 0.5), _draw(range(400))
    one = few_step(model, [1.0], draw)
    assert torch.allclose(one, torch.full_like(one, 2.0), atol=1e-5)
    times = [1.0, 0.6, 0.3, 0.1]
    few = few_step(model, times, draw)
    variance = 0.0
    for t in times[1:]:
        reached = (1 - t) ** 2 * variance + t**2
        variance = reached * ((1 - t) * 0.25 / ((1 - t) ** 2 * 0.25 + t**2)) ** 2
    assert float(few.std()) == pytest.approx(variance**0.5, rel=0.03)
    assert float(few.mean()) == pytest.approx(2.0, abs=0.03)


def test_the_exits_are_what_backward_simulation_reaches() -> None:
    model, draw, times = GaussianVelocity(2.0, 0.5), _draw(range(3)), [1.0, 0.6, 0.3]
    found = list(exits(model, times, draw))
    for number, x0 in enumerate(found):
        x_t = noisy_input(model, times[: number + 1], draw)
        assert torch.equal(x0, x0_prediction(model, x_t, draw.at(times[number]), draw.conditioning))
    assert torch.equal(found[-1], few_step(model, times, draw))


def test_network_evaluations_are_counted_as_promised() -> None:
    model = GaussianVelocity(0.0, 1.0)
    few_step(model, [1.0, 0.6, 0.3], _draw([0]))
    assert model.calls == 3
    ode(model, 7, 2.0, _draw([0]))
    assert model.calls == 10
    ode(model, 7, 2.0, _draw([0]), guidance_scale=2.0)
    assert model.calls == 24


@pytest.mark.parametrize("name", ["few", "ode", "windows"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    model = GaussianVelocity(0.5, 0.7)

    def drawn(samples: list[int]) -> Tensor:
        if name == "few":
            return few_step(model, [1.0, 0.5], _draw(samples))
        if name == "ode":
            return ode(model, 3, 1.0, _draw(samples))
        return roll_out_by_windows(model, 4, 2, 3, 1.0, _draw(samples, 9))

    assert torch.equal(drawn([0, 1, 2])[1:], torch.cat([drawn([1]), drawn([2])]))


def test_rollouts_of_training_go_through_the_samplers_states() -> None:
    model, times, draw = GaussianVelocity(0.5, 0.7), [1.0, 0.6, 0.3], _draw([0, 1])
    x = noisy_input(model, times, draw)
    t = torch.full((2,), times[-1])
    finished = x - t.view(-1, 1, 1, 1, 1) * model(x, t, draw.conditioning)
    assert torch.allclose(finished, few_step(model, times, draw))


def test_windows_go_on_from_known_frames() -> None:
    """A teacher that copies its first frame everywhere must give a constant video."""

    def copies(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        x0 = (x_t[:, :1] / (1 - t.view(-1, 1, 1, 1, 1)).clamp_min(1e-3)).expand_as(x_t).clamp(-3, 3)
        return (x_t - x0) / t.view(-1, 1, 1, 1, 1)

    video = roll_out_by_windows(copies, 4, 2, 40, 1.0, _draw([0], 10))
    assert video.shape == (1, 10, *SHAPE[1:])
    first = roll_out_by_windows(copies, 4, 2, 40, 1.0, _draw([0], 4))
    assert torch.equal(video[:, :4], first)


def test_guidance_extrapolates_from_the_null_caption() -> None:
    def model(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return conditioning.text.sum(dim=(1, 2)).view(-1, 1, 1, 1, 1).expand_as(x_t)

    draw = _draw([0], caption=1.0)
    plain = ode(model, 1, 1.0, draw)
    guided = ode(model, 1, 1.0, draw, guidance_scale=3.0)
    assert torch.allclose(plain - guided, torch.full_like(plain, 2.0), atol=1e-6)


def _leaning(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Leans on x, the time and the caption, so that a wrong time or guidance shows."""
    caption_shift = conditioning.text.sum(dim=(1, 2)).view(-1, 1, 1, 1, 1)
    return x_t * t.view(-1, 1, 1, 1, 1) + caption_shift


@pytest.mark.parametrize(("shift", "guidance"), [(1.0, 1.0), (5.0, 1.0), (1.0, 3.0), (5.0, 3.0)])
def test_a_rollout_of_one_window_is_the_ode(shift: float, guidance: float) -> None:
    whole, first = _draw([0, 1], caption=1.0), _draw([0, 1], key=KEY.at(purpose="window-0"), caption=1.0)
    rolled = roll_out_by_windows(_leaning, SHAPE[0], 2, 4, shift, whole, guidance)
    assert torch.equal(rolled, ode(_leaning, 4, shift, first, guidance))


def test_every_window_of_a_rollout_is_shifted_and_guided() -> None:
    times: list[float] = []
    captions: list[float] = []

    def model(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        times.append(float(t[0]))
        captions.append(float(conditioning.text.sum()))
        return _leaning(x_t, t, conditioning)

    roll_out_by_windows(model, 4, 2, 3, 5.0, _draw([0], 8, caption=1.0), 2.0)
    windows = 3
    assert captions == [1.0, 0.0] * 3 * windows
    assert times == [float(t) for t in ode_times(3, 5.0)[:-1] for _ in range(2)] * windows
