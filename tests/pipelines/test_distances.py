"""Frechet and kernel distances against closed forms, other algorithms and their invariants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DataError
from pipelines.distances import Moments, frechet_distance, kernel_distance, standardise

A = np.array([[2.0, 1.0], [1.0, 2.0]])
ZERO = np.zeros(2)


def rows(seed, n, d, scale=1.0, shift=0.0):
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, d + 1) ** -0.6
    return random.standard_normal((n, d)) * spectrum * scale @ turn(seed % 7, d) + shift


def turn(seed, d):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def close(value, truth):
    return abs(value - truth) <= 1e-9 * (1 + truth)


def test_k1_correlated_against_independent():
    assert close(frechet_distance(ZERO, A, [1, -2], np.diag([1.0, 3.0])), 13 - 2 * np.sqrt(14))


def test_k2_turned_by_45_degrees():
    turned = np.array([[50.5, 49.5], [49.5, 50.5]])
    assert close(frechet_distance(ZERO, np.diag([100.0, 1.0]), [3, 4], turned), 227 - 2 * np.sqrt(5300.5))


def test_k3_four_hundred_dimensions():
    d = 400
    assert close(frechet_distance(np.zeros(d), np.eye(d), np.full(d, 0.1), 4 * np.eye(d)), 404)


@pytest.mark.parametrize(("second", "truth"), [((0.0, 9.0), 13.0), ((9.0, 0.0), 1.0)])
def test_k4_rank_one(second, truth):
    assert close(frechet_distance(ZERO, np.diag([4.0, 0.0]), ZERO, np.diag(second)), truth)


def test_k5_samples_use_the_divisor_n_minus_one():
    def exact(seed, n, mean, cov):
        x = np.random.default_rng(seed).standard_normal((n, 2))
        x -= x.mean(axis=0)
        white = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (n - 1))).T
        return white @ np.linalg.cholesky(cov).T + mean

    x, y = exact(0, 50, ZERO, A), exact(1, 70, np.array([1.0, -2.0]), np.diag([1.0, 3.0]))
    assert close(Moments.of(x).distance(Moments.of(y)), 5.516685226452)


@pytest.mark.parametrize(("n", "m", "tolerance"), [(20, 31, 2e-6), (300, 400, 1e-10)], ids=["n<d", "n>d"])
def test_distance_equals_the_nuclear_norm_of_the_samples(n, m, tolerance):
    x, y = rows(1, n, 60), rows(2, m, 60, 1.5, 0.1)
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    overlap = np.linalg.svd(centred_x @ centred_y.T, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
    traces = (centred_x**2).sum() / (n - 1) + (centred_y**2).sum() / (m - 1)
    truth = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + traces - 2 * overlap
    assert Moments.of(x).distance(Moments.of(y)) == pytest.approx(truth, rel=tolerance)


def test_distance_equals_the_eigenvalues_of_the_product():
    x, y = Moments.of(rows(1, 300, 20)), Moments.of(rows(2, 300, 20, 2.0))
    roots = np.sqrt(np.linalg.eigvals(x.cov @ y.cov).astype(complex)).real.sum()
    truth = ((x.mean - y.mean) ** 2).sum() + np.trace(x.cov) + np.trace(y.cov) - 2 * roots
    assert x.distance(y) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("n", [5, 500], ids=["n<d", "n>d"])
def test_a_set_is_at_distance_zero_from_itself(n):
    moments = Moments.of(rows(3, n, 40))
    assert 0 <= moments.distance(moments) <= 1e-10 * np.trace(moments.cov)


def test_constant_features_are_at_distance_zero():
    moments = Moments.of(np.ones((10, 4)))
    assert moments.distance(moments) == 0.0
    assert moments.distance(Moments.of(np.ones((10, 4)) * 3)) == pytest.approx(16.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 12), st.floats(0.1, 5.0))
def test_invariants(seed, n, d, scale):
    x, y = rows(seed, n, d), rows(seed + 1, n + 3, d, 1.3, 0.5)
    distance = Moments.of(x).distance(Moments.of(y))
    tolerance = 1e-6 * (1 + distance)
    rotation = turn(seed, d)
    order = np.random.default_rng(seed).permutation(n)
    assert distance >= 0
    assert Moments.of(y).distance(Moments.of(x)) == pytest.approx(distance, abs=tolerance)
    assert Moments.of(x @ rotation + 7).distance(Moments.of(y @ rotation + 7)) == pytest.approx(
        distance, abs=tolerance
    )
    assert Moments.of(x * scale).distance(Moments.of(y * scale)) == pytest.approx(
        distance * scale**2, abs=tolerance * (1 + scale**2)
    )
    assert Moments.of(x[order]).distance(Moments.of(y)) == pytest.approx(distance, abs=tolerance)


def test_a_large_mean_costs_no_precision():
    x = rows(5, 200, 4)
    np.testing.assert_allclose(Moments.of(x + 1e6).cov, Moments.of(x).cov, rtol=1e-6)


def test_standardised_moments_are_the_moments_of_standardised_features():
    x, reference = rows(1, 50, 6, 3.0, 2.0), rows(2, 80, 6)
    reference[:, 2] = 1.0
    by_moments = Moments.of(x).standardised(Moments.of(reference))
    by_features = Moments.of(standardise(x, reference))
    np.testing.assert_allclose(by_moments.mean, by_features.mean, atol=1e-12)
    np.testing.assert_allclose(by_moments.cov, by_features.cov, atol=1e-12)


@pytest.mark.parametrize(
    "broken",
    [
        lambda: Moments.of(np.ones((1, 3))).distance(Moments.of(np.ones((5, 3)))),
        lambda: Moments.of(np.array([[1.0, np.nan]])),
        lambda: Moments.of(np.ones(3)),
        lambda: Moments.of(np.ones((0, 3))),
        lambda: frechet_distance(ZERO, -np.eye(2), ZERO, np.eye(2)),
        lambda: frechet_distance(ZERO, np.eye(2), ZERO, np.full((2, 2), np.inf)),
        lambda: kernel_distance(np.ones((1, 2)), np.ones((4, 2))),
    ],
    ids=["one vector", "nan", "no table", "empty", "negative", "infinite", "kernel of one"],
)
def test_what_cannot_be_compared_is_an_error(broken):
    with pytest.raises(DataError):
        broken()


def test_kernel_distance_equals_the_double_sum():
    x, y = rows(1, 6, 3), rows(2, 5, 3)

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within_x = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * across, rel=1e-12)


def test_kernel_distance_has_no_bias_where_the_frechet_distance_has():
    pairs = [(rows(7 * i, 24, 16), rows(7 * (i + 1000), 24, 16)) for i in range(200)]
    kernel = np.array([kernel_distance(x, y) for x, y in pairs])
    frechet = np.array([Moments.of(x).distance(Moments.of(y)) for x, y in pairs])
    assert abs(kernel.mean()) < 3 * kernel.std() / np.sqrt(len(kernel))
    assert frechet.mean() > 10 * frechet.std() / np.sqrt(len(frechet))
