"""Temporal numbers: known answers, and that each change of a video is seen by the number made for it."""

import numpy as np
import pytest
import torch

from pipelines.evaluation.temporal import (
    TEMPORAL_NAMES,
    drift,
    motion,
    self_repeat,
    sharpness,
    ssim,
    temporal_report,
    temporal_ssim,
)
from tests.pipelines.evaluation.clips import moving_clip

FPS = 8.0


@pytest.fixture(scope="module")
def clip():
    return torch.from_numpy(moving_clip(0, frames=64, size=48)).permute(3, 0, 1, 2).float() / 255


def light(clip):
    return clip.mean(dim=0)


def blur(video, amount):
    pooled = torch.nn.functional.avg_pool2d(video, 5, 1, 2, count_include_pad=False)
    return video * (1 - amount) + pooled * amount


def test_ssim_of_equal_pictures_is_one_and_of_constants_is_known():
    picture = torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ssim(picture, picture), torch.ones(2), atol=1e-5)
    a, b = torch.full((1, 16, 16), 0.25), torch.full((1, 16, 16), 0.75)
    c1 = 0.01**2
    assert ssim(a, b).item() == pytest.approx((2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1), abs=1e-4)


def test_ssim_equals_the_definition_in_one_square():
    random = np.random.default_rng(0)
    a, b = random.random((7, 7)), random.random((7, 7))
    cov = np.cov(a.ravel(), b.ravel())
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * a.mean() * b.mean() + c1) * (2 * cov[0, 1] + c2)
    bottom = (a.mean() ** 2 + b.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)
    assert ssim(torch.tensor(a)[None], torch.tensor(b)[None]).item() == pytest.approx(top / bottom, rel=1e-9)


def test_lags_are_seconds(clip):
    slow = temporal_ssim(light(clip), FPS, (1.0,))[1.0]
    every_second_frame = temporal_ssim(light(clip)[::2], FPS / 2, (1.0,))[1.0]
    assert slow == pytest.approx(every_second_frame, abs=0.02)
    assert temporal_ssim(light(clip)[:5], FPS, (0.25, 1.0)).keys() == {0.25}


def test_similarity_rises_for_what_is_worse(clip):
    """Blur, freezing and looping all raise it: it must be read on both sides."""
    real = temporal_ssim(light(clip), FPS, (2.0,))[2.0]
    looped = torch.cat([light(clip)[:16]] * 4)
    frozen = light(clip)[:1].expand(64, -1, -1)
    for worse in (looped, frozen):
        assert temporal_ssim(worse, FPS, (2.0,))[2.0] > real + 0.05


def test_a_loop_and_a_still_repeat_and_motion_tells_them_apart(clip):
    loop, still = torch.cat([light(clip)[:20]] * 3), light(clip)[:1].expand(60, -1, -1)
    assert self_repeat(light(clip), FPS) < 0.95
    assert self_repeat(loop, FPS) > 0.999
    assert self_repeat(still, FPS) > 0.999
    assert motion(still) == 0 < motion(loop)
    assert self_repeat(light(clip)[:20], FPS) is None


def test_sharpness_falls_with_blur(clip):
    values = [sharpness(light(blur(clip, amount))) for amount in (0.0, 0.3, 0.6, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("luma", lambda v, k: v + k * 0.2),
        ("contrast", lambda v, k: 0.5 + (v - 0.5) * (1 + k)),
        ("saturation", lambda v, k: v.mean(0, keepdim=True) + (v - v.mean(0, keepdim=True)) * (1 + k)),
        ("log_sharpness", lambda v, k: blur(v, k)),
    ],
)
def test_drift_sees_the_change_it_is_named_after(clip, name, change):
    steady = clip[:, :1].expand(-1, 40, -1, -1)
    changed = torch.stack([change(steady[:, i], i / 39) for i in range(40)], dim=1)
    assert abs(drift(steady)[name]) < 1e-6
    sizes = [abs(drift(changed)[other]) for other in (name,)]
    assert sizes[0] > 0.02


def test_a_frozen_end_is_drift_of_motion(clip):
    frozen = torch.cat([clip[:, :48], clip[:, 47:48].expand(-1, 16, -1, -1)], dim=1)
    assert drift(frozen)["log_motion"] < drift(clip)["log_motion"] - 3


def test_report_has_all_names_and_no_sign(clip):
    report = temporal_report(clip, FPS)
    assert set(report) == set(TEMPORAL_NAMES)
    assert all(value >= 0 for name, value in report.items() if name.startswith("drift."))
    assert "self_repeat" not in temporal_report(clip[:, :16], FPS)
