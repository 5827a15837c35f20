"""Claims: gains with known answers, intervals that are paired, and verdicts that follow from them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.evaluation.claims import (
    CLAIMS,
    HEADLINES,
    Claim,
    gain_of,
    interval,
    judge,
    judge_one,
    metric_interval,
    not_won,
)
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Scores

LESS = Claim("half", "ours", "theirs", "error", "less", 0.5)


def seed_of(figures, resampled=None, seed=0):
    """An evaluation of {system: {metric: value}}, and of {system: {metric: values of resampled videos}}."""
    rows = {
        name: Scores(metrics, resampled=(resampled or {}).get(name, {})) for name, metrics in figures.items()
    }
    return Evaluation(seed, rows, dict.fromkeys(rows, ()), (), (), 0.0)


def pair(ours, theirs, **more):
    return {"ours": {"error": ours}, "theirs": {"error": theirs}} | more


def gains(better, ours, theirs, *real):
    return gain_of(better, *(np.array([value]) for value in (ours, theirs, *real)))[0]


def test_gains_are_shares_of_the_others_figure():
    assert gains("less", 2.0, 8.0) == 0.75
    assert gains("less", 12.0, 8.0) == -0.5
    assert gains("more", 12.0, 8.0) == 0.5
    assert gains("right", 0.9, 0.6) == pytest.approx(0.75), "misses of .1 against .4"
    assert gains("real", 0.5, 0.9, 0.6) == pytest.approx(2 / 3), "too low by .1 against too high by .3"
    assert gains("real", 0.7, 0.9, 0.6) == pytest.approx(2 / 3)


def test_perfect_figures_divide_by_nothing():
    assert gains("right", 1.0, 1.0) == 0.0
    assert gains("right", 0.9, 1.0) == -1.0
    assert gains("less", 0.0, 3.0) == 1.0


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.1, 10))
def test_gains_have_no_unit(ours, theirs, scale):
    assert gains("less", ours, theirs) == pytest.approx(gains("less", scale * ours, scale * theirs))
    assert (gains("less", ours, theirs) > 0) == (ours < theirs)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((2.0, 2.1, 1.9), "supported"), ((8.0, 8.2, 7.9), "not supported"), ((2.0, 5.0, 9.0), "undecided")],
)
def test_the_verdict_follows_from_the_whole_interval(ours, verdict):
    judged = judge_one(LESS, [seed_of(pair(value, 10.0)) for value in ours])
    assert judged.verdict == verdict
    assert judged.gain.mean == pytest.approx(1 - np.mean(ours) / 10)
    assert judged.gain.values == pytest.approx([1 - value / 10 for value in ours])
    assert judged.gain.low <= judged.gain.mean <= judged.gain.high


def test_what_moves_both_systems_widens_no_gain():
    """Paired: in each resample the videos are the same, and so is their difficulty."""
    hard = tuple(np.linspace(0.5, 2.0, 20))
    resampled = {"ours": {"error": hard}, "theirs": {"error": tuple(4 * value for value in hard)}}
    seeds = [seed_of(pair(1.0, 4.0), resampled)]
    judged = judge_one(LESS, seeds)
    assert (judged.gain.low, judged.gain.high) == pytest.approx((0.75, 0.75))
    alone = metric_interval(seeds, "ours", "error")
    assert alone.high - alone.low > 1.0


def test_two_seeds_have_the_interval_of_their_bootstrap():
    """Of 0 and 2 the means are 0, 1 and 2; sqrt(2 / 1) makes up for drawing two from two."""
    found = metric_interval([seed_of({"a": {"x": value}}) for value in (0.0, 2.0)], "a", "x")
    assert found.mean == 1.0
    assert (found.low, found.high) == pytest.approx((1 - math.sqrt(2), 1 + math.sqrt(2)), abs=0.05)


def test_resampled_distances_that_are_all_larger_move_no_interval():
    far = tuple(float(value) for value in np.linspace(14.0, 16.0, 41))
    found = metric_interval([seed_of({"a": {"x": 10.0}}, {"a": {"x": far}})], "a", "x")
    assert found.mean == 10.0
    assert (found.low, found.high) == pytest.approx((9.05, 10.95), abs=0.06)


def test_intervals_of_the_mean_hold_it_most_of_the_time():
    draws, held = np.random.default_rng(0), 0
    for _ in range(100):
        seeds = [seed_of({"a": {"x": float(value)}}) for value in draws.normal(size=6)]
        found = metric_interval(seeds, "a", "x")
        held += found.low <= 0.0 <= found.high
    assert 82 <= held <= 99


def test_a_claim_on_every_seed_is_that_of_the_worst():
    seeds = [seed_of(pair(value, 10.0)) for value in (1.0, 1.0, 4.9)]
    every = Claim("every", "ours", "theirs", "error", "less", 0.5, in_every_seed=True)
    assert judge_one(every, seeds).gain.mean == pytest.approx(0.51)
    assert judge_one(LESS, seeds).gain.mean == pytest.approx(0.77)


def test_what_was_not_measured_is_undecided_and_says_so():
    judged = judge_one(Claim("x", "ours", "theirs", "fvd", "less"), [seed_of(pair(1.0, 2.0))])
    assert (judged.verdict, judged.gain) == ("undecided", None)
    assert "fvd was not measured" in judged.note
    partly = [seed_of(pair(1.0, 2.0)), seed_of(pair(1.0, None))]
    assert judge_one(LESS, partly).note == "error was not measured"


def test_claims_on_systems_that_were_not_compared_are_left_out():
    seeds = [seed_of({"mmm_4": {"window_frechet": 1.0}, "sft_50": {"window_frechet": 10.0}})]
    judged = judge(CLAIMS, seeds)
    assert {(one.claim.system, one.claim.against) for one in judged} == {("mmm_4", "sft_50")}
    assert {one.claim.metric: one.verdict for one in judged}["window_frechet"] == "supported"


def test_nearness_to_real_is_judged_on_both_sides():
    claim = Claim("alike", "ours", "theirs", "ssim", "real", 0.25)
    rows = {"ours": {"ssim": 0.55}, "theirs": {"ssim": 0.9}, "ideal": {"ssim": 0.6}}
    assert judge_one(claim, [seed_of(rows)]).verdict == "supported"
    clips = {"ours": {"ssim": 0.1}, "theirs": {"ssim": 0.9}, "corpus_long": {"ssim": 0.85}}
    assert judge_one(claim, [seed_of(clips)]).verdict == "not supported"


def test_everything_that_is_not_won_is_listed():
    good = {"window_frechet": 1.0, "texture_error": 0.3, "rule": 0.9, "made_up": 9.0}
    rows = {
        "mmm_4": good,
        "better": good | {"texture_error": 0.1},
        "same": dict(good),
        "worse": {"window_frechet": 2.0, "texture_error": 0.6, "rule": 0.5},
        "ideal": {"window_frechet": 0.0, "texture_error": 0.0, "rule": 1.0},
    }
    found = {(one.claim.against, one.claim.metric) for one in not_won("mmm_4", [seed_of(rows)])}
    every = {"window_frechet", "texture_error", "rule"}
    assert found == {("better", name) for name in every} | {("same", name) for name in every}
    assert every < set(HEADLINES)


def test_the_worst_seed_is_the_least_of_each_bootstrap():
    seeds = [seed_of({"a": {"x": value}}) for value in (1.0, 3.0)]
    found = interval(seeds, [("a", "x")], lambda figures: figures[0], worst=True)
    assert (found.mean, found.values) == (1.0, (1.0, 3.0))


def test_claims_have_names_of_their_own_and_differ():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert len({(c.system, c.against, c.metric) for c in CLAIMS}) == len(CLAIMS)
