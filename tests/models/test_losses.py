"""The losses against closed forms and brute force."""

import itertools

import pytest
import torch
from torch import Tensor

from models.config import LossConfig
from models.flow import interpolate, ode_times, x0_prediction
from models.losses import (
    anchor_loss,
    chord,
    flow_matching_loss,
    forward_kl_loss,
    looking_at,
    reverse_kl_loss,
    thirds,
)
from models.rng import Key
from models.sampling import Draw, ode
from models.text.conditioning import Conditioning
from models.windows import Span, spans
from tests.models.builders import GaussianVelocity, captions, latents

CONFIG = LossConfig()


def _zero(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    return torch.zeros_like(x_t)


def test_flow_matching_is_the_mean_squared_velocity_error() -> None:
    x0, noise = latents(), latents(seed=9)
    loss = flow_matching_loss(_zero, x0, noise, torch.tensor([0.2, 0.8]), captions())
    assert torch.allclose(loss, (noise - x0).square().mean())
    perfect = flow_matching_loss(lambda x, t, c: noise - x0, x0, noise, torch.tensor([0.2, 0.8]), captions())
    assert float(perfect) == 0


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 12])
def test_thirds_weighted_by_their_frames_are_the_mean(frames: int) -> None:
    errors = latents(2, frames)
    found = list(thirds(errors).values())
    sizes = [len(part) for part in torch.arange(frames).tensor_split(3) if len(part)]
    mean = sum(n * part for n, part in zip(sizes, found, strict=True)) / frames
    torch.testing.assert_close(mean, errors.mean())


def test_the_anchor_is_zero_at_its_reference() -> None:
    x0 = latents()
    assert float(anchor_loss(x0, x0)) == 0
    assert float(anchor_loss(x0 + 2, x0)) == pytest.approx(4)


def test_a_path_of_one_step_is_the_anchor() -> None:
    """At t = 1 one Euler step goes along the velocity, whose x0 is the anchor's."""
    model, x, t = GaussianVelocity(1.5, 0.5), latents(), torch.ones(2)
    student = latents(seed=3)
    path = chord(model, x, [1.0, 0.6], captions())
    anchor = anchor_loss(student, x0_prediction(model, x, t, captions()))
    torch.testing.assert_close(forward_kl_loss(student, x, t, path), anchor)


def test_a_path_of_many_steps_ends_where_the_ode_sampler_ends() -> None:
    model, draw = GaussianVelocity(1.5, 0.5), Draw((3, 4, 1, 1), captions(), Key(0), range(2))
    noise = draw.noise("noise-0")
    path = chord(model, noise, ode_times(20, 2.0).tolist(), captions())
    torch.testing.assert_close(noise - path, ode(model, 20, 2.0, draw))
    student = ode(model, 20, 2.0, draw)
    assert float(forward_kl_loss(student, noise, torch.ones(2), path)) < 1e-10


def test_a_teacher_that_looks_at_the_students_own_windows_is_the_teacher() -> None:
    model, x_t, t = GaussianVelocity(1.5, 0.5), latents(), torch.tensor([0.3, 0.9])
    assert torch.equal(looking_at(model, x_t)(x_t, t, captions()), model(x_t, t, captions()))


def test_data_forcing_is_the_critic_on_the_students_minus_the_teacher_on_real_windows() -> None:
    """With the same noise and times; the normaliser is the distance to what the teacher says of those."""
    video, real = latents(2, 5).requires_grad_(), latents(2, 5, seed=8)
    noise, t = latents(2, 5, seed=4), torch.tensor([0.3, 0.8])
    teacher, critic = GaussianVelocity(1.0, 0.5), GaussianVelocity(0.0, 1.0)
    forced = looking_at(teacher, interpolate(real, noise, t))
    reverse_kl_loss(video, [Span(0, 5)], [0], noise, t, captions(), forced, critic, CONFIG).value.backward()
    at = t.view(-1, 1, 1, 1, 1)
    x_t = interpolate(video.detach(), noise, t)
    wanted = teacher.x0(interpolate(real, noise, t), at)
    score = critic.x0(x_t, at) - wanted
    score = score / (video.detach() - wanted).abs().mean(dim=(1, 2, 3, 4), keepdim=True)
    assert video.grad is not None
    torch.testing.assert_close(video.grad, score / video.numel(), rtol=1e-4, atol=1e-7)


def test_the_prediction_of_a_gaussian_is_its_posterior_mean() -> None:
    model, x_t, t = GaussianVelocity(1.5, 0.5), latents(), torch.tensor([0.3, 1.0])
    expected = model.x0(x_t, t.view(-1, 1, 1, 1, 1))
    assert torch.allclose(x0_prediction(model, x_t, t, captions()), expected, atol=1e-5)
    assert torch.allclose(expected[1], torch.full_like(expected[1], 1.5))


def _by_hand(
    video: Tensor,
    tiling: list[Span],
    noise: Tensor,
    t: Tensor,
    teacher: GaussianVelocity,
    critic: GaussianVelocity,
    crop_safe: bool,
) -> Tensor:
    """Brute force, one window after the other; inner windows lose their first frame unless crop-safe."""
    total, covered = torch.zeros_like(video), torch.zeros_like(video)
    for b, (k, window) in itertools.product(range(len(video)), enumerate(tiling)):
        row = b * len(tiling) + k
        w = video[b, window.start : window.stop]
        x_t = (1 - t[row]) * w + t[row] * noise[row]
        real, fake = teacher.x0(x_t, t[row]), critic.x0(x_t, t[row])
        skip = 1 if window.start and not crop_safe else 0
        score = (fake - real) / (w - real).abs().mean()
        total[b, window.start + skip : window.stop] += score[skip:]
        covered[b, window.start + skip : window.stop] += 1
    return total / covered


@pytest.mark.parametrize("crop_safe", [True, False])
def test_the_gradient_is_the_covered_mean_of_the_windows_scores(crop_safe: bool) -> None:
    video = latents(2, 13).requires_grad_()
    tiling = spans(13, 5, 3, phase=2)
    rows = 2 * len(tiling)
    noise, t = latents(rows, 5, seed=4), torch.linspace(0.1, 0.9, rows)
    teacher, critic = GaussianVelocity(1.0, 0.5), GaussianVelocity(0.0, 1.0)
    scorers = (teacher, critic)
    loss = reverse_kl_loss(
        video, tiling, range(len(tiling)), noise, t, captions(), *scorers, CONFIG, crop_safe
    )
    loss.value.backward()
    expected = _by_hand(video.detach(), tiling, noise, t, teacher, critic, crop_safe)
    assert video.grad is not None
    assert torch.allclose(video.grad, expected / video.numel(), atol=1e-7)
    assert loss.value.item() == pytest.approx(float(0.5 * expected.square().mean()), rel=1e-5)
    assert (teacher.calls, critic.calls) == (1, 1)
    assert loss.non_finite == 0


@pytest.mark.parametrize("start", [0, 8])
def test_one_window_is_scored_as_if_it_were_the_video(start: int) -> None:
    """With the gradient and the loss of a video of its length, and none outside of it."""
    scorers = (GaussianVelocity(1.0, 0.5), GaussianVelocity(0.0, 1.0))
    video, noise, t = latents(2, 13), latents(2, 5, seed=4), torch.tensor([0.3, 0.8])
    whole, alone = video.clone().requires_grad_(), video[:, start : start + 5].clone().requires_grad_()
    losses = [
        reverse_kl_loss(x, [Span(at, 5)], [0], noise, t, captions(), *scorers, CONFIG)
        for x, at in ((whole, start), (alone, 0))
    ]
    for loss in losses:
        loss.value.backward()
    assert losses[0].value.item() == pytest.approx(losses[1].value.item(), rel=1e-6)
    assert whole.grad is not None
    assert alone.grad is not None
    torch.testing.assert_close(whole.grad[:, start : start + 5], alone.grad)
    whole.grad[:, start : start + 5] = 0
    assert not whole.grad.any()


def test_a_window_within_the_video_leaves_out_its_first_latent() -> None:
    scorers = (GaussianVelocity(1.0, 0.5), GaussianVelocity(0.0, 1.0))
    video, t = latents(2, 9).requires_grad_(), torch.full((2,), 0.5)
    tiling = [Span(0, 5), Span(4, 5)]
    loss = reverse_kl_loss(video, tiling, [1], latents(2, 5), t, captions(), *scorers, CONFIG, False)
    loss.value.backward()
    assert video.grad is not None
    assert not video.grad[:, :5].any()
    assert video.grad[:, 5:].all()


def test_flow_matching_counts_only_the_given_frames() -> None:
    x0, noise, t = latents(2, 4), latents(2, 4, seed=9), torch.tensor([0.2, 0.7])
    model, frames = GaussianVelocity(1.0, 0.5), torch.ones(2, 4, dtype=torch.bool)
    plain = flow_matching_loss(model, x0, noise, t, captions())
    assert torch.allclose(plain, flow_matching_loss(model, x0, noise, t, captions(), frames))
    frames[1, 0] = False
    one = flow_matching_loss(model, x0[:1], noise[:1], t[:1], captions(1))
    two = (model(interpolate(x0, noise, t), t, captions()) - (noise - x0))[1, 1:].square().mean()
    assert torch.allclose(flow_matching_loss(model, x0, noise, t, captions(), frames), (one + two) / 2)


def test_descent_moves_videos_towards_the_teacher() -> None:
    """Student and critic are N(0, 1), the teacher is N(1, 1): every frame must rise."""
    video = latents(4, 12).requires_grad_()
    tiling = spans(12, 4, 2)
    rows = 4 * len(tiling)
    scorers = (GaussianVelocity(1.0, 1.0), GaussianVelocity(0.0, 1.0))
    noise, t = latents(rows, 4, seed=4), torch.full((rows,), 0.5)
    reverse_kl_loss(
        video, tiling, range(len(tiling)), noise, t, captions(4), *scorers, CONFIG
    ).value.backward()
    assert video.grad is not None
    assert float(video.grad.max()) < 0


def test_a_student_that_equals_its_teacher_gets_no_gradient() -> None:
    video = latents(2, 12).requires_grad_()
    tiling = spans(12, 4, 4)
    rows = 2 * len(tiling)
    scorers = (GaussianVelocity(0.0, 1.0), GaussianVelocity(0.0, 1.0))
    loss = reverse_kl_loss(
        video,
        tiling,
        range(len(tiling)),
        latents(rows, 4, seed=4),
        torch.full((rows,), 0.5),
        captions(),
        *scorers,
        CONFIG,
    )
    loss.value.backward()
    assert video.grad is not None
    assert not video.grad.any()


def test_scoring_some_windows_is_right_on_average() -> None:
    tiling = spans(14, 4, 2, phase=1)
    scorers = (GaussianVelocity(1.0, 0.5), GaussianVelocity(0.0, 1.0))
    video = latents(2, 14)

    def gradient(chosen: list[int]) -> Tensor:
        leaf = video.clone().requires_grad_()
        rows = 2 * len(chosen)
        noise, t = torch.zeros(rows, 4, *video.shape[2:]), torch.full((rows,), 0.5)
        reverse_kl_loss(leaf, tiling, chosen, noise, t, captions(), *scorers, CONFIG).value.backward()
        assert leaf.grad is not None
        return leaf.grad

    parts = [gradient(list(c)) for c in itertools.combinations(range(len(tiling)), 2)]
    assert torch.allclose(torch.stack(parts).mean(0), gradient(list(range(len(tiling)))), atol=1e-6)


def test_guidance_uses_the_null_caption() -> None:
    calls: list[float] = []

    def teacher(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        calls.append(float(conditioning.text.abs().sum()))
        return torch.zeros_like(x_t)

    tiling = [Span(0, 4)]
    config = LossConfig(guidance_scale=3.0)
    reverse_kl_loss(
        latents(2, 4).requires_grad_(),
        tiling,
        [0],
        latents(2, 4),
        torch.tensor([0.5, 0.5]),
        captions(),
        teacher,
        _zero,
        config,
    )
    assert calls[0] > 0
    assert calls[1] == 0


def test_non_finite_scores_are_counted_and_do_not_reach_the_gradient() -> None:
    def broken(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        out = torch.zeros_like(x_t)
        out[0, 0] = torch.nan
        return out

    video = latents(2, 4).requires_grad_()
    loss = reverse_kl_loss(
        video,
        [Span(0, 4)],
        [0],
        latents(2, 4),
        torch.tensor([0.5, 0.5]),
        captions(),
        _zero,
        broken,
        CONFIG,
    )
    loss.value.backward()
    assert loss.non_finite == 4
    assert video.grad is not None
    assert bool(video.grad.isfinite().all())


def test_interpolation_is_what_the_scores_see() -> None:
    seen: list[Tensor] = []

    def spy(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(x_t)
        return torch.zeros_like(x_t)

    video, noise, t = latents(2, 6), latents(4, 3, seed=8), torch.tensor([0.1, 0.4, 0.6, 0.9])
    tiling = [Span(0, 3), Span(3, 3)]
    reverse_kl_loss(video, tiling, [0, 1], noise, t, captions(), spy, spy, CONFIG)
    windows = torch.stack([video[0, :3], video[0, 3:], video[1, :3], video[1, 3:]])
    assert torch.equal(seen[0], interpolate(windows, noise, t))
    assert torch.equal(seen[0], seen[1])
