"""Rows of the table from measurements, on videos whose truth is known."""

import numpy as np
import pytest
import torch

from pipelines.evaluation.features.extractors import pixel_extractors
from pipelines.evaluation.measure import EVERY, Measured, Measurer
from pipelines.evaluation.scores import ClipScores, Made, WorldScores, labels, notes
from pipelines.evaluation.temporal import TEMPORAL_NAMES
from pipelines.world.captions import caption
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from tests.pipelines.evaluation.clips import PixelCode, moving_clip

WORLD = WorldConfig()


def videos(seed, count=60, textures="seen", grade="clean", change=None):
    """Measured videos of the world with its exact factors; their pixel features are noise."""
    drawn = draw_long(WORLD, count, seed, grade=grade, textures=textures)
    factors = drawn.factors if change is None else change(drawn.factors)
    random = np.random.default_rng(seed)
    columns = {
        e.name: random.standard_normal((count, 5, e.dim)).astype(np.float32) for e in pixel_extractors()
    }
    columns |= {"factors": factors, "temporal": np.full((count, len(TEMPORAL_NAMES)), 0.5, np.float32)}
    return Measured(tuple(drawn.captions), columns, {"sampling": 0.2, "decoding": 0.1})


@pytest.fixture(scope="module")
def scores():
    real = {
        "clean": videos(1, 120),
        "ideal": videos(2),
        "unseen": videos(3, 120, "unseen"),
        "unseen_ideal": videos(4, 60, "unseen"),
        "long": videos(5, 120, grade="low"),
    }
    return WorldScores(real, 8, 5)


def shuffled(factors):
    order = np.random.default_rng(0).permutation(factors.shape[1])
    return factors[:, order]


def test_clean_videos_reach_the_floor(scores):
    row = scores.row(Made((videos(10),), (videos(11, 60, "unseen"),), clip_seconds=4.0))
    exact = row.metrics
    assert exact["texture_error"] < 0.01
    assert exact["sharpness"] == pytest.approx(1, abs=0.02)
    assert exact["rule"] == exact["rule_strict"] == exact["unseen_rule"] == exact["caption_accuracy"] == 1
    for name in ("window_frechet", "video_frechet", "story_frechet", "unseen_window_frechet"):
        assert exact[name] < 2.0 * row.distances[name].floor
        assert exact[name] == row.distances[name].value
    assert exact["seconds_per_video_second"] == pytest.approx(0.05)
    assert exact["decoding_seconds_per_video_second"] == pytest.approx(0.025)
    assert exact["temporal_ssim.1s"] == pytest.approx(0.5)


def test_low_grade_videos_are_far_from_clean_and_near_to_the_corpus(scores):
    clean, low = (scores.row(Made((videos(12, grade=grade),))).metrics for grade in ("clean", "low"))
    assert low["window_frechet"] > 5 * clean["window_frechet"]
    assert low["corpus_window_frechet"] < 0.3 * clean["corpus_window_frechet"]
    assert low["sharpness"] == pytest.approx(0.45, abs=0.03)
    assert low["texture_error"] > 0.6
    assert low["rule"] > 0.99
    assert len(low["texture_error_by_eighth"]) == 8


def test_shuffled_frames_break_rule_and_distances(scores):
    clean, broken = (scores.row(Made((videos(13, change=c),))).metrics for c in (None, shuffled))
    assert broken["rule"] < 0.05
    assert broken["motion_error"] > 0.3
    assert broken["window_frechet"] > 3 * clean["window_frechet"]


def test_what_was_not_made_has_no_number(scores):
    row = scores.row(Made((videos(14),)))
    assert row.metrics["unseen_window_frechet"] is row.metrics["unseen_rule"] is None
    assert row.metrics["same_colour_withheld"] is None
    assert "unseen_window_frechet" not in row.distances


def test_draws_are_averaged_not_pooled(scores):
    draws = [videos(20), videos(21, grade="low")]
    both = scores.row(Made(draws))
    alone = [scores.row(Made((draw,))).metrics["window_frechet"] for draw in draws]
    assert both.metrics["window_frechet"] == pytest.approx(np.mean(alone), rel=1e-9)
    assert both.distances["window_frechet"].n == 60 * 5


def test_withheld_words_test_the_memory_of_the_colour(scores):
    drawn = videos(15)
    forgetful = Measured(drawn.captions, {**drawn.columns, "factors": drawn.factors[:, :, :].copy()})
    forgetful.factors[:, 24:, 7:9] *= -1
    assert scores.row(Made((videos(14),), withheld=drawn)).metrics["same_colour_withheld"] == 1
    assert scores.row(Made((videos(14),), withheld=forgetful)).metrics["same_colour_withheld"] < 0.1


def test_labels_of_captions_without_a_colour():
    assert labels([caption(1, 2, 1), caption(4, None, 0)]).tolist() == [[1, 2, 1], [4, -1, 0]]


def test_a_distance_of_too_few_vectors_is_told(scores):
    few = scores.row(Made((videos(16, 8),)))
    told = notes({"few": few})
    assert any("video_frechet compares 8 with 120" in note and "128" in note for note in told)
    assert not any(
        note.startswith("window_frechet compares 300")
        for note in notes({"ideal": scores.row(Made((videos(2),)))})
    )


def measured_clips(seeds, change=lambda clip: clip):
    measurer = Measurer(8, 3, 8.0, None, PixelCode())
    frames = np.stack([change(moving_clip(seed, frames=32, size=48)) for seed in seeds])
    columns, _ = measurer.latents(PixelCode().encode(torch.from_numpy(frames)), EVERY, temporal=4)
    return Measured(tuple("" for _ in seeds), columns)


@pytest.fixture(scope="module")
def clip_scores():
    short = measured_clips(range(100, 130))
    return ClipScores(measured_clips(range(40)), short)


def test_user_clips_get_pixel_rows_with_floors(clip_scores):
    real = clip_scores.row(Made((measured_clips(range(200, 240)),)))
    frozen = clip_scores.row(Made((measured_clips(range(200, 240), lambda c: np.repeat(c[:1], 32, axis=0)),)))
    for name in ("fvd.rand3d-diff", "kvd.rand3d-diff", "fvd.st-stats", "fvd.rand3d-diff.short"):
        assert frozen.metrics[name] > real.metrics[name]
        assert frozen.distances[name].n == 120
    assert real.distances["fvd.rand3d-diff"].floor > 0
    assert frozen.metrics["motion"] == 0 < real.metrics["motion"]
    assert "rule" not in real.metrics


def test_diversity_falls_when_videos_are_alike(clip_scores):
    varied = clip_scores.row(Made((measured_clips(range(300, 330)),))).metrics["diversity"]
    alike = clip_scores.row(Made((measured_clips([300] * 15 + [301] * 15),))).metrics["diversity"]
    assert varied == pytest.approx(1, abs=0.25)
    assert alike < 0.7 * varied
