"""The bench of generated clips as lessons: answers are the truth's, intervals and verdicts fair."""

import sys

import numpy as np
import pytest
import torch

from pipelines.world.config import WorldConfig
from pipelines.world.factors import PRESENCE, draw_long
from tests.command import REPOSITORY

WORLD = WorldConfig(size=32, long_frames=32)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    import bench_classifier

    return bench_classifier


def test_answers_are_those_of_the_clips_before_they_were_degraded(bench):
    median = bench.median_absence(WORLD.long_frames)
    found = bench.real_clips(WORLD, 20, 1, median, "real")
    away = (draw_long(WORLD, 20, 1, grade="clean").factors[..., PRESENCE] <= 0).sum(axis=1)
    assert found.longer.tolist() == (away > median).tolist()
    assert 0 < found.figures()["longer"] < 1
    assert found.figures()["story"] == 1
    assert found.pixels.shape == (20, 32, bench.SIDE, bench.SIDE, 3)


def test_no_window_shows_the_sun_leave_and_return(bench):
    for frames, window in ((32, 8), (240, 8)):
        away = (draw_long(WorldConfig(long_frames=frames), 200, 0, "clean").factors[..., PRESENCE] <= 0).sum(
            axis=1
        )
        assert away.min() > window
        assert away.min() < bench.median_absence(frames) < away.max()


def test_both_answers_weigh_the_same(bench):
    clips = bench.Clips(torch.zeros(4, 1), torch.tensor([True, False, False, False]), np.zeros((4, 1)))
    weights = bench.weights_of(clips)
    assert weights[clips.longer].sum() == pytest.approx(weights[~clips.longer].sum())
    longer = clips.longer.numpy()
    assert bench.accuracy(
        np.array([[True, False, False, False], [False, True, True, True]]), longer
    ).tolist() == [
        0.5,
        0.5,
    ]


@pytest.mark.parametrize(("shift", "said"), [(0.2, "helps"), (0.0, "makes no difference"), (-0.2, "harms")])
def test_a_verdict_is_what_the_whole_interval_says(bench, shift, said):
    draws = np.random.default_rng(5)
    longer, level = np.arange(400) % 2 == 0, draws.random((5, 400))
    middle, low, high = bench.gain(level < 0.6 + shift, level < 0.6, longer)
    assert middle == pytest.approx(shift, abs=0.05)
    assert low <= middle <= high
    about = {"with": "x", "accuracy": 0.6, "story": 1.0, "longer": 0.5, "sharpness": 1.0}
    assert said in bench.verdict(about | {"gain": middle, "low": low, "high": high}, 0.45)


def test_the_interval_of_what_chance_alone_sets_apart_holds_zero(bench):
    draws = np.random.default_rng(7)
    longer, sides = np.arange(400) % 2 == 0, draws.random((2, 5, 400)) < 0.7
    _, low, high = bench.gain(*sides, longer)
    assert low < 0 < high
