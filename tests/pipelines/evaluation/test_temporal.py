"""Temporal numbers: known answers, and that each change of a video is seen by the number made for it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation import temporal
from pipelines.evaluation.measure import Measurements, Measurer
from pipelines.evaluation.temporal import (
    METRICS,
    STILL,
    Video,
    flicker,
    frozen_share,
    motion,
    self_repeat,
    sharpness,
    temporal_metrics,
    temporal_ssim,
    unsteadiness,
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


@pytest.mark.parametrize("period", [12, 16, 20, 32])
def test_what_is_seen_again_after_two_seconds_or_more_repeats(clip, period):
    """All but the first round, or as many first rounds as two seconds hold."""
    loop = torch.cat([clip[:, :period]] * 6, dim=1)[:, :64]
    first = period * -(-16 // period)
    assert self_repeat(video(loop)) == pytest.approx(1 - first / 64)
    assert self_repeat(video(clip)) == 0


def test_a_still_is_frozen_and_repeats_nothing(clip):
    still = clip[:, :1].expand(-1, 60, -1, -1)
    assert motion(video(still)) == self_repeat(video(still)) == 0
    assert frozen_share(video(still)) == 1
    assert unsteadiness(video(still)) is None


def test_a_loop_is_found_before_a_still_background_and_after_a_codec():
    scene = torch.full((3, 64, 48, 48), 0.4)
    for i in range(64):
        scene[:, i, 20:26, i // 2 : i // 2 + 8] = 0.4 + 0.3 * (i % 2)
        scene[:, i, 20:26, i // 2 + 4 : i // 2 + 8] += 0.2
    loop = torch.cat([scene[:, :24]] * 3, dim=1)[:, :64]
    noisy = loop + 0.001 * torch.randn(loop.shape, generator=torch.Generator().manual_seed(0))
    assert self_repeat(video(scene)) == 0
    assert self_repeat(video(loop)) == self_repeat(video(noisy)) == pytest.approx(40 / 64)


def test_blocks_of_frames_change_nothing(clip, monkeypatch):
    loop = torch.cat([clip[:, :20]] * 4, dim=1)
    whole = self_repeat(video(loop))
    monkeypatch.setattr(temporal, "_BLOCK", 7)
    assert self_repeat(video(loop)) == whole
    assert self_repeat(video(clip[:, :20])) is None


def test_frozen_share_counts_the_steps_that_stand_still(clip):
    held = clip[:, torch.arange(64) // 4]
    assert frozen_share(video(held)) == pytest.approx(48 / 63)
    assert frozen_share(video(clip)) == 0
    nearly = clip[:, :1] + torch.linspace(0, 7 * STILL, 8)[None, :, None, None] * torch.tensor([0.9])
    assert frozen_share(video(nearly)) == 1


@given(angle=st.floats(0.05, np.pi))
def test_waves_are_as_unsteady_as_their_step(angle):
    """sin(x - a t): first and second differences have energies 4 sin^2(a / 2) and 16 sin^4(a / 2)."""
    x = 2 * torch.pi * torch.arange(16) / 16
    waves = 0.5 + 0.4 * torch.sin(x[None, None] - angle * torch.arange(200)[:, None, None]).expand(-1, 4, -1)
    assert unsteadiness(grey(waves)) == pytest.approx(2 * np.sin(angle / 2), rel=1e-3)


def test_frames_without_order_and_frames_that_alternate_are_unsteady():
    noise = torch.rand(400, 16, 16, generator=torch.Generator().manual_seed(0))
    assert unsteadiness(grey(noise)) == pytest.approx(3**0.5, rel=0.02)
    assert unsteadiness(grey(noise[torch.arange(400) % 2])) == pytest.approx(2, rel=0.01)


def test_flicker_is_of_the_light_alone(clip):
    light = 0.05 * (-1.0) ** torch.arange(64)
    assert flicker(video(clip[:, :1] + light[None, :, None, None])) == pytest.approx(0.2, rel=1e-3)
    ramp = torch.linspace(0, 0.3, 64)
    assert flicker(video(clip[:, :1] + ramp[None, :, None, None])) < 1e-5
    assert flicker(video(clip[:, :2])) is None


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
        ("log_sharpness", lambda v, k: blur(v, 1 - k)),
    ],
)
def test_drift_sees_the_change_it_is_named_after(clip, name, change):
    steady = clip[:, :1].expand(-1, 40, -1, -1)
    changed = torch.stack([change(steady[:, i], i / 39) for i in range(40)], dim=1)
    drift = METRICS[f"drift.{name}"]
    assert abs(drift(video(steady))) < 1e-6
    assert drift(video(changed)) > 0.02
    assert drift(video(changed.flip(1))) == pytest.approx(-drift(video(changed)))


def test_a_frozen_end_is_drift_of_motion(clip):
    frozen = torch.cat([clip[:, :48], clip[:, 47:48].expand(-1, 16, -1, -1)], dim=1)
    drift = METRICS["drift.log_motion"]
    assert drift(video(frozen)) < drift(video(clip)) - 3


def test_a_video_has_every_metric_and_a_short_one_not_a_number(clip):
    assert np.isfinite(temporal_metrics(clip, FPS)).all()
    short = dict(zip(METRICS, temporal_metrics(clip[:, :16], FPS), strict=True))
    assert [name for name, value in short.items() if np.isnan(value)] == ["temporal_ssim.2s", "self_repeat"]


def test_a_metric_is_added_in_one_place(clip, monkeypatch):
    monkeypatch.setitem(temporal.METRICS, "length", lambda video: float(len(video)))
    measurer = Measurer(8, 2, FPS, None, PixelCode())
    columns = measurer.measure(clip.movedim(1, 0)[None], (), temporal=1).columns
    assert Measurements(("",), columns).temporal()["length"] == 64
