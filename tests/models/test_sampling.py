"""Samplers on data whose velocity is known exactly."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.flow import ode_times, x0_prediction
from models.rng import Key
from models.sampling import Draw, exits, few_step, guided, noisy_input, ode, ring_turns, roll_out_by_windows
from models.text.conditioning import Conditioning
from tests.models.builders import GaussianVelocity, JointGaussianVelocity, latents

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
    ode(guided(model, 2.0), 7, 2.0, _draw([0]))
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
    led = ode(guided(model, 3.0), 1, 1.0, draw)
    assert torch.allclose(plain - led, torch.full_like(plain, 2.0), atol=1e-6)


def _leaning(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Leans on x, the time and the caption, so that a wrong time or guidance shows."""
    caption_shift = conditioning.text.sum(dim=(1, 2)).view(-1, 1, 1, 1, 1)
    return x_t * t.view(-1, 1, 1, 1, 1) + caption_shift


@pytest.mark.parametrize(("shift", "guidance"), [(1.0, 1.0), (5.0, 1.0), (1.0, 3.0), (5.0, 3.0)])
def test_a_rollout_of_one_window_is_the_ode(shift: float, guidance: float) -> None:
    whole, first = _draw([0, 1], caption=1.0), _draw([0, 1], key=KEY.at(purpose="window-0"), caption=1.0)
    model = guided(_leaning, guidance)
    rolled = roll_out_by_windows(model, SHAPE[0], 2, 4, shift, whole)
    assert torch.equal(rolled, ode(model, 4, shift, first))


def test_every_window_of_a_rollout_is_shifted_and_guided() -> None:
    times: list[float] = []
    captions: list[float] = []

    def model(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        times.append(float(t[0]))
        captions.append(float(conditioning.text.sum()))
        return _leaning(x_t, t, conditioning)

    roll_out_by_windows(guided(model, 2.0), 4, 2, 3, 5.0, _draw([0], 8, caption=1.0))
    windows = 3
    assert captions == [1.0, 0.0] * 3 * windows
    assert times == [float(t) for t in ode_times(3, 5.0)[:-1] for _ in range(2)] * windows


def _going_on(known: Tensor, samples: Sequence[int]) -> Draw:
    return replace(_draw(samples), known=known)


@pytest.mark.parametrize("frames", [1, 3])
def test_known_frames_stay_as_they_are_and_others_are_drawn(frames: int) -> None:
    """Elements are independent, so the others are those that would have been drawn without known ones."""
    model, known = GaussianVelocity(2.0, 0.5), latents(2, frames, SHAPE[1])
    for sampler in (
        lambda draw: few_step(model, [1.0, 0.5], draw),
        lambda draw: ode(model, 3, 1.0, draw),
        lambda draw: noisy_input(model, [1.0, 0.5], draw),
    ):
        made = sampler(_going_on(known, [0, 1]))
        assert torch.equal(made[:, :frames], known)
        torch.testing.assert_close(made[:, frames:], sampler(_draw([0, 1]))[:, frames:])


def test_what_follows_known_frames_is_drawn_from_what_may_follow_them() -> None:
    """Frames are jointly normal, so the conditional mean and spread are known in closed form."""
    frames, known = 4, torch.tensor([1.5, -0.5])
    covariance = 0.8 ** (torch.arange(frames)[:, None] - torch.arange(frames)).abs().double()
    given = known.view(1, 2, 1, 1, 1).expand(500, 2, SHAPE[1], 1, 1)
    draw = replace(_draw(range(500), frames), known=given)
    made = ode(JointGaussianVelocity(covariance), 60, 1.0, draw)[:, 2:, :, 0, 0].double()
    pull = covariance[2:, :2] @ torch.linalg.inv(covariance[:2, :2])
    spread = covariance[2:, 2:] - pull @ covariance[:2, 2:]
    flat = made.transpose(0, 1).flatten(1)
    assert torch.allclose(flat.mean(dim=1), pull @ known.double(), atol=0.03)
    assert torch.allclose(torch.cov(flat), spread, atol=0.04)


def test_a_continuation_does_not_depend_on_its_batch() -> None:
    model, known = GaussianVelocity(0.5, 0.7), latents(3, 2, SHAPE[1])
    together = few_step(model, [1.0, 0.5], _going_on(known, [0, 1, 2]))
    apart = [few_step(model, [1.0, 0.5], _going_on(known[i : i + 1], [i])) for i in range(3)]
    assert torch.equal(together, torch.cat(apart))


def test_turns_of_a_ring_are_even() -> None:
    assert ring_turns(32, 4) == (0, 8, 16, 24)
    assert ring_turns(30, 2) == (0, 15)
    assert ring_turns(8, 6) == (0, 2, 4, 6, 0, 2)


def _drawn_in(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """x0 is the mean of the frames before, at and after; the ends of a clip have one neighbour less."""
    padded = torch.cat((x_t[:, :1], x_t, x_t[:, -1:]), dim=1)
    x0 = (padded[:, :-2] + x_t + padded[:, 2:]) / 3
    return (x_t - x0) / t.view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("sampler", ["few", "ode"])
def test_a_ring_has_no_seam(sampler: str) -> None:
    """Neighbours draw together; over a clip's ends they do not, over a ring's they do."""

    def steps(draw: Draw) -> Tensor:
        made = (
            few_step(_drawn_in, [1.0, 0.7, 0.4, 0.2], draw)
            if sampler == "few"
            else ode(_drawn_in, 12, 1.0, draw)
        )
        return (made - made.roll(1, 1)).square().mean(dim=(0, 2, 3, 4))

    clip = _draw(range(400), 16)
    open_ended, ring = steps(clip), steps(replace(clip, turns=ring_turns(16, 12 if sampler == "ode" else 4)))
    assert float(open_ended[0] / open_ended[1:].mean()) > 1.5
    assert float(ring[0] / ring[1:].mean()) < 1.2


def test_rollouts_of_a_ring_go_through_the_samplers_states() -> None:
    times = [1.0, 0.6, 0.3]
    draw = replace(_draw([0, 1], 8), turns=ring_turns(8, 3))
    x = noisy_input(_drawn_in, times, draw)
    last = x0_prediction(draw.seen_by(_drawn_in, 2), x, draw.at(times[-1]), draw.conditioning)
    assert torch.equal(last, few_step(_drawn_in, times, draw))
