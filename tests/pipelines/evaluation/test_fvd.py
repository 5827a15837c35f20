"""FVD and its kin: known answers, brute force, and intervals and extrapolations against the truth."""

import numpy as np
import pytest

from models.errors import DataError
from pipelines.distances import Moments, kernel_distance
from pipelines.evaluation.fvd import LogitReference, _halves, inception_score, refusals


def videos(seed, count=60, windows=2, dim=4, shift=0.0, scale=1.0):
    return np.random.default_rng(seed).standard_normal((count, windows, dim)) * scale + shift


def reference(*tables, few=True, suffix=""):
    return LogitReference(*tables, identity="i3d/1", few=few, suffix=suffix)


def coloured(mean, cov, count, seed):
    """Points [count, 1, d] whose mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).standard_normal((count, len(mean)))
    rows -= rows.mean(axis=0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T @ np.linalg.cholesky(np.array(cov)).T
    return (rows + mean)[:, None]


def test_fvd_of_known_gaussians():
    real = coloured((0, 0), [[2, 1], [1, 2]], 70, 0)
    made = coloured((1, -2), [[1, 0], [0, 3]], 50, 1)
    found = reference(real, coloured((0, 0), [[2, 1], [1, 2]], 50, 2)).compare(made)["fvd"]
    assert found.value == pytest.approx(13 - 2 * np.sqrt(14), rel=1e-9)
    assert found.floor == pytest.approx(0.0, abs=1e-9)
    assert (found.n, found.reference, found.dim) == (50, 70, 2)


def test_figures_are_those_of_the_rows_one_by_one():
    real, control, made = videos(0), videos(1), videos(2, shift=0.3)
    found = reference(real, control).compare(made)
    x, y, z = (table.reshape(-1, 4) for table in (made, real, control))
    assert found["kvd"].value == pytest.approx(kernel_distance(x, y), rel=1e-10)
    assert found["kvd"].floor == pytest.approx(kernel_distance(z, y), rel=1e-10)
    assert found["fvd"].value == pytest.approx(Moments.of(x).distance(Moments.of(y)), rel=1e-10)

    def mean(a, b, same):
        return np.mean(
            [(p @ q / 4) ** 2 for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j]
        )

    jedi = 100 * (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False))
    assert found["mmd_jedi"].value == pytest.approx(jedi, rel=1e-9)
    assert found["inception_score"].value == pytest.approx(inception_score(x), rel=1e-12)
    assert found["inception_score"].floor == pytest.approx(inception_score(z), rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "score"),
    [
        (np.zeros((12, 5)), 1.0),
        (np.tile(np.eye(5) * 1e3, (4, 1)), 5.0),
        (np.tile(np.eye(5)[:2] * 1e3, (4, 1)) - 7e4, 2.0),
        (np.tile(np.arange(5.0), (9, 1)), 1.0),
    ],
    ids=["unsure", "every class", "two classes", "one class"],
)
def test_inception_score_counts_the_classes(logits, score):
    assert inception_score(logits) == pytest.approx(score, rel=1e-9)


def test_halves_keep_the_windows_of_a_video_together_and_leave_a_rest():
    chosen = _halves(np.zeros((7, 3, 2)), 50, 0)
    assert chosen[:, 0].all()
    by_video = chosen.reshape(7, 3, -1)
    assert (by_video == by_video[:, :1]).all()
    np.testing.assert_array_equal(chosen[:, 1::2], ~chosen[:, 2::2])
    assert set(by_video[:, 0, 1:].sum(axis=0)) == {3, 4}
    assert len({tuple(column) for column in chosen.T}) > 50


def test_without_splits_figures_are_the_same_and_have_no_interval():
    real, control, own = (videos(seed, 12, shift=shift) for seed, shift in enumerate((0.0, 0.0, 1.0)))
    scored = reference(real, control)
    whole, bare = scored.compare(own), scored.compare(own, splits=0)
    for name, distance in bare.items():
        assert distance.value == pytest.approx(whole[name].value, rel=1e-9)
        assert distance.floor == pytest.approx(whole[name].floor, rel=1e-9)
        assert distance.low == distance.high == distance.infinite == distance.value
        assert whole[name].low < whole[name].high


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    x, y = (random.standard_normal((3000, 8)) + shift for shift in (1.0, 0.0))
    truth = kernel_distance(x, y)
    inside = 0
    for seed in range(25):
        tables = [videos(3 * seed + i, 60, 1, 8, shift) for i, shift in enumerate((0.0, 0.0, 1.0))]
        found = reference(*tables[:2]).compare(tables[2])["kvd"]
        assert found.low < found.value < found.high
        inside += found.low <= truth <= found.high
    assert inside >= 21


def test_the_value_at_infinite_n_is_free_of_the_bias():
    pairs = []
    for seed in range(12):
        tables = [videos(3 * seed + i, 128, 1, 16) for i in range(3)]
        found = reference(*tables[:2]).compare(tables[2])["fvd"]
        pairs.append((found.value, found.infinite))
    biased, free = np.mean(pairs, axis=0)
    assert biased > 0.5
    assert abs(free) < 0.15 * biased


def test_inception_score_at_infinite_n_is_nearer_the_truth():
    def logits(seed, count):
        return np.random.default_rng(seed).standard_normal((count, 1, 10)) * 2

    truth = inception_score(logits(99, 20000)[:, 0])
    found = [reference(logits(0, 40), logits(1, 40)).compare(logits(seed, 40)) for seed in range(2, 14)]
    values, infinite = (
        np.mean([getattr(f["inception_score"], name) for f in found]) for name in ("value", "infinite")
    )
    assert abs(infinite - truth) < 0.4 * abs(values - truth)


def test_fvd_of_too_few_windows_is_refused_unless_asked_for():
    refusing, few = (reference(videos(0), videos(1), few=asked) for asked in (False, True))
    small, enough = videos(2, 7), videos(3, 8)
    assert "fvd" not in refusing.compare(small)
    assert {"kvd", "mmd_jedi", "inception_score"} <= set(refusing.compare(small))
    assert "fvd" in refusing.compare(enough)
    assert "fvd" in few.compare(small)
    (note,) = refusals({"mmm": refusing.compare(small), "other": refusing.compare(enough)})
    assert note.startswith("fvd is not given: 14 windows against 120, and under 16")
    assert refusals({"mmm": few.compare(small)}) == []
    assert "fvd_by_position" not in refusing.by_position(enough)
    assert "fvd_by_position" in refusing.by_position(videos(4, 16))


def test_the_control_is_a_row_at_its_own_floor():
    halves = videos(0, 50)
    found = reference(halves, None).compare(halves)
    for distance in found.values():
        assert distance.value == distance.floor
    assert (found["fvd"].n, found["fvd"].reference) == (50, 50)
    assert found["fvd"].value == pytest.approx(
        Moments.of(halves[1::2].reshape(-1, 4)).distance(Moments.of(halves[::2].reshape(-1, 4)))
    )
    assert found["fvd"].low <= found["fvd"].value <= found["fvd"].high
    assert found["kvd"].low <= 0 <= found["kvd"].high


def test_value_and_floor_have_one_n():
    real, control = videos(0, 80), videos(1, 30)
    scores = reference(real, control)
    more, fewer = scores.compare(videos(2, 70))["kvd"], scores.compare(videos(2, 70)[:20])["kvd"]
    assert (more.n, fewer.n) == (60, 40)
    rows = [table.reshape(-1, 4) for table in (control[:20], real)]
    assert fewer.floor == pytest.approx(kernel_distance(*rows), rel=1e-10)


def test_videos_that_the_network_did_not_see_are_left_out():
    seen = videos(2, 20)
    unseen = np.full((5, 2, 4), np.nan)
    scores = reference(np.concatenate([videos(0, 40), unseen]), np.concatenate([videos(1, 30), unseen]))
    assert scores.compare(np.concatenate([seen, unseen])) == reference(videos(0, 40), videos(1, 30)).compare(
        seen
    )
    with pytest.raises(DataError, match="saw 0 videos"):
        scores.compare(unseen)
    with pytest.raises(DataError, match="too few"):
        reference(videos(0, 3), None)


def test_position_curves_see_where_videos_leave_the_real_ones():
    drifting = videos(2, 200, 4) + np.arange(4)[None, :, None] * 0.5
    curves = reference(videos(0, 200, 4), videos(1, 200, 4), suffix=".held8").by_position(drifting)
    assert set(curves) == {"kvd_by_position.held8", "fvd_by_position.held8"}
    for curve in curves.values():
        assert np.all(np.diff(curve) > 0)
        assert len(curve) == 4


def test_held_windows_are_named_so():
    found = reference(videos(0), videos(1), suffix=".held8").compare(videos(2))
    assert set(found) == {f"{name}.held8" for name in ("fvd", "kvd", "mmd_jedi", "inception_score")}
