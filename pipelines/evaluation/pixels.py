"""Distances of decoded pixels: most of what can be said of a user's clips, and part of the world's.

Each distance is reported with its n and its floor; it is never compared with one of another n.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.distances import Distance, Moments, kernel_distance, standardise
from pipelines.evaluation.features.extractors import PixelFeatures, pixel_extractors
from pipelines.evaluation.measure import Measured

Table = NDArray[Any]

KERNEL_ROWS = 1000
"""Most vectors a side of a kernel distance; it has no bias, so fewer only widen its spread."""


class PixelReference:
    """What window features of pixels are compared with.

    Args:
        reference: real videos.
        real: other real videos, for the floor; None splits the reference in two halves.
    """

    def __init__(self, reference: Measured, real: Measured | None) -> None:
        self._extractors = {extractor.name: extractor for extractor in pixel_extractors()}
        self._tables = {name: reference.windows(name) for name in self._extractors}
        self._moments = {name: Moments.of(table) for name, table in self._tables.items()}
        self.floors: Mapping[str, Distance] = {}
        self.floors = {
            metric: distance
            for name in self._extractors
            for metric, distance in self._floor(name, None if real is None else real.windows(name)).items()
        }

    def compare(self, draws: Sequence[Measured]) -> dict[str, Distance]:
        """`fvd.<extractor>`, averaged over the draws, and `kvd.<extractor>`, of the first."""
        return {
            metric: distance
            for name in self._extractors
            for metric, distance in self._distances(name, _tables(draws, name)).items()
        }

    def spread(self, videos: Measured) -> float:
        """Diversity: mean distance between the window features of two videos, 1 for the reference itself.

        On `rand3d-diff`, standardised by the reference and averaged over the windows of a video. Under 1: the
        videos are more alike than real ones (fewer modes); over 1: broken ones may be among them.
        """
        name = next(iter(self._extractors))
        windows = videos.columns[name]
        per_video = np.nanmean(np.asarray(windows, dtype=np.float64), axis=1)
        scaled = standardise(per_video, self._tables[name])
        return _mean_distance(scaled) / self._reference_spread(name, windows.shape[1])

    def _reference_spread(self, name: str, windows: int) -> float:
        table = np.asarray(self._tables[name], dtype=np.float64)
        per_video = table[: len(table) // windows * windows].reshape(-1, windows, table.shape[1]).mean(axis=1)
        return _mean_distance(standardise(per_video, table))

    def _distances(self, name: str, tables: Sequence[Table]) -> dict[str, Distance]:
        reference = self._moments[name]
        unit = reference.standardised(reference)
        frechet = [Moments.of(table).standardised(reference).distance(unit) for table in tables]
        kernel = _kernel(tables[0], self._tables[name])
        sizes = (len(tables[0]), len(self._tables[name]))
        thinned = (len(_thinned(tables[0])), len(_thinned(self._tables[name])))
        extractor = self._extractors[name]
        return {
            f"fvd.{name}": self._record(f"fvd.{name}", float(np.mean(frechet)), sizes, extractor),
            f"kvd.{name}": self._record(f"kvd.{name}", kernel, thinned, extractor),
        }

    def _record(
        self, metric: str, value: float, sizes: tuple[int, int], extractor: PixelFeatures
    ) -> Distance:
        floor = self.floors[metric].value if metric in self.floors else value
        return Distance(value, *sizes, floor, extractor.dim, extractor.identity)

    def _floor(self, name: str, real: Table | None) -> dict[str, Distance]:
        if real is not None:
            return self._distances(name, [real])
        whole, extractor = self._tables[name], self._extractors[name]
        first, second = np.array_split(whole, 2)
        scale = self._moments[name]
        a, b = (Moments.of(half).standardised(scale) for half in (first, second))
        frechet, kernel = a.distance(b), _kernel(first, second)
        sizes = (len(first), len(second))
        return {
            f"fvd.{name}": Distance(frechet, *sizes, frechet, extractor.dim, extractor.identity),
            f"kvd.{name}": Distance(kernel, *sizes, kernel, extractor.dim, extractor.identity),
        }


def _tables(draws: Sequence[Measured], name: str) -> list[Table]:
    """Window features of the draws that have them."""
    return [table for table in (draw.windows(name) for draw in draws) if len(table)]


def _thinned(table: Table) -> Table:
    """At most KERNEL_ROWS rows, evenly spread."""
    return np.asarray(table[:: -(-len(table) // KERNEL_ROWS)])


def _kernel(table: Table, reference: Table) -> float:
    x, y = _thinned(table), _thinned(reference)
    return kernel_distance(standardise(x, reference), standardise(y, reference))


def _mean_distance(rows: NDArray[np.float64]) -> float:
    """Mean Euclidean distance over all pairs of rows [N, d]."""
    squares = (rows**2).sum(axis=1)
    gaps = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0.0))
    pairs = len(rows) * (len(rows) - 1)
    return float(gaps.sum() / max(1, pairs))
