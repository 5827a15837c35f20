from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.score import cpu as reverse_kl_cpu
from tests.kernels.helpers import relative, score_by, windows

NORMALIZERS = ["window", "sample", "block"]


@pytest.fixture(params=["reference", "at once", "in runs"])
def score(request, monkeypatch):
    """The definition, and the CPU path as it works on small and, by runs of 5 elements, on large windows."""
    if request.param == "reference":
        return partial(score_by, reference)
    if request.param == "in runs":
        in_runs(monkeypatch)
    return partial(score_by, reverse_kl_cpu)


def in_runs(monkeypatch, run=5):
    monkeypatch.setattr(reverse_kl_cpu, "LARGE", 0)
    monkeypatch.setattr(reverse_kl_cpu, "RUN", run)


def test_known_answer(score):
    ones = torch.ones(1, 2, 1)
    result = score(
        5 * ones,
        4 * ones,
        torch.tensor([0.5]),
        2 * ones,
        None,
        6 * ones,
        guidance_scale=1,
        normalizer="window",
    )
    # x0_real = 4 - 0.5 * 2 = 3, x0_fake = 4 - 0.5 * 6 = 1, mean |5 - 3| = 2
    assert result.score.flatten().tolist() == [-1, -1]
    assert result.distance_real.tolist() == [2]
    assert result.distance_fake.tolist() == [2]
    assert result.norm.tolist() == [2]
    assert result.non_finite.item() == 0
    assert result.loss.item() == 0.5


def test_guidance_is_u_plus_s_times_c_minus_u(score):
    x0, x_t, t, cond, uncond, fake = windows(3, 4)
    guided = score(x0, x_t, t, cond, uncond, fake, guidance_scale=5.0, normalizer="window")
    by_hand = uncond + 5.0 * (cond - uncond)
    plain = score(x0, x_t, t, by_hand, None, fake, guidance_scale=1.0, normalizer="window")
    for a, b in zip(guided, plain, strict=True):
        assert torch.allclose(a, b)
    ignored = score(x0, x_t, t, cond, uncond, fake, guidance_scale=1.0, normalizer="window")
    assert torch.equal(
        ignored.score, score(x0, x_t, t, cond, None, fake, guidance_scale=1.0, normalizer="window").score
    )


def test_difference_of_x0_is_t_times_difference_of_velocities(score):
    x0, x_t, t, cond, _, fake = windows(5, 4)
    result = score(x0, x_t, t, cond, None, fake, guidance_scale=1.0, normalizer="window")
    time = t.view(-1, 1, 1, 1, 1)
    assert torch.allclose(result.score * result.norm.view(time.shape), time * (cond - fake))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_the_mean_of_the_stated_scope(score, normalizer):
    x0, x_t, t, cond, _, fake = windows(6, 5)
    result = score(
        x0,
        x_t,
        t,
        cond,
        None,
        fake,
        guidance_scale=1.0,
        normalizer=normalizer,
        windows_per_sample=3,
        block_frames=2,
    )
    gap = (x0 - (x_t - t.view(-1, 1, 1, 1, 1) * cond)).abs()
    if normalizer == "window":
        expected = torch.stack([g.mean() for g in gap])
    elif normalizer == "sample":
        expected = torch.stack([gap[:3].mean()] * 3 + [gap[3:].mean()] * 3)
    else:
        expected = torch.stack([torch.stack([g[:2].mean(), g[2:4].mean(), g[4:].mean()]) for g in gap])
    assert torch.allclose(result.norm, expected)
    frame_norm = expected.view(6, -1).repeat_interleave(2 if normalizer == "block" else 5, 1)[:, :5]
    assert torch.allclose(
        result.score * frame_norm.view(6, 5, 1, 1, 1), t.view(-1, 1, 1, 1, 1) * (cond - fake)
    )


def test_the_gradient_of_the_squared_loss_is_the_score_over_the_number_of_elements(score):
    x0, x_t, t, cond, _, fake = windows(2, 3)
    x0.requires_grad_()
    result = score(x0, x_t, t, cond, None, fake, guidance_scale=1.0, normalizer="window")
    assert not result.score.requires_grad
    loss = 0.5 * (x0 - (x0 - result.score).detach()).square().mean()
    (grad,) = torch.autograd.grad(loss, x0)
    assert torch.allclose(grad, result.score / x0.numel())
    assert torch.allclose(loss, result.loss)


def test_a_student_at_its_teacher_divides_by_the_floor(score):
    x0, x_t, t, _, _, fake = windows(2, 3)
    cond = (x_t - x0) / t.view(-1, 1, 1, 1, 1)
    result = score(x0, x_t, t, cond, None, fake, guidance_scale=1.0, normalizer="window", floor=0.25)
    assert result.norm.tolist() == [0.25, 0.25]
    assert result.distance_real.max() < 1e-12


def test_a_critic_that_agrees_with_the_teacher_pushes_nowhere(score):
    x0, x_t, t, cond, _, _ = windows(2, 3)
    result = score(x0, x_t, t, cond, None, cond, guidance_scale=1.0, normalizer="window")
    assert not result.score.any()
    assert not result.distance_fake.any()
    assert result.loss == 0


def test_both_ends_of_time(score):
    x0, x_t, t, cond, _, fake = windows(2, 3)
    options = {"guidance_scale": 1.0, "normalizer": "window"}
    at_data = score(x0, x_t, torch.zeros_like(t), cond, None, fake, **options)
    assert not at_data.score.any()
    assert torch.allclose(at_data.distance_real, (x0 - x_t).abs().flatten(1).mean(1))
    at_noise = score(x0, x_t, torch.ones_like(t), cond, None, fake, **options)
    assert torch.allclose(at_noise.score * at_noise.norm.view(-1, 1, 1, 1, 1), cond - fake)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_becomes_zero_and_is_counted(score, place, value):
    inputs = list(windows(3, 4))
    tensors = [inputs[0], inputs[1], inputs[3], inputs[4], inputs[5]]
    tensors[place][1, 2, 0, 0, 0] = value
    result = score(*inputs, guidance_scale=2.0, normalizer="window")
    assert result.score.isfinite().all()
    assert result.score[1, 2, 0, 0, 0] == 0
    assert result.non_finite.item() >= 1
    clean = score(*windows(3, 4), guidance_scale=2.0, normalizer="window")
    assert torch.equal(result.score[[0, 2]], clean.score[[0, 2]])
    assert result.loss == pytest.approx(0.5 * result.score.square().mean().item())
    assert clean.non_finite.item() == 0
    truth = score_by(reference, *inputs, guidance_scale=2.0, normalizer="window")
    assert result.non_finite == truth.non_finite


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_one_entry_that_is_not_finite_costs_no_more_than_its_scope(score, normalizer):
    inputs = windows(4, 4)
    inputs[3][1, 0, 0, 0, 0] = float("nan")
    options = {"normalizer": normalizer, "windows_per_sample": 2, "block_frames": 2}
    result = score(*inputs, guidance_scale=1.0, **options)
    lost = {"window": 48, "sample": 96, "block": 24}[normalizer]
    assert result.non_finite == lost
    assert result.score.eq(0).sum() == lost


def test_an_infinite_entry_alone_is_lost_but_stops_its_window(score):
    inputs = windows(2, 3, dtype=torch.float32)
    inputs[0][1, 0, 0, 0, 0] = float("inf")
    result = score(*inputs, guidance_scale=1.0, normalizer="window")
    assert result.non_finite == 1
    assert not result.score[1].any()
    assert result.norm[1] == float("inf")


def test_a_sum_beyond_float32_is_no_reason_to_lose_entries(score):
    x0, x_t, t, cond, _, fake = windows(1, 2, dtype=torch.float32)
    result = score(
        x0 + 3e38, x_t, t, cond, None, fake + 1e25, guidance_scale=1.0, normalizer="block", floor=1.0
    )
    assert result.non_finite == 0
    assert result.score.isfinite().all()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("run", [None, 17])
def test_cpu_in_float32_is_the_float64_reference(monkeypatch, normalizer, guidance_scale, run):
    if run:
        in_runs(monkeypatch, run)
    exact = windows(6, 5, dtype=torch.float64)
    options = {
        "guidance_scale": guidance_scale,
        "normalizer": normalizer,
        "windows_per_sample": 2,
        "block_frames": 2,
    }
    truth = score_by(reference, *exact, **options)
    result = score_by(reverse_kl_cpu, *[x.float() for x in exact], **options)
    for value, expected in zip((*result[:4], result.loss), (*truth[:4], truth.loss), strict=True):
        assert value.dtype == torch.float32
        assert value.shape == expected.shape
        assert relative(value, expected) < 1e-6


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.sampled_from(NORMALIZERS)
)
def test_any_shape_is_the_reference(videos, per_video, frames, block, normalizer):
    inputs = windows(videos * per_video, frames, seed=block)
    options = {
        "guidance_scale": 3.0,
        "normalizer": normalizer,
        "windows_per_sample": per_video,
        "block_frames": block,
    }
    truth = score_by(reference, *inputs, **options)
    for value, expected in zip(score_by(reverse_kl_cpu, *inputs, **options), truth, strict=True):
        assert value.shape == expected.shape
        assert torch.allclose(value, expected)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.25, 8.0))
def test_the_score_does_not_depend_on_the_scale_of_the_latents(factor):
    x0, x_t, t, cond, _, fake = windows(3, 4)
    options = {"guidance_scale": 1.0, "normalizer": "window"}
    one = score_by(reverse_kl_cpu, x0, x_t, t, cond, None, fake, **options)
    many = score_by(
        reverse_kl_cpu, factor * x0, factor * x_t, t, factor * cond, None, factor * fake, **options
    )
    assert torch.allclose(one.score, many.score)


@pytest.mark.parametrize("inner", [(3, 2, 2), (8, 32, 16)])
def test_a_window_is_scored_alike_alone_and_in_a_batch(inner):
    inputs = windows(6, 5, dtype=torch.float32, inner=inner)
    inputs[0][0, 0] = float("inf")
    options = {"guidance_scale": 2.0, "normalizer": "window"}
    batch = score_by(reverse_kl_cpu, *inputs, **options)
    alone = score_by(reverse_kl_cpu, *[x[4:5] for x in inputs], **options)
    assert torch.equal(batch.score[4:5], alone.score)


def test_half_precision_keeps_its_type_and_is_summed_in_float32():
    inputs = [x.bfloat16() for x in windows(2, 8, inner=(4, 16, 16))]
    result = score_by(reverse_kl_cpu, *inputs, guidance_scale=1.0, normalizer="window")
    truth = score_by(reference, *[x.double() for x in inputs], guidance_scale=1.0, normalizer="window")
    assert result.score.dtype == torch.bfloat16
    assert relative(result.score, truth.score) < 3e-3
    assert relative(result.norm, truth.norm) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_large_windows_are_the_reference(normalizer, dtype):
    assert reverse_kl_cpu.LARGE < 3 * 8 * 33 * 31
    inputs = windows(4, 7, dtype=dtype, inner=(8, 33, 31))
    options = {"normalizer": normalizer, "windows_per_sample": 2, "block_frames": 3}
    result = score_by(reverse_kl_cpu, *inputs, guidance_scale=5.0, **options)
    truth = score_by(reference, *[x.double() for x in inputs], guidance_scale=5.0, **options)
    assert relative(result.score, truth.score) < (3e-3 if dtype == torch.bfloat16 else 1e-6)
    for value, expected in zip((*result[1:4], result.loss), (*truth[1:4], truth.loss), strict=True):
        assert relative(value, expected) < 1e-6
    assert result.non_finite == 0


def test_inputs_of_other_strides_and_types_are_used_as_they_are():
    wide = windows(4, 6, dtype=torch.float32, inner=(64, 8, 8))
    x0, x_t, t, cond, uncond, fake = (x[::2, 1:6] if x.dim() > 1 else x[::2] for x in wide)
    inputs = (x0.transpose(3, 4).contiguous().transpose(3, 4), x_t, t.double(), cond.bfloat16(), uncond, fake)
    result = score_by(reverse_kl_cpu, *inputs, guidance_scale=2.0, normalizer="window")
    truth = score_by(reference, *[x.double() for x in inputs], guidance_scale=2.0, normalizer="window")
    assert result.score.dtype == torch.float32
    assert relative(result.score, truth.score) < 1e-6
