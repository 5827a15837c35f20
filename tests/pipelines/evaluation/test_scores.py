"""Rows of the table from measurements, on videos whose truth is known."""

import numpy as np
import pytest
import torch

from pipelines.distances import Distance, Moments, kernel_distance, standardise
from pipelines.evaluation.features.extractors import EXTRACTORS
from pipelines.evaluation.measure import Measurements, Measurer, SystemMeasurements
from pipelines.evaluation.scores import (
    KERNEL_ROWS,
    ClipScorer,
    PixelReference,
    WorldScorer,
    labels,
    notes,
    with_resamples,
)
from pipelines.evaluation.temporal import METRICS
from pipelines.world.captions import caption
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from tests.pipelines.evaluation.clips import PixelCode, moving_clip

WORLD = WorldConfig()
NAMES = tuple(EXTRACTORS)


def videos(seed, count=60, textures="seen", grade="clean", change=None):
    """Measured videos of the world with its exact factors; their pixel features are noise."""
    drawn = draw_long(WORLD, count, seed, grade=grade, textures=textures)
    factors = drawn.factors if change is None else change(drawn.factors)
    random = np.random.default_rng(seed)
    columns = {
        e.name: random.standard_normal((count, 5, e.dim)).astype(np.float32) for e in EXTRACTORS.values()
    }
    columns |= {"factors": factors, "temporal": np.full((count, len(METRICS)), 0.5, np.float32)}
    return Measurements(tuple(drawn.captions), columns, {"sampling": 0.2, "decoding": 0.1})


@pytest.fixture(scope="module")
def scores():
    real = {
        "clean": videos(1, 120),
        "ideal": videos(2),
        "unseen": videos(3, 120, "unseen"),
        "unseen_ideal": videos(4, 60, "unseen"),
        "long": videos(5, 120, grade="low"),
    }
    return WorldScorer(real, 8, 5)


def test_figures_of_resampled_videos_are_paired_and_repeat(scores):
    """The first system's videos are the second's with one more fault, so that every pair differs by it."""

    def blurred(factors):
        return factors * 0.5

    systems = [
        SystemMeasurements((videos(10, change=change),), (videos(11, 60, "unseen"),), clip_seconds=4.0)
        for change in (None, blurred)
    ]
    plain, worse = (with_resamples(scores, 6, 3, system) for system in systems)
    assert plain.metrics == scores.score(systems[0]).metrics
    assert plain.resampled == with_resamples(scores, 6, 3, systems[0]).resampled
    for name in ("window_frechet", "texture_error", "unseen_window_frechet", "fvd.st-stats"):
        assert len(plain.resampled[name]) == len(worse.resampled[name]) == 6
    assert "texture_error_by_eighth" not in plain.resampled
    assert len(set(plain.resampled["window_frechet"])) == 6
    assert plain.resampled["fvd.st-stats"] == worse.resampled["fvd.st-stats"], "the same videos of both"
    differ = np.array(worse.resampled["window_frechet"]) - plain.resampled["window_frechet"]
    assert differ.std() < 0.2 * differ.mean()
    assert with_resamples(scores, 0, 3, systems[0]).resampled == {}


def shuffled(factors):
    order = np.random.default_rng(0).permutation(factors.shape[1])
    return factors[:, order]


def test_clean_videos_reach_the_floor(scores):
    row = scores.score(SystemMeasurements((videos(10),), (videos(11, 60, "unseen"),), clip_seconds=4.0))
    exact = row.metrics
    assert exact["texture_error"] < 0.01
    assert exact["sharpness"] == pytest.approx(1, abs=0.02)
    assert exact["rule"] == exact["rule_strict"] == exact["unseen_rule"] == exact["caption_accuracy"] == 1
    for name in ("window_frechet", "video_frechet", "story_frechet", "unseen_window_frechet"):
        assert exact[name] < 2.0 * row.distances[name].floor
        assert exact[name] == row.distances[name].value
    assert exact["seconds_per_video_second"] == pytest.approx(0.05)
    assert exact["decoding_seconds_per_video_second"] == pytest.approx(0.025)
    assert exact["total_seconds_per_video_second"] == pytest.approx(0.075)
    assert exact["temporal_ssim.1s"] == pytest.approx(0.5)
    assert exact["temporal_distance.1s"] == row.distances["temporal_distance.1s"].value == 0
    assert row.findings == ()


def test_low_grade_videos_are_far_from_clean_and_near_to_the_corpus(scores):
    clean, low = (
        scores.score(SystemMeasurements((videos(12, grade=grade),))).metrics for grade in ("clean", "low")
    )
    assert low["window_frechet"] > 5 * clean["window_frechet"]
    assert low["corpus_window_frechet"] < 0.3 * clean["corpus_window_frechet"]
    assert low["sharpness"] == pytest.approx(0.45, abs=0.03)
    assert low["texture_error"] > 0.6
    assert low["rule"] > 0.99
    assert len(low["texture_error_by_eighth"]) == 8


def test_shuffled_frames_break_rule_and_distances(scores):
    clean, broken = (
        scores.score(SystemMeasurements((videos(13, change=c),))).metrics for c in (None, shuffled)
    )
    assert broken["rule"] < 0.05
    assert broken["motion_error"] > 0.3
    assert broken["window_frechet"] > 3 * clean["window_frechet"]


def test_what_was_not_made_has_no_number(scores):
    row = scores.score(SystemMeasurements((videos(14),)))
    assert row.metrics["unseen_window_frechet"] is row.metrics["unseen_rule"] is None
    assert row.metrics["same_colour_withheld"] is None
    assert "unseen_window_frechet" not in row.distances


def test_draws_are_averaged_not_pooled(scores):
    draws = [videos(20), videos(21, grade="low")]
    both = scores.score(SystemMeasurements(draws))
    alone = [scores.score(SystemMeasurements((draw,))).metrics["window_frechet"] for draw in draws]
    assert both.metrics["window_frechet"] == pytest.approx(np.mean(alone), rel=1e-9)
    assert both.distances["window_frechet"].n == 60 * 5


def test_withheld_words_test_the_memory_of_the_colour(scores):
    drawn = videos(15)
    forgetful = Measurements(drawn.captions, {**drawn.columns, "factors": drawn.factors[:, :, :].copy()})
    forgetful.factors[:, 24:, 7:9] *= -1
    assert (
        scores.score(SystemMeasurements((videos(14),), withheld=drawn)).metrics["same_colour_withheld"] == 1
    )
    assert (
        scores.score(SystemMeasurements((videos(14),), withheld=forgetful)).metrics["same_colour_withheld"]
        < 0.1
    )


def test_labels_of_captions_without_a_colour():
    assert labels([caption(1, 2, 1), caption(4, None, 0)]).tolist() == [[1, 2, 1], [4, -1, 0]]


def test_a_distance_of_too_few_vectors_is_told(scores):
    few = scores.score(SystemMeasurements((videos(16, 8),)))
    told = notes({"few": few})
    assert any("video_frechet compares 8 with 120" in note and "128" in note for note in told)
    assert not any(
        note.startswith("window_frechet compares 300")
        for note in notes({"ideal": scores.score(SystemMeasurements((videos(2),)))})
    )


def measured_clips(seeds, change=lambda clip: clip):
    measurer = Measurer(8, 3, 8.0, None, PixelCode())
    frames = np.stack([change(moving_clip(seed, frames=32, size=48)) for seed in seeds])
    measured = measurer.measure(PixelCode().encode(torch.from_numpy(frames)), NAMES, temporal=4)
    return Measurements(("",) * len(seeds), measured.columns)


@pytest.fixture(scope="module")
def clip_scores():
    short = measured_clips(range(100, 130))
    return ClipScorer({"long": measured_clips(range(40)), "short": short})


def test_user_clips_get_pixel_rows_with_floors(clip_scores):
    real = clip_scores.score(SystemMeasurements((measured_clips(range(200, 240)),)))
    frozen = clip_scores.score(
        SystemMeasurements((measured_clips(range(200, 240), lambda c: np.repeat(c[:1], 32, axis=0)),))
    )
    for name in ("fvd.rand3d-diff", "kvd.rand3d-diff", "fvd.st-stats", "fvd.rand3d-diff.short"):
        assert frozen.metrics[name] > real.metrics[name]
        assert frozen.distances[name].n == 120
    assert real.distances["fvd.rand3d-diff"].floor > 0
    assert frozen.metrics["motion"] == 0 < real.metrics["motion"]
    assert frozen.metrics["temporal_distance.1s"] > 2 * real.metrics["temporal_distance.1s"]
    assert "rule" not in real.metrics


def test_an_animal_is_scored_where_one_is_looked_for(clip_scores):
    def clips(seeds, animals):
        table = np.array([(n, 5.0, float(i), 0.1) for i, n in enumerate(animals)], np.float32)
        made = measured_clips(seeds)
        return Measurements(made.captions, {**made.columns, "subject": table[None].repeat(len(seeds), 0)})

    scorer = ClipScorer({"long": measured_clips(range(8)), "short": clips(range(100, 108), [1, 1, 1, 1])})
    found = scorer.score(SystemMeasurements((clips(range(200, 204), [1, 1, 0, 2]),))).metrics
    assert (found["subject.one"], found["subject.none"], found["subject.one_in_short"]) == (0.5, 0.25, 1)
    plain = clip_scores.score(SystemMeasurements((measured_clips(range(200, 204)),))).metrics
    assert not any(name.startswith("subject") for name in plain)


def test_diversity_falls_when_videos_are_alike(clip_scores):
    varied = clip_scores.score(SystemMeasurements((measured_clips(range(300, 330)),))).metrics["diversity"]
    alike = clip_scores.score(SystemMeasurements((measured_clips([300] * 15 + [301] * 15),))).metrics[
        "diversity"
    ]
    assert varied == pytest.approx(1, abs=0.25)
    assert alike < 0.7 * varied


def features(seed, count=60, windows=4, shift=0.0, scale=1.0, only=NAMES):
    random = np.random.default_rng(seed)
    columns = {}
    for extractor in EXTRACTORS.values():
        table = random.standard_normal((count, windows, extractor.dim)) * scale + shift
        columns[extractor.name] = table if extractor.name in only else np.full_like(table, np.nan)
    return Measurements(("",) * count, columns)


@pytest.fixture(scope="module")
def reference():
    return PixelReference(features(0, 120, scale=3.0, shift=5.0), features(1, scale=3.0, shift=5.0))


def test_distances_are_of_features_standardised_by_the_reference(reference):
    real, made = features(0, 120, scale=3.0, shift=5.0), features(2, shift=4.0)
    found = reference.compare([made])
    for name in NAMES:
        x, y = made.windows(name), real.windows(name)
        frechet = Moments.of(standardise(x, y)).distance(Moments.of(standardise(y, y)))
        assert found[f"fvd.{name}"].value == pytest.approx(frechet, rel=1e-8)
        kernel = kernel_distance(standardise(x, y), standardise(y, y))
        assert found[f"kvd.{name}"].value == pytest.approx(kernel, rel=1e-8)


def test_every_distance_carries_n_reference_floor_and_identity(reference):
    found = reference.compare([features(2)])
    assert set(found) == {f"{kind}.{name}" for kind in ("fvd", "kvd") for name in NAMES}
    for metric, distance in found.items():
        assert (distance.n, distance.reference) == (240, 480)
        assert distance.floor == reference.floors[metric]
        assert distance.extractor.startswith(metric.split(".", 1)[1])
    assert found["fvd.rand3d-diff"].dim == 64


def test_a_second_real_draw_is_at_the_floor_and_others_above_it(reference):
    real = reference.compare([features(3, scale=3.0, shift=5.0)])
    moved = reference.compare([features(3, scale=3.0, shift=7.0)])
    for name in NAMES:
        floor = reference.floors[f"fvd.{name}"]
        assert real[f"fvd.{name}"].value == pytest.approx(floor, rel=0.3)
        assert moved[f"fvd.{name}"].value > 2 * floor
        assert abs(real[f"kvd.{name}"].value) < 0.1 * moved[f"kvd.{name}"].value


def test_draws_without_an_extractor_are_left_out_of_its_mean(reference):
    draws = [features(4), features(5, shift=2.0, only=NAMES[:1])]
    both = reference.compare(draws)
    alone = [reference.compare([draw])[f"fvd.{NAMES[0]}"].value for draw in draws[:1]]
    assert both[f"fvd.{NAMES[1]}"].value == reference.compare(draws[:1])[f"fvd.{NAMES[1]}"].value
    assert both[f"fvd.{NAMES[0]}"].value != pytest.approx(alone[0], rel=1e-3)


def test_without_a_second_draw_the_floor_is_between_the_halves():
    real = features(6, 100)
    halves = PixelReference(real, None)
    for name in NAMES:
        table = real.windows(name)
        first, second = (Moments.of(standardise(half, table)) for half in np.array_split(table, 2))
        assert halves.floors[f"fvd.{name}"] == pytest.approx(first.distance(second), rel=1e-8)


def test_kernel_distances_of_many_rows_take_an_even_part_of_them(reference):
    many = reference.compare([features(7, 3 * KERNEL_ROWS // 4)])
    assert many["fvd.rand3d-diff"].n == 3 * KERNEL_ROWS
    assert many["kvd.rand3d-diff"].n == KERNEL_ROWS
    some = reference.compare([features(7, 3 * KERNEL_ROWS // 8)])
    assert some["kvd.rand3d-diff"].n == 3 * KERNEL_ROWS // 4
    assert some["kvd.rand3d-diff"].reference == 480


def test_diversity_is_one_for_the_reference_and_zero_for_copies():
    real = features(8)
    reference = PixelReference(real, None)
    assert reference.diversity(real) == pytest.approx(1.0, rel=1e-6)
    copies = Measurements(
        real.captions, {name: np.repeat(table[:1], 60, axis=0) for name, table in real.columns.items()}
    )
    assert reference.diversity(copies) == pytest.approx(0.0, abs=1e-6)
    assert reference.diversity(features(9, scale=2.0)) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("n", "m", "few"), [(255, 3000, True), (256, 256, False), (3000, 100, True)])
def test_under_four_vectors_a_dimension_is_too_few(n, m, few):
    assert Distance(1.0, n, m, 0.1, 64, "x").too_few is few
