"""Frechet and kernel distances between two sets of feature vectors.

Frechet: |m1 - m2|^2 + Tr S1 + Tr S2 - 2 Tr sqrt(S1 S2), covariances with divisor n - 1, all in float64.
With S = L L^T the last trace is the nuclear norm of L1^T L2, so no root of a singular product is taken and
the distance of a set to itself is zero to rounding, also where there are fewer vectors than dimensions.

Kernel: the unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / d + 1)^3. It has
no bias at any n, while the Frechet distance of two draws of one population is about proportional to 1 / n: a
distance says nothing without its n and without the floor, the distance of real to real at the same n.

`FactorFeatures` are the fixed features of the built-in world's factors and of the teacher's windows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import DataError

Array = NDArray[np.float64]
_ROUNDING = 1e-6
"""Negative distances within this share of the traces are rounding and become zero."""


@dataclass(frozen=True)
class Moments:
    """Moments of feature vectors: what a Frechet distance needs of them."""

    count: int
    mean: Array
    """[d]"""
    scatter: Array
    """Sum of the outer products of the vectors less their mean [d, d]."""

    @classmethod
    def of(cls, features: ArrayLike) -> "Moments":
        """The moments of `features` [N, d].

        Raises:
            DataError: no vectors, or a number that is not finite.
        """
        rows = _rows(features)
        if not len(rows):
            raise DataError("there are no feature vectors", "Evaluate more videos")
        mean = rows.mean(axis=0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    @property
    def cov(self) -> Array:
        """Covariance [d, d] with divisor n - 1.

        Raises:
            DataError: fewer than two vectors.
        """
        if self.count < 2:
            raise DataError(
                f"{self.count} feature vectors, and at least 2 are needed", "Evaluate more videos"
            )
        return self.scatter / (self.count - 1)

    def standardised(self, reference: "Moments") -> "Moments":
        """These moments after every number is shifted and scaled to mean 0 and deviation 1 in `reference`.

        A number that is constant in the reference is only shifted.
        """
        scale = deviation(reference.cov)
        scatter = self.scatter / np.outer(scale, scale)
        return Moments(self.count, (self.mean - reference.mean) / scale, scatter)

    def distance(self, other: "Moments") -> float:
        """Frechet distance between the Gaussians with these moments and with `other`'s.

        Raises:
            DataError: fewer than two vectors on a side.
        """
        return frechet_distance(self.mean, self.cov, other.mean, other.cov)


class FactorFeatures:
    """`factors-32`: tanh(x A + c) B, A [n, 256] of deviation 1.2 / sqrt(n), B [256, 32] of .1, c [256] of .5.

    Args:
        inputs: n, factors per window, video or story, flattened.
    """

    name = "factors-32"
    dim = 32

    def __init__(self, inputs: int) -> None:
        random = np.random.RandomState(32)
        self.inputs = inputs
        self._a = random.standard_normal((inputs, 256)) * 1.2 / np.sqrt(inputs)
        self._c = random.standard_normal(256) * 0.5
        self._b = random.standard_normal((256, self.dim)) * 0.1

    @property
    def identity(self) -> str:
        """Name, version and number of inputs."""
        return f"{self.name}/1 of {self.inputs}"

    def __call__(self, rows: NDArray[np.floating]) -> Array:
        """Features float64 [N, 32] of rows [N, n]."""
        return np.asarray(np.tanh(np.asarray(rows, dtype=np.float64) @ self._a + self._c) @ self._b)


@dataclass(frozen=True)
class Distance:
    """A distance together with what it needs to be read."""

    value: float
    """The distance, averaged over draws where there are several."""
    n: int
    """Feature vectors of the system, per draw."""
    reference: int
    """Feature vectors of the reference."""
    floor: float
    """The same distance for real against real."""
    dim: int
    """Numbers per feature vector."""
    extractor: str
    """Identity of the features."""
    infinite: float | None = None
    """The value that more and more vectors would lead to; None where it is not known."""
    low: float | None = None
    """Lower end of a 95 % interval of the value at this n."""
    high: float | None = None
    """Upper end."""

    @property
    def too_few(self) -> bool:
        """Whether a side has fewer than four vectors per dimension: the number is then mostly bias."""
        return min(self.n, self.reference) < 4 * self.dim


def frechet_distance(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """Frechet distance between two Gaussians: means [d], covariances [d, d], computed in float64.

    Raises:
        DataError: a number is not finite, or the covariances are not positive semi-definite.
    """
    m1, m2 = (np.asarray(mean, dtype=np.float64) for mean in (mean_a, mean_b))
    s1, s2 = (np.asarray(cov, dtype=np.float64) for cov in (cov_a, cov_b))
    traces = float(np.trace(s1) + np.trace(s2))
    overlap = float(np.linalg.svd(_root(s1).T @ _root(s2), compute_uv=False).sum())
    value = float((m1 - m2) @ (m1 - m2)) + traces - 2.0 * overlap
    if value < -_ROUNDING * max(traces, np.finfo(np.float64).tiny):
        raise DataError(
            f"a Frechet distance came out as {value:.3g}", "Check the features for broken numbers"
        )
    return max(value, 0.0)


def kernel_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased squared MMD between x [N, d] and y [M, d] with the kernel (x.y / d + 1)^3; it may be negative.

    Scale the features first (`standardise`): the kernel has a scale of its own.

    Raises:
        DataError: fewer than two vectors on a side.
    """
    a, b = _rows(x), _rows(y)
    if min(len(a), len(b)) < 2:
        raise DataError("a kernel distance needs two vectors on each side", "Evaluate more videos")
    kernels = _cubic(a, a), _cubic(b, b)
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels]
    return float(sum(within) - 2.0 * _cubic(a, b).mean())


def standardise(features: ArrayLike, reference: ArrayLike) -> Array:
    """`features` [N, d] shifted and scaled to mean 0 and deviation 1 in `reference` [M, d]."""
    moments = Moments.of(reference)
    return (_rows(features) - moments.mean) / deviation(moments.cov)


def deviation(cov: Array) -> Array:
    """Standard deviations [d] of a covariance; 1 where a number does not vary."""
    variance = np.diag(cov)
    constant = variance <= np.finfo(np.float64).eps * max(float(variance.max()), 1e-300)
    return np.sqrt(np.where(constant, 1.0, variance))


def _rows(features: ArrayLike) -> Array:
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise DataError("features are not a table of finite numbers", "Check the samples for broken pixels")
    return rows


def _cubic(x: Array, y: Array) -> Array:
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)


def _root(cov: Array) -> Array:
    """L [d, rank] with L L^T = cov; eigenvalues that are only rounding are left out."""
    if not np.isfinite(cov).all():
        raise DataError(
            "a covariance holds numbers that are not finite", "Check the features for broken numbers"
        )
    values, vectors = np.linalg.eigh((cov + cov.T) / 2.0)
    largest = max(float(values.max()), 0.0)
    if float(values.min()) < -_ROUNDING * max(largest, 1e-300):
        raise DataError("a covariance is not positive semi-definite", "Check the features for broken numbers")
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))
