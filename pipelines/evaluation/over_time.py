"""How a system's videos hold together beside real ones: distances, and what stands out.

Every temporal metric has a good range and no good end. So a system's values are compared with those of real
videos as distributions: by the distance between them, and by how many videos lie beyond nearly all real ones,
on either side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import nhypergeom, wasserstein_distance

from pipelines.distances import Distance
from pipelines.evaluation.measure import Measurements
from pipelines.evaluation.temporal import METRICS

Column = NDArray[np.float64]
Side = Literal["low", "high"]

TAIL = 0.05
"""Share of the real videos, at either end, that the real range leaves out."""
CHANCE = 0.001
"""A finding is told where real videos would give it less often than this."""
TOLD = 4
"""Findings that a sentence tells in full."""
SIMILARITY = "temporal_ssim."
WORDS: dict[str, tuple[str, str]] = {
    "frozen_share": ("never stands still", "frozen"),
    "self_repeat": ("never repeats", "looped"),
    "pixel_sharpness": ("blurred", "too sharp or noisy"),
    "unsteadiness": ("too smooth", "jittering"),
    "flicker": ("light too even", "flickering"),
    "drift.luma": ("ends too dark", "ends too light"),
    "drift.saturation": ("ends too pale", "ends too colourful"),
    "drift.contrast": ("ends too flat", "ends too harsh"),
    "drift.log_sharpness": ("ends too soft", "ends too sharp or noisy"),
    "drift.log_motion": ("ends too still", "ends too restless"),
    "motion": ("too little motion", "too much motion"),
}
"""What a metric below, and above, the real range says. Others are told by their names."""


@dataclass(frozen=True)
class Finding:
    """A temporal metric in which a system's videos leave the range of real ones."""

    metric: str
    """Name in `METRICS`."""
    side: Side
    """Below or above the real range."""
    beyond: int
    """Videos of the system that lie there,"""
    videos: int
    """of so many."""
    median: float
    """Of the system."""
    real: tuple[float, float]
    """The range of real videos, without the outer `TAIL` at either end."""
    chance: float
    """Probability that as many of as many real videos would lie there."""

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Finding":
        """The inverse of `dataclasses.asdict`, after JSON."""
        low, high = values["real"]
        return Finding(**{**values, "real": (low, high)})

    def __str__(self) -> str:
        low, high = WORDS.get(self.metric, ("changes too much", "changes too little"))
        words = low if self.side == "low" else high
        return (
            f"{words} in {self.beyond} of {self.videos} videos ({self.metric} {self.median:.2g}, "
            f"real {self.real[0]:.2g} to {self.real[1]:.2g})"
        )


class TemporalReference:
    """Real videos that temporal metrics are read against.

    Args:
        real: the real videos.
        second: other real ones, for the floors; None takes the distance between the halves of `real`.
    """

    def __init__(self, real: Measurements, second: Measurements | None) -> None:
        self._real = _columns(real)
        others = None if second is None else _columns(second)
        self._floors: dict[str, float] = {}
        for name, values in self._real.items():
            first, last = (values[::2], values[1::2]) if others is None else (others[name], values)
            if len(first) and len(last):
                self._floors[name] = float(wasserstein_distance(first, last))

    def compare(self, videos: Measurements) -> dict[str, Distance]:
        """`temporal_distance.<lag>` and `temporal_distance.<metric>`: how far values are from the real ones.

        Their 1-Wasserstein distance, in units of the metric: what an average video is off, to either side.
        """
        found, own = {}, _columns(videos)
        for name, floor in self._floors.items():
            values, real = own[name], self._real[name]
            if len(values):
                distance, metric = float(wasserstein_distance(values, real)), name.removeprefix(SIMILARITY)
                sizes = len(values), len(real)
                found[f"temporal_distance.{metric}"] = Distance(distance, *sizes, floor, 1, f"{name}/1")
        return found

    def findings(self, videos: Measurements) -> tuple[Finding, ...]:
        """Where the videos leave the real range, by an exact test that knows no shape of distribution.

        If the videos were real, each order of them among the M real ones would be equally likely. So the
        number of them beyond all but the outermost `TAIL` M is negative hypergeometric (a precedence test).
        """
        own, found = _columns(videos), []
        for name in sorted(METRICS, key=[*WORDS, *METRICS].index):
            real, values = np.sort(self._real[name]), own[name]
            n, m = len(values), len(real)
            if not (n and m):
                continue
            outer = int(TAIL * m)
            low, high = float(real[outer]), float(real[m - 1 - outer])
            sides: dict[Side, int] = {"low": int((values < low).sum()), "high": int((values > high).sum())}
            for side, beyond in sides.items():
                chance = _chance(beyond, n, m)
                if chance < CHANCE:
                    middle = float(np.median(values))
                    found.append(Finding(name, side, beyond, n, middle, (low, high), chance))
        return tuple(found)


def sentence(findings: Sequence[Finding], videos: int, real: int) -> str:
    """What stands out in `videos` beside so many `real` ones, the commonest first, or that nothing does."""
    if _chance(videos, videos, real) >= CHANCE:
        return (
            f"{videos} videos beside {real} real ones are too few to tell: raise evaluation.temporal_videos"
        )
    if not findings:
        return "like real videos in every figure"
    first = sorted(findings, key=lambda finding: -finding.beyond)
    more = [finding.metric for finding in first[TOLD:]]
    return "; ".join(map(str, first[:TOLD])) + (f"; and in {', '.join(more)}" if more else "")


def _chance(beyond: int, videos: int, real: int) -> float:
    """Probability that so many or more of `videos`, were they real, lie beyond the real range on a side."""
    return float(nhypergeom.sf(beyond - 1, videos + real, videos, int(TAIL * real) + 1)) if beyond else 1.0


def _columns(videos: Measurements) -> Mapping[str, Column]:
    """Values of each metric over the videos that have it."""
    table = np.asarray(videos.columns["temporal"], dtype=np.float64)
    return {name: column[~np.isnan(column)] for name, column in zip(METRICS, table.T, strict=True)}
