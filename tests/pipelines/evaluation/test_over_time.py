"""Videos over time beside real ones: an exact test, two-sided distances, damaged copies by name."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import nhypergeom

from benchmarks.damage import PIXELS
from pipelines.data.config import LimitsConfig
from pipelines.data.decode.decoder import Decoder
from pipelines.evaluation.features.extractors import shrink
from pipelines.evaluation.measure import Measurements
from pipelines.evaluation.over_time import WORDS, Finding, TemporalReference, sentence
from pipelines.evaluation.temporal import METRICS, temporal_metrics
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from pipelines.world.render import render
from tests.pipelines.evaluation.clips import moving_clip

CLIPS = os.environ.get("SOSTENUTO_TEST_CLIPS", "")


def told(**columns):
    """Measurements of videos with these temporal metrics and no others."""
    columns = {name.replace("__", "."): values for name, values in columns.items()}
    table = np.full((len(next(iter(columns.values()))), len(METRICS)), np.nan, np.float32)
    for name, values in columns.items():
        table[:, list(METRICS).index(name)] = values
    return Measurements(("",) * len(table), {"temporal": table})


def test_the_chance_is_that_of_counting_all_orders():
    """5 videos among 4 real ones of which the outermost is left out: every order, counted."""
    orders = list(itertools.combinations(range(9), 5))  # places of the videos from the top
    beyond = []
    for places in orders:
        real = [place for place in range(9) if place not in places]
        beyond.append(sum(place < real[1] for place in places))
    for least in range(1, 6):
        assert nhypergeom.sf(least - 1, 9, 5, 2) == pytest.approx(np.mean(np.array(beyond) >= least))
    real, videos = np.arange(20.0), np.full(30, 18.5)  # above all but one of the real ones
    (finding,) = TemporalReference(told(motion=real), None).findings(told(motion=videos))
    assert finding.chance == pytest.approx(nhypergeom.sf(29, 50, 30, 2))
    assert (finding.side, finding.beyond, finding.videos, finding.real) == ("high", 30, 30, (1.0, 18.0))


@pytest.mark.parametrize(("n", "m"), [(8, 8), (60, 60), (60, 12), (12, 200)])
def test_real_videos_are_told_as_rarely_as_promised(n, m):
    random, runs = np.random.default_rng(n + m), 400
    found = 0
    for _ in range(runs):
        values = random.standard_cauchy((2 * max(n, m), 5))
        names = ("motion", "flicker", "unsteadiness", "pixel_sharpness", "self_repeat")
        real, videos = (dict(zip(names, part.T, strict=True)) for part in (values[:m], values[m : m + n]))
        found += len(TemporalReference(told(**real), None).findings(told(**videos)))
    assert found <= 5 * runs * 2 * 0.001 * 3


def test_similarity_is_judged_on_both_sides():
    random = np.random.default_rng(0)
    real = random.normal(0.8, 0.02, 400)
    reference = TemporalReference(told(temporal_ssim__2s=real[:200]), told(temporal_ssim__2s=real[200:]))
    name = "temporal_distance.2s"
    off = {by: reference.compare(told(temporal_ssim__2s=real[200:] + by))[name] for by in (-0.1, 0.0, 0.1)}
    assert off[-0.1].value == pytest.approx(0.1, rel=0.05)
    assert off[0.1].value == pytest.approx(0.1, rel=0.05)
    assert off[0.0].value == off[0.0].floor < 0.01
    assert (off[0.0].n, off[0.0].reference, off[0.0].extractor) == (200, 200, "temporal_ssim.2s/1")
    halves = np.where(np.arange(200) % 2, real[200:] + 0.1, real[200:] - 0.1)
    assert reference.compare(told(temporal_ssim__2s=halves))[name].value > 0.08
    assert reference.compare(told(motion=real)) == {}


def test_drifts_that_cancel_in_their_mean_do_not_cancel_in_their_distance():
    """Real videos end darker; ones that end a little lighter have the same mean size of drift."""
    reference = TemporalReference(told(drift__luma=np.full(40, -0.1)), None)
    found = {by: reference.compare(told(drift__luma=np.full(20, by))) for by in (-0.1, 0.0, 0.1, 0.3)}
    values = [distances["temporal_distance.drift.luma"].value for distances in found.values()]
    assert values == pytest.approx([0, 0.1, 0.2, 0.4])


def test_without_a_second_draw_the_floor_is_between_the_halves():
    reference = TemporalReference(told(temporal_ssim__1s=[0.1, 0.2] * 20), None)
    found = reference.compare(told(temporal_ssim__1s=[0.1] * 9))["temporal_distance.1s"]
    assert found.floor == pytest.approx(0.1)


def test_nothing_measured_is_nothing_told():
    nothing = told(motion=[np.nan] * 5)
    reference = TemporalReference(nothing, nothing)
    assert reference.findings(told(motion=[1.0] * 50)) == ()
    assert reference.compare(told(temporal_ssim__1s=[1.0] * 50)) == {}
    assert TemporalReference(told(motion=range(50)), None).findings(nothing) == ()


def test_a_sentence_names_what_how_many_and_the_real_range():
    finding = Finding("frozen_share", "high", 38, 60, 0.251, (0.0, 0.02), 1e-9)
    assert str(finding) == "frozen in 38 of 60 videos (frozen_share 0.25, real 0 to 0.02)"
    few = dataclasses.replace(finding, metric="motion", beyond=17)
    assert sentence((few, finding), 60, 60) == f"{finding}; {few}"
    most = "; ".join([str(finding)] * 4)
    assert sentence((*[finding] * 4, few, few), 60, 60) == f"{most}; and in motion, motion"
    assert sentence((), 60, 60) == "like real videos in every figure"


def test_too_few_videos_to_tell_anything_are_said_to_be_so():
    worst = told(motion=[9.0] * 4)
    for count, told_something in ((9, False), (10, True)):
        reference = TemporalReference(told(motion=np.linspace(0, 1, count)), None)
        assert bool(reference.findings(worst)) == told_something
        assert ("too few" in sentence((), 4, count)) != told_something


def test_findings_survive_json():
    finding = Finding("self_repeat", "low", 38, 60, 0.251, (0.0, 0.02), 1e-9)
    assert str(dataclasses.replace(finding, metric="temporal_ssim.2s")).startswith("changes too much in")
    assert Finding.from_json(json.loads(json.dumps(dataclasses.asdict(finding)))) == finding
    assert set(WORDS) <= set(METRICS)


def measured(videos, fps=8.0):
    table = [temporal_metrics(shrink(torch.from_numpy(np.ascontiguousarray(video))), fps) for video in videos]
    return Measurements(("",) * len(table), {"temporal": np.stack(table)})


def world(seed, count):
    return [render(factors, 48) for factors in draw_long(WorldConfig(), count, seed, grade="clean").factors]


def moving(seed, count):
    return [moving_clip(1000 * seed + i, frames=48, size=32) for i in range(count)]


@pytest.fixture(scope="module", params=[world, moving], ids=["world", "moving"])
def real(request):
    """What judges, and held-out real videos."""
    return TemporalReference(measured(request.param(1, 48)), None), request.param(2, 20)


DAMAGED = {
    "frozen": (0.5, "frozen"),
    "looped": (0.5, "looped"),
    "blurred": (2.0, "blurred"),
    "brightening": (0.4, "ends too light"),
    "jittered": (1.5, "jittering"),
}


def test_real_videos_that_were_held_out_are_like_real_videos(real):
    reference, videos = real
    assert reference.findings(measured(videos)) == ()


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_copies_are_told_by_name(real, name):
    reference, videos = real
    strength, words = DAMAGED[name]
    broken = [PIXELS[name](video, strength, name, i) for i, video in enumerate(videos)]
    assert f"{words} in 20 of 20 videos" in sentence(reference.findings(measured(broken)), 20, 48)


@pytest.mark.long
@pytest.mark.skipif(not CLIPS, reason="not run: SOSTENUTO_TEST_CLIPS does not name a folder of real clips")
def test_copies_of_real_clips_are_told_and_held_out_halves_are_not():
    first, second = [], []
    with Decoder(LimitsConfig()) as decoder:
        for name in ("long/mouse_78s.mp4", "long/talk_125s_256.mp4", "short/pool.mp4", "short/chimp.mp4"):
            frames = np.concatenate(list(decoder.open(Path(CLIPS) / name, [(64, 64)], 8.0).frames))
            pieces = [frames[i : i + 32] for i in range(0, len(frames) - 31, 32)][:20]
            first += pieces[::2]
            second += pieces[1::2]
    reference = TemporalReference(measured(first), None)
    assert reference.findings(measured(second)) == ()
    strong = {"frozen": 0.5, "looped": 0.5, "blurred": 4.0, "brightening": 0.4, "jittered": 2.0}
    sides = {
        "frozen": ("drift.log_motion", "low"),
        "looped": ("self_repeat", "high"),
        "blurred": ("pixel_sharpness", "low"),
        "brightening": ("drift.luma", "high"),
        "jittered": ("unsteadiness", "high"),
    }
    for name, strength in strong.items():
        broken = [PIXELS[name](video, strength, name, i) for i, video in enumerate(second)]
        found = reference.findings(measured(broken))
        assert sides[name] in {(finding.metric, finding.side) for finding in found}, name
