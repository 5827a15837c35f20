"""Damage is what it says and nothing else, and the verdicts on metrics are those of known values."""

import sys
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.damage import CLIPS, PIXELS, SHARES, WORLD, draws, jittered
from pipelines.evaluation.measure import Measurements
from pipelines.media.color import luma
from pipelines.world.config import WorldConfig
from pipelines.world.factors import COLOUR, PRESENCE, TEXTURE, WAVE, draw_long
from pipelines.world.measures import (
    motion_error,
    rule,
    same_colour,
    sharpness,
    texture_error,
    visit_colours,
)
from tests.command import REPOSITORY
from tests.pipelines.evaluation.clips import moving_clip

CLIP = moving_clip(3, frames=32, size=32)
WORLD_CLIPS = draw_long(WorldConfig(), 24, 0, grade="clean")


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import metric_validation
    finally:
        sys.path.pop(0)
    return metric_validation


def places(frames):
    """Which frame of CLIP each frame is."""
    return [next(i for i, own in enumerate(CLIP) if (own == frame).all()) for frame in frames]


@pytest.mark.parametrize("name", PIXELS)
def test_stronger_damage_is_further_from_the_video(name):
    damage, truth = PIXELS[name], CLIP.astype(float)
    broken = [damage(CLIP, strength, name, 0) for strength in damage.strengths]
    off = [np.abs(video - truth).mean() for video in broken]
    assert all(video.shape == CLIP.shape and video.dtype == np.uint8 for video in broken)
    assert off[0] > 0
    assert (damage(CLIP, damage.strengths[0], name, 0) == broken[0]).all()
    if name not in ("shuffled", "looped"):  # where frames are from decides how far they are
        assert off == sorted(off)
        assert off[-1] > 2 * off[0]


def test_frozen_looped_and_shuffled_hold_frames_of_the_video_and_no_others():
    assert places(PIXELS["frozen"](CLIP, 0.25)) == [*range(24), *[23] * 8]
    assert places(PIXELS["looped"](CLIP, 0.75)) == [*range(8)] * 4
    assert places(PIXELS["frozen"](CLIP, 1.0)) == [0] * 32
    for parts in (2, 4, 8, 16, 32):
        order = places(PIXELS["shuffled"](CLIP, parts, "key"))
        assert sorted(order) == list(range(32))
        assert sum(b == a + 1 for a, b in pairwise(order)) == 32 - parts


def test_drifts_are_of_the_size_that_they_say():
    grey = np.full((8, 4, 4, 3), 100, np.uint8)
    light = PIXELS["brightening"](grey, 0.4)
    assert (light[0].max(), light[-1].min()) == (100, 202)
    tinted = PIXELS["tinted"](grey, 0.2)
    assert np.abs(luma(tinted) - luma(grey)).max() <= 1
    assert tinted[-1, 0, 0, 0] == 151


def test_jitter_moves_by_its_draw():
    picture = np.zeros((400, 32, 32, 3), np.uint8)
    picture[:, 12:20, 12:20] = 200
    moved = jittered(picture, 1.0, draws("x")).astype(float)[..., 0]
    rows = (moved.sum(axis=2) * np.arange(32)).sum(axis=1) / moved.sum(axis=(1, 2))
    assert (rows - 15.5).std() == pytest.approx(1, rel=0.1)


def broken(name):
    clips = zip(WORLD_CLIPS.factors, WORLD_CLIPS.labels, strict=True)
    return np.stack([WORLD[name](f, label, draws(name, i)) for i, (f, label) in enumerate(clips)])


def test_without_return_only_the_sun_after_its_absence_differs():
    factors = broken("no return")
    assert not rule(factors).any()
    assert (factors[:, :12] == WORLD_CLIPS.factors[:, :12]).all()
    rest = [i for i in range(13) if i not in (PRESENCE, *range(13)[COLOUR])]
    assert (factors[..., rest] == WORLD_CLIPS.factors[..., rest]).all()


def test_another_identity_keeps_every_frame_right_and_the_schedule():
    factors = broken("other identity")
    assert texture_error(factors).max() < 1e-6
    assert not same_colour(factors).any()
    assert (factors[:, 0, TEXTURE] != factors[:, -1, TEXTURE]).any(axis=1).all()
    assert (factors[..., PRESENCE] == WORLD_CLIPS.factors[..., PRESENCE]).all()
    assert (visit_colours(factors)[:, 0] == visit_colours(WORLD_CLIPS.factors)[:, 0]).all()


def test_windows_alone_are_right_and_keep_no_story():
    factors = broken("windows alone")
    assert texture_error(factors).max() < 1e-6
    assert motion_error(factors).max() < 1e-5
    assert sharpness(factors) == pytest.approx(1, abs=1e-5)
    assert rule(factors).mean() < 0.2
    assert (factors[..., WAVE] == WORLD_CLIPS.factors[..., WAVE]).all()


def test_of_real_videos_the_other_half_and_the_windows_are_those_of_others():
    videos = [
        np.full((32, 2, 2, 3), i, np.uint8) + np.arange(32, dtype=np.uint8)[:, None, None, None]
        for i in (0, 100, 200)
    ]
    sources = ["a", "a", "b"]
    swapped = CLIPS["other identity"](videos, sources, 0, draws("x"))
    assert (swapped[:16] == videos[0][:16]).all()
    assert (swapped[16:] == videos[2][16:]).all()
    alone = CLIPS["windows alone"](videos, sources, 0, draws("x"))[:, 0, 0, 0].reshape(4, 8)
    assert (np.diff(alone.astype(int), axis=1) == 1).all()
    assert {int(start) // 100 for start in alone[:, 0]} <= {0, 1}


def test_a_larger_share_holds_the_smaller(bench):
    clean, ill = (Measurements(("",) * 40, {"factors": np.full((40, 2), i)}) for i in (0, 1))
    chosen = [bench.mixed(clean, ill, share, "x").factors[:, 0].astype(bool) for share in SHARES]
    assert [int(own.sum()) for own in chosen] == [2, 4, 8, 16, 32]
    assert all((large | small == large).all() for small, large in pairwise(chosen))


def test_detection_of_known_values(bench):
    noise = np.random.default_rng(0).standard_normal((6, 400))
    rising = bench.detection(
        noise + np.array([[0], [0], [1], [4], [6], [9]]), (1, 2, 3, 4, 5), one_sided=False
    )
    assert rising["sees"] == 3
    assert rising["direction"] == "up"
    assert rising["against"] < 0.02
    assert rising["power"][0] < 0.15
    assert rising["power"][-1] == 1
    turning = bench.detection(
        noise - np.array([[0], [5], [9], [5], [9], [18]]), (1, 2, 3, 4, 5), one_sided=False
    )
    assert (turning["sees"], turning["direction"]) == (1, "down")
    assert turning["against"] == pytest.approx(4 / 18, abs=0.03)
    low = bench.detection(noise - np.array([[0], [5], [9], [5], [9], [18]]), (1, 2, 3, 4, 5), one_sided=True)
    assert low["sees"] is None


def test_an_interval_of_a_share(bench):
    assert bench.wilson(0.0, 10) == pytest.approx([0, 0.2775], abs=1e-3)
    assert bench.wilson(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-3)
