"""FVD and its kin: distances on the logits of I3D, and the inception score, each with what reads it.

fvd              Frechet distance (Unterthiner et al. 2018), covariances with divisor n - 1
kvd              unbiased squared MMD with the kernel (x.y / 400 + 1)^3
mmd_jedi         likewise with (x.y / 400)^2, times 100: JEDi's kernel (Luo et al. 2024), on I3D's logits and
                 unbiased, where JEDi takes V-JEPA's features and counts each vector with itself
inception_score  exp of the mean KL divergence between a window's classes and those of all windows

Logits are compared as they are, as the literature does. Each figure has its n; the floor, the same figure
of other real videos at that n; a 95 % interval; and its value at infinite n.

Interval and extrapolation come from random halves of the videos, on both sides at once. Half the sample
without replacement varies about the whole as the whole does about the truth (the delete-half jackknife, Shao
and Wu 1989), while a bootstrap's copies look like fewer vectors to a covariance and like equal pairs to a
kernel. What falls with 1 / n is twice as large at half of n, so twice the whole less the mean half is free of
it. Windows of a video stay together: they are alike. Near zero the interval of a kernel distance is too wide
rather than too narrow.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from pipelines.distances import Distance, Moments

Table = NDArray[Any]
Floats = NDArray[np.float64]

KVD = r"kvd(\.held\d+)?"
"""Names of the kernel distance on I3D's logits."""
SPLITS = 50
"""Ways to halve the videos; each half counts."""
LEAST = 4
"""Videos on a side, so that a half has two."""
LEVEL = 0.95
"""Of the intervals."""


class LogitReference:
    """Scores of windows' logits against real videos.

    Args:
        reference: logits [N, W, d] of real videos; one whose logits are not-a-number is left out.
        control: of other real videos, for the floor and the control row. None takes every second video of the
            reference, which is then compared with the others alone.
        identity: of the features.
        suffix: that names end with: `.held8` where windows are 8 frames held to 16.
        few: give a Frechet distance of fewer than four windows per dimension, too.

    Raises:
        DataError: fewer than four real videos on a side.
    """

    def __init__(
        self, reference: Table, control: Table | None, *, identity: str, suffix: str = "", few: bool = False
    ) -> None:
        whole = _measured(reference)
        self._whole = reference
        self._reference, self._control = (
            (whole[::2], whole[1::2]) if control is None else (whole, _measured(control))
        )
        fewest = min(len(self._reference), len(self._control))
        if fewest < LEAST:
            raise DataError(
                f"I3D saw {fewest} real videos on a side, too few for a floor and an interval",
                f"Give it {2 * LEAST} or more, and set evaluation.fvd_videos to {LEAST} or more",
            )
        self._identity, self._suffix, self._few = identity, suffix, few
        self._floors: dict[tuple[int, int], dict[str, Distance]] = {}

    def compare(self, videos: Table, splits: int = SPLITS) -> dict[str, Distance]:
        """Every figure by its name: of videos [M, W, d], or of the control if they are the reference itself.

        More videos than the control has are left out, so that value and floor have one n. With no
        `splits` the interval and the value at infinite n are the figure itself.
        """
        own = self._control if videos is self._whole else _measured(videos)
        own = own[: len(self._control)]
        if len(own) < LEAST:
            raise DataError(
                f"I3D saw {len(own)} videos of a system, too few for an interval", f"Give it {LEAST} or more"
            )
        kind, real = (len(own), splits), self._control[: len(own)]
        floors = self._floors.get(kind)
        if floors is None:
            floors = self._floors[kind] = self._figures(real, splits)
        found = floors if np.array_equal(own, real) else self._figures(own, splits)
        return {name: replace(distance, floor=floors[name].value) for name, distance in found.items()}

    def by_position(self, videos: Table) -> dict[str, list[float]]:
        """Distances of the windows at each place in the videos to real windows at that place: drift."""
        own = self._control if videos is self._whole else _measured(videos)
        own = own[: len(self._control)]
        pairs = [(own[:, place], self._reference[:, place]) for place in range(own.shape[1])]
        curves = {"kvd_by_position": [_kernel(_cubic, x, y)[0] for x, y in pairs]}
        if self._may_have_frechet(len(own), len(self._reference)):
            curves["fvd_by_position"] = [_frechet(x, y) for x, y in pairs]
        return {f"{name}{self._suffix}": curve for name, curve in curves.items()}

    def _may_have_frechet(self, *sizes: int) -> bool:
        return self._few or min(sizes) >= 4 * self._reference.shape[-1]

    def _figures(self, videos: Table, splits: int) -> dict[str, Distance]:
        """All figures of videos [M, W, d], without floors."""
        dim = videos.shape[-1]
        x, y = videos.reshape(-1, dim), self._reference.reshape(-1, dim)
        halves_x, halves_y = _halves(videos, splits, seed=0), _halves(self._reference, splits, seed=1)
        found = {
            "kvd": _estimate(_kernel(_cubic, x, y, halves_x, halves_y), biased=False),
            "mmd_jedi": _estimate(100.0 * _kernel(_square, x, y, halves_x, halves_y), biased=False),
            "inception_score": _estimate([inception_score(x[half]) for half in halves_x.T], biased=True),
        }
        if self._may_have_frechet(len(x), len(y)):
            sides = zip(halves_x.T, halves_y.T, strict=True)
            found["fvd"] = _estimate([_frechet(x[a], y[b]) for a, b in sides], biased=True)
        return {
            f"{name}{self._suffix}": Distance(
                value, len(x), len(y), value, dim, self._identity, infinite=infinite, low=low, high=high
            )
            for name, (value, infinite, low, high) in sorted(found.items())
        }


def refusals(rows: Mapping[str, Mapping[str, Distance]]) -> list[str]:
    """Why there is no FVD, where there is none, from all distances of each row."""
    found = []
    for suffix in sorted({name[3:] for row in rows.values() for name in row if re.fullmatch(KVD, name)}):
        kernels = [
            row[f"kvd{suffix}"]
            for row in rows.values()
            if f"kvd{suffix}" in row and f"fvd{suffix}" not in row
        ]
        if kernels:
            least = min(kernels, key=lambda distance: min(distance.n, distance.reference))
            found.append(
                f"fvd{suffix} is not given: {least.n} windows against {least.reference}, and under "
                f"{4 * least.dim} a side it is mostly bias. Read kvd{suffix}, which has none, raise "
                "evaluation.fvd_videos, or take it anyway by --few"
            )
    return found


def inception_score(logits: Table) -> float:
    """exp(mean KL(p(y | x) | p(y))) of logits [n, classes], Salimans et al. 2016; 1 ... classes."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(axis=0)
    return float(np.exp((p * (log_p - np.log(np.maximum(mean, 1e-300)))).sum(axis=1).mean()))


def _measured(videos: Table) -> Floats:
    """Videos [M, W, d] whose logits are there, float64."""
    table = np.asarray(videos, dtype=np.float64)
    return table[~np.isnan(table[:, 0, 0])]


def _halves(table: Table, splits: int, seed: int) -> NDArray[np.bool_]:
    """Which windows of [M, W, d] count, [M * W, 1 + 2 * splits]: all, then halves of the videos and rests."""
    videos, windows = table.shape[:2]
    random = np.random.RandomState(seed)
    columns = [np.ones(videos, dtype=bool)]
    for _ in range(splits):
        half = np.zeros(videos, dtype=bool)
        half[random.permutation(videos)[: videos // 2]] = True
        columns += [half, ~half]
    return np.repeat(np.stack(columns, axis=1), windows, axis=0)


def _estimate(values: Any, *, biased: bool) -> tuple[float, float, float, float]:
    """Value, its value at infinite n, and the ends of its interval, from the whole and the halves."""
    value, halves = float(values[0]), np.asarray(values[1:])
    if not len(halves):
        return value, value, value, value
    ends = np.quantile(halves - halves.mean(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    infinite = 2.0 * value - float(halves.mean()) if biased else value
    return value, infinite, value + float(ends[0]), value + float(ends[1])


def _frechet(x: Table, y: Table) -> float:
    return Moments.of(x).distance(Moments.of(y))


def _cubic(x: Table, y: Table) -> Floats:
    return np.asarray((x @ y.T / x.shape[1] + 1.0) ** 3)


def _square(x: Table, y: Table) -> Floats:
    return np.asarray((x @ y.T / x.shape[1]) ** 2)


def _kernel(
    kernel: Callable[[Table, Table], Floats],
    x: Table,
    y: Table,
    chosen_x: NDArray[np.bool_] | None = None,
    chosen_y: NDArray[np.bool_] | None = None,
) -> Floats:
    """Unbiased squared MMD of chosen rows of x [N, d] and y [M, d], one value per column of the choices."""
    a = np.ones((len(x), 1)) if chosen_x is None else chosen_x.astype(np.float64)
    b = np.ones((len(y), 1)) if chosen_y is None else chosen_y.astype(np.float64)

    def within(rows: Table, chosen: Floats) -> Floats:
        gram, count = kernel(rows, rows), chosen.sum(axis=0)
        pairs = (chosen * (gram @ chosen)).sum(axis=0) - np.diag(gram) @ chosen
        return np.asarray(pairs / (count * (count - 1)))

    across = (a * (kernel(x, y) @ b)).sum(axis=0) / (a.sum(axis=0) * b.sum(axis=0))
    return np.asarray(within(x, a) + within(y, b) - 2.0 * across)
