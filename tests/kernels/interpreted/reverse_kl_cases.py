"""The reverse-KL score in Triton's interpreter: run by test_interpreted.py in a process of its own."""

import pytest
import torch

from kernels import dispatch, ops, reference
from kernels.score import triton
from tests.kernels.helpers import relative, score_by, windows

NORMALIZERS = ["window", "sample", "block"]
BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


SMALL, SEVERAL_TILES = (3, 2, 2), (5, 11, 23)


@pytest.mark.parametrize(
    ("dtype", "normalizer", "inner"),
    [
        (torch.float32, "window", SEVERAL_TILES),
        (torch.float32, "sample", SMALL),
        (torch.float32, "block", SEVERAL_TILES),
        (torch.float16, "window", SMALL),
        (torch.float16, "sample", SEVERAL_TILES),
        (torch.bfloat16, "sample", SEVERAL_TILES),
        (torch.bfloat16, "block", SMALL),
    ],
)
def test_all_fields_are_the_float64_reference(dtype, normalizer, inner):
    inputs = windows(4, 5, dtype=dtype, inner=inner)
    options = {"guidance_scale": 3.0, "normalizer": normalizer, "windows_per_sample": 2, "block_frames": 2}
    result = score_by(triton, *inputs, **options)
    truth = score_by(reference, *[x.double() for x in inputs], **options)
    assert result.score.dtype == dtype
    assert relative(result.score, truth.score) < BOUNDS[dtype]
    for value, expected in zip((*result[1:4], result.loss), (*truth[1:4], truth.loss), strict=True):
        assert value.shape == expected.shape
        assert relative(value, expected) < 1e-6
    assert result.non_finite == truth.non_finite == 0


def test_without_guidance_the_unconditional_velocity_is_not_read():
    x0, x_t, t, cond, uncond, fake = windows(2, 3, dtype=torch.float32)
    options = {"guidance_scale": 1.0, "normalizer": "window"}
    poisoned = score_by(triton, x0, x_t, t, cond, uncond * float("nan"), fake, **options)
    assert torch.equal(poisoned.score, score_by(triton, x0, x_t, t, cond, None, fake, **options).score)
    assert poisoned.non_finite == 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("place", "value"),
    [(0, float("inf")), (1, float("nan")), (3, float("inf")), (4, float("nan")), (5, float("inf"))],
)
def test_what_is_not_finite_is_zero_and_counted_as_in_the_reference(place, value):
    inputs = list(windows(3, 4, dtype=torch.float32))
    inputs[place][1, 2, 0, 0, 0] = value
    options = {"guidance_scale": 2.0, "normalizer": "window"}
    result, truth = score_by(triton, *inputs, **options), score_by(reference, *inputs, **options)
    assert result.non_finite.item() == truth.non_finite.item() > 0
    assert torch.allclose(result.score, truth.score, atol=1e-6)


def test_two_runs_give_the_same_bits_and_a_batch_changes_no_row():
    inputs = windows(3, 2, dtype=torch.float32, inner=(4, 16, triton.BLOCKS[torch.float32] // 48))
    options = {"guidance_scale": 2.0, "normalizer": "window"}
    one, two = score_by(triton, *inputs, **options), score_by(triton, *inputs, **options)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    alone = score_by(triton, *[x[1:2] for x in inputs], **options)
    assert torch.equal(alone.score, one.score[1:2])


def test_slices_and_unwritten_memory(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(77))
    wide = windows(4, 6, dtype=torch.float32)
    inputs = [x[::2, 1:4] if x.dim() > 1 else x[::2] for x in wide]
    result = score_by(triton, *inputs, guidance_scale=2.0, normalizer="block", block_frames=2)
    truth = score_by(reference, *inputs, guidance_scale=2.0, normalizer="block", block_frames=2)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(result, truth, strict=True))


def test_the_kernel_is_reached_by_demand_and_refuses_float64(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    inputs = windows(2, 3, dtype=torch.float32)
    result = ops.reverse_kl_score(*inputs, guidance_scale=2.0, normalizer="window")
    assert torch.equal(result.score, score_by(triton, *inputs, guidance_scale=2.0, normalizer="window").score)
    with pytest.raises(ValueError, match="SOSTENUTO_KERNELS=reference"):
        ops.reverse_kl_score(*windows(2, 3), guidance_scale=2.0, normalizer="window")


@pytest.mark.parametrize(("time", "guidance_scale"), [(0.0, 7.5), (1.0, 0.0), (1.0, 1.0)])
def test_both_ends_of_time_and_every_guidance(time, guidance_scale):
    x0, x_t, t, cond, uncond, fake = windows(2, 3, dtype=torch.float32)
    inputs = (x0, x_t, torch.full_like(t, time), cond, uncond, fake)
    options = {"guidance_scale": guidance_scale, "normalizer": "window"}
    result, truth = score_by(triton, *inputs, **options), score_by(reference, *inputs, **options)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(result, truth, strict=True))
    assert time or not result.score.any()


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_student_at_its_teacher_divides_by_the_floor(normalizer):
    x0, x_t, t, _, _, fake = windows(2, 4, dtype=torch.float32)
    cond = (x_t - x0) / t.view(-1, 1, 1, 1, 1)
    options = {"normalizer": normalizer, "windows_per_sample": 2, "block_frames": 2, "floor": 0.25}
    result = score_by(triton, x0, x_t, t, cond, None, fake, guidance_scale=1.0, **options)
    assert result.norm.eq(0.25).all()
    same = score_by(triton, x0, x_t, t, cond, None, cond, guidance_scale=1.0, **options)
    assert not same.score.any()
    assert not same.distance_fake.any()
    assert same.loss == 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("normalizer", "value"), [("window", float("nan")), ("sample", float("inf")), ("block", float("nan"))]
)
def test_an_entry_that_is_not_finite_costs_what_it_costs_in_the_reference(normalizer, value):
    inputs = windows(4, 4, dtype=torch.float32)
    inputs[0][1, 2, 0, 0, 0] = value
    options = {"normalizer": normalizer, "windows_per_sample": 2, "block_frames": 3, "guidance_scale": 2.0}
    result, truth = score_by(triton, *inputs, **options), score_by(reference, *inputs, **options)
    assert result.non_finite == truth.non_finite > 0
    assert torch.allclose(result.score, truth.score, atol=1e-6)
    assert torch.allclose(result.loss, truth.loss)
