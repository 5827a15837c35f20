"""Temporal numbers: known answers, and that each change of a video is seen by the number made for it."""

import numpy as np
import pytest
import torch

from pipelines.evaluation import temporal
from pipelines.evaluation.measure import Measurements, Measurer
from pipelines.evaluation.temporal import (
    METRICS,
    Video,
    motion,
    self_repeat,
    sharpness,
    temporal_metrics,
    temporal_ssim,
)
from tests.pipelines.evaluation.clips import PixelCode, moving_clip

FPS = 8.0


@pytest.fixture(scope="module")
def clip():
    return torch.from_numpy(moving_clip(0, frames=64, size=48)).permute(3, 0, 1, 2).float() / 255


def video(pixels, fps=FPS):
    return Video(pixels, fps)


def grey(pictures):
    """A video whose luma is these pictures [F, h, w]."""
    return Video(torch.as_tensor(pictures).expand(3, -1, -1, -1), FPS)


def ssim(a, b):
    """Structural similarity of two pictures."""
    return grey(torch.stack([torch.as_tensor(a), torch.as_tensor(b)])).ssim_at(1)


def blur(video, amount):
    pooled = torch.nn.functional.avg_pool2d(video, 5, 1, 2, count_include_pad=False)
    return video * (1 - amount) + pooled * amount


def test_ssim_of_equal_pictures_is_one_and_of_constants_is_known():
    picture = torch.rand(20, 20, generator=torch.Generator().manual_seed(0))
    assert ssim(picture, picture) == pytest.approx(1, abs=1e-5)
    c1 = 0.01**2
    assert ssim(torch.full((16, 16), 0.25), torch.full((16, 16), 0.75)) == pytest.approx(
        (2 * 0.25 * 0.75 + c1) / (0.25**2 + 0.75**2 + c1), abs=1e-4
    )


def test_ssim_equals_the_definition_in_one_square():
    random = np.random.default_rng(0)
    a, b = random.random((7, 7)), random.random((7, 7))
    cov = np.cov(a.ravel(), b.ravel())
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * a.mean() * b.mean() + c1) * (2 * cov[0, 1] + c2)
    bottom = (a.mean() ** 2 + b.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)
    assert ssim(a, b) == pytest.approx(top / bottom, rel=1e-9)


def test_lags_are_seconds(clip):
    slow = temporal_ssim(video(clip), 1.0)
    every_second_frame = temporal_ssim(video(clip[:, ::2], FPS / 2), 1.0)
    assert slow == pytest.approx(every_second_frame, abs=0.02)
    assert temporal_ssim(video(clip[:, :5]), 0.25) is not None
    assert temporal_ssim(video(clip[:, :5]), 1.0) is None


def test_similarity_rises_for_what_is_worse(clip):
    """Blur, freezing and looping all raise it: it must be read on both sides."""
    looped, frozen = torch.cat([clip[:, :16]] * 4, dim=1), clip[:, :1].expand(-1, 64, -1, -1)
    for worse in (looped, frozen):
        assert temporal_ssim(video(worse), 2.0) > temporal_ssim(video(clip), 2.0) + 0.05


def test_a_loop_and_a_still_repeat_and_motion_tells_them_apart(clip):
    loop, still = torch.cat([clip[:, :20]] * 3, dim=1), clip[:, :1].expand(-1, 60, -1, -1)
    assert self_repeat(video(clip)) < 0.95
    assert self_repeat(video(loop)) > 0.999
    assert self_repeat(video(still)) > 0.999
    assert motion(video(still)) == 0 < motion(video(loop))
    assert self_repeat(video(clip[:, :20])) is None


def test_sharpness_falls_with_blur(clip):
    values = [sharpness(video(blur(clip, amount))) for amount in (0.0, 0.3, 0.6, 1.0)]
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
    drift = METRICS[f"drift.{name}"]
    assert drift(video(steady)) < 1e-6
    assert drift(video(changed)) > 0.02


def test_a_frozen_end_is_drift_of_motion(clip):
    frozen = torch.cat([clip[:, :48], clip[:, 47:48].expand(-1, 16, -1, -1)], dim=1)
    drift = METRICS["drift.log_motion"]
    assert drift(video(frozen)) > drift(video(clip)) + 3


def test_a_video_has_every_metric_and_a_short_one_not_a_number(clip):
    assert np.isfinite(temporal_metrics(clip, FPS)).all()
    short = dict(zip(METRICS, temporal_metrics(clip[:, :16], FPS), strict=True))
    assert [name for name, value in short.items() if np.isnan(value)] == ["temporal_ssim.2s", "self_repeat"]


def test_a_metric_is_added_in_one_place(clip, monkeypatch):
    monkeypatch.setitem(temporal.METRICS, "length", lambda video: float(len(video)))
    measurer = Measurer(8, 2, FPS, None, PixelCode())
    columns = measurer.measure(clip.movedim(1, 0)[None], (), temporal=1).columns
    assert Measurements(("",), columns).temporal()["length"] == 64
