"""From measurements to the rows of the table.

Distances of several draws are averaged, never pooled: all rows then have one n. The floor of a distance is
that of a second clean draw (`ideal`), or of one half of the corpus to the other where there is no world. Each
distance is reported with its n and its floor, and never compared with one of another n.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.rng import Key
from pipelines.distances import Distance, FactorFeatures, Moments, kernel_distance, standardise
from pipelines.evaluation.features.extractors import (
    EXTRACTORS,
    factor_story,
    factor_videos,
    factor_windows,
)
from pipelines.evaluation.fvd import SPLITS, LogitReference, refusals
from pipelines.evaluation.measure import SECONDS, Measurements, SystemMeasurements
from pipelines.evaluation.over_time import Finding, TemporalReference
from pipelines.evaluation.subject import COLUMN, subject_scores
from pipelines.world.captions import parse
from pipelines.world.measures import measure_all, same_colour, sharpness

Value = float | list[float] | None
Table = NDArray[Any]

HEADLINE = "fvd.rand3d-diff"
"""The distance that summary.json calls `pixel_window_frechet`."""
FACTOR_SCALE = 100.0
"""Distances on `factors-32` are reported times this."""
KERNEL_ROWS = 1000
"""Most vectors per side of a kernel distance; it has no bias, so fewer only widen its variance."""


@dataclass(frozen=True)
class Scores:
    """One system's figures of one seed."""

    metrics: Mapping[str, Value]
    """By the names of summary.json; None where there is none."""
    distances: Mapping[str, Distance] = field(default_factory=dict)
    """Every distance with its n and floor."""
    findings: tuple[Finding, ...] = ()
    """Where the videos, over time, are unlike real ones."""
    resampled: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Each number taken again from videos drawn with replacement, `evaluation.resamples` times."""

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> "Scores":
        """From plain values, as `dataclasses.asdict` gives them."""
        return Scores(
            row["metrics"],
            {name: Distance(**distance) for name, distance in row["distances"].items()},
            tuple(Finding.from_json(finding) for finding in row.get("findings", ())),
            {name: tuple(numbers) for name, numbers in row.get("resampled", {}).items()},
        )


class Scorer(Protocol):
    """Gives the row of a system."""

    def score(self, system: SystemMeasurements, splits: int = SPLITS) -> Scores:
        """All figures of one system; those on I3D's logits have intervals from so many splits."""


class FactorReference:
    """Frechet distances on `factors-32` to a set of clean videos, times 100.

    Args:
        rows: what of the factors [N, T, 13] is compared, [n, d].
        clean: the set.
        ideal: a second draw, for the floor; None takes the distance between the halves of `clean`.
    """

    def __init__(
        self, rows: Callable[[Table], Table], clean: Measurements, ideal: Measurements | None
    ) -> None:
        self._rows = rows
        self._features = FactorFeatures(rows(clean.factors[:1]).shape[1])
        self._moments = self._moments_of(clean.factors)
        if ideal is not None:
            self._floor = FACTOR_SCALE * self._moments_of(ideal.factors).distance(self._moments)
        else:
            first, second = np.array_split(self._features(rows(clean.factors)), 2)
            self._floor = FACTOR_SCALE * Moments.of(first).distance(Moments.of(second))

    def compare(self, draws: Sequence[Measurements]) -> Distance:
        """The distance of a system, averaged over its draws."""
        moments = [self._moments_of(draw.factors) for draw in draws]
        value = FACTOR_SCALE * float(np.mean([draw.distance(self._moments) for draw in moments]))
        features, n = self._features, self._moments.count
        return Distance(value, moments[0].count, n, self._floor, features.dim, features.identity)

    def _moments_of(self, factors: Table) -> Moments:
        return Moments.of(self._features(self._rows(factors)))


class PixelReference:
    """Distances of the window features of pixels to real videos.

    Args:
        reference: real videos.
        real: other real videos, for the floor; None splits the reference in two halves.
    """

    def __init__(self, reference: Measurements, real: Measurements | None) -> None:
        self._tables = {name: reference.windows(name) for name in EXTRACTORS}
        self._moments = {name: Moments.of(table) for name, table in self._tables.items()}
        self.floors: dict[str, float] = {}
        for name, table in self._tables.items():
            if real is not None:
                windows = real.windows(name)
                self.floors[f"fvd.{name}"] = self._frechet(name, windows)
                self.floors[f"kvd.{name}"] = _kernel(windows, table)
            else:
                first, second = np.array_split(table, 2)
                unit = [Moments.of(half).standardised(self._moments[name]) for half in (first, second)]
                self.floors[f"fvd.{name}"] = unit[0].distance(unit[1])
                self.floors[f"kvd.{name}"] = _kernel(first, second)

    def compare(self, draws: Sequence[Measurements]) -> dict[str, Distance]:
        """`fvd.<extractor>`, averaged over the draws, and `kvd.<extractor>`, of the first."""
        found = {}
        for name, reference in self._tables.items():
            tables = [table for table in (draw.windows(name) for draw in draws) if len(table)]
            frechet = float(np.mean([self._frechet(name, table) for table in tables]))
            kernel, first = _kernel(tables[0], reference), tables[0]
            for metric, value, sizes in (
                (f"fvd.{name}", frechet, (len(first), len(reference))),
                (f"kvd.{name}", kernel, (len(_thinned(first)), len(_thinned(reference)))),
            ):
                extractor = EXTRACTORS[name]
                found[metric] = Distance(
                    value, *sizes, self.floors[metric], extractor.dim, extractor.identity
                )
        return found

    def diversity(self, videos: Measurements) -> float:
        """Mean distance between the window features of two videos, 1 for the reference itself.

        On the headline's extractor, standardised by the reference and averaged over the windows of a video.
        Under 1: the videos are more alike than real ones (fewer modes); over 1: some may be broken.
        """
        name = next(iter(EXTRACTORS))
        reference = np.asarray(self._tables[name], dtype=np.float64)
        videos_nwd = np.asarray(videos.columns[name], dtype=np.float64)
        windows = videos_nwd.shape[1]
        whole = reference[: len(reference) // windows * windows].reshape(-1, windows, reference.shape[1])
        own, real = np.nanmean(videos_nwd, axis=1), whole.mean(axis=1)
        return _mean_distance(standardise(own, reference)) / _mean_distance(standardise(real, reference))

    def _frechet(self, name: str, table: Table) -> float:
        reference = self._moments[name]
        unit = reference.standardised(reference)
        return Moments.of(table).standardised(reference).distance(unit)


class WorldScorer:
    """Rows of systems on the built-in world.

    Args:
        real: real videos: `clean` and `unseen` LONG, `ideal` and `unseen_ideal` for their floors, and `long`,
            the low-grade corpus.
        window_frames, windows: frames per window and windows per video.
        logits: real videos as I3D sees them, where it is wanted.
    """

    def __init__(
        self,
        real: Mapping[str, Measurements],
        window_frames: int,
        windows: int,
        logits: LogitReference | None = None,
    ) -> None:
        self._logits = logits
        clean, ideal = real["clean"], real["ideal"]
        cut = partial(factor_windows, length=window_frames, count=windows)
        self._seen = {
            "window_frechet": FactorReference(cut, clean, ideal),
            "video_frechet": FactorReference(factor_videos, clean, ideal),
            "story_frechet": FactorReference(factor_story, clean, ideal),
            "corpus_window_frechet": FactorReference(cut, real["long"], None),
        }
        self._unseen = FactorReference(cut, real["unseen"], real["unseen_ideal"])
        self._pixels = PixelReference(clean, ideal)
        self._temporal = TemporalReference(clean, ideal)
        self._sharpness = float(sharpness(clean.factors).mean())

    def score(self, system: SystemMeasurements, splits: int = SPLITS) -> Scores:
        """All figures of one system."""
        distances = {name: reference.compare(system.seen) for name, reference in self._seen.items()}
        distances |= self._pixels.compare(system.seen) | self._temporal.compare(system.seen[0])
        distances["pixel_window_frechet"] = distances[HEADLINE]
        metrics: dict[str, Value] = {
            **self._exact(system.seen),
            **dict.fromkeys(("unseen_window_frechet", "unseen_rule", "unseen_texture_error")),
            "same_colour_withheld": None,
        }
        if system.unseen:
            distances["unseen_window_frechet"] = self._unseen.compare(system.unseen)
            exact = self._exact(system.unseen)
            metrics |= {f"unseen_{name}": exact[name] for name in ("rule", "texture_error")}
        if system.withheld is not None:
            metrics["same_colour_withheld"] = float(same_colour(system.withheld.factors).mean())
        distances, curves = with_logits(self._logits, system, distances, splits)
        metrics |= {name: distance.value for name, distance in distances.items()}
        findings = self._temporal.findings(system.seen[0])
        return Scores(metrics | curves | cost(system) | system.seen[0].temporal(), distances, findings)

    def _exact(self, draws: Sequence[Measurements]) -> dict[str, Value]:
        measures = [measure_all(draw.factors, labels(draw.captions)) for draw in draws]
        means = {name: float(np.mean([measure[name] for measure in measures])) for name in measures[0]}
        eighths: list[float] = [means.pop(f"texture_error_eighth_{i}") for i in range(1, 9)]
        means["sharpness"] /= self._sharpness
        return {**means, "texture_error_by_eighth": eighths}


class ClipScorer:
    """Rows of systems on a user's clips, where only pixels can be judged.

    Args:
        real: the corpora: `long` videos and `short` clips.
        logits: LONG as I3D sees it, where it is wanted.
    """

    def __init__(self, real: Mapping[str, Measurements], logits: LogitReference | None = None) -> None:
        self._logits = logits
        self._long, self._short = PixelReference(real["long"], None), PixelReference(real["short"], None)
        self._temporal = TemporalReference(real["long"], None)
        self._subject = real["short"].columns.get(COLUMN)

    def score(self, system: SystemMeasurements, splits: int = SPLITS) -> Scores:
        """Distances to LONG windows, and to SHORT as `<name>.short`; temporal metrics, diversity, cost; the
        animal's scores where one is looked for."""
        distances = self._long.compare(system.seen)
        distances |= {
            f"{name}.short": distance for name, distance in self._short.compare(system.seen).items()
        }
        distances["pixel_window_frechet"] = distances[HEADLINE]
        distances |= self._temporal.compare(system.seen[0])
        distances, curves = with_logits(self._logits, system, distances, splits)
        metrics: dict[str, Value] = {name: distance.value for name, distance in distances.items()}
        metrics["diversity"] = self._long.diversity(system.seen[0])
        findings = self._temporal.findings(system.seen[0])
        if self._subject is not None:
            metrics |= subject_scores(system.seen[0].columns[COLUMN], self._subject)
        return Scores(metrics | curves | cost(system) | system.seen[0].temporal(), distances, findings)


class FolderScorer:
    """Rows of videos of any origin against real ones.

    Args:
        reference: real videos.
        control: other real videos, for the floor.
        logits: both as I3D sees them, where it is wanted.
    """

    def __init__(self, reference: Measurements, control: Measurements, logits: LogitReference | None) -> None:
        self._reference, self._control, self._logits = reference, control, logits

    def score(self, videos: Measurements) -> Scores:
        """Distances, diversity and temporal metrics; of the first videos, where the control has fewer."""
        count = min(len(videos.captions), len(self._control.captions))
        own = videos.take(range(count))
        pixels = PixelReference(self._reference, self._control.take(range(count)))
        temporal = TemporalReference(self._reference, self._control)
        distances = pixels.compare([own]) | temporal.compare(own)
        distances, curves = with_logits(self._logits, SystemMeasurements([own]), distances)
        metrics: dict[str, Value] = {name: distance.value for name, distance in distances.items()}
        metrics["diversity"] = pixels.diversity(own)
        return Scores(metrics | curves | own.temporal(), distances, temporal.findings(own))


def with_logits(
    logits: LogitReference | None,
    system: SystemMeasurements,
    distances: Mapping[str, Distance],
    splits: int = SPLITS,
) -> tuple[dict[str, Distance], dict[str, Value]]:
    """Distances, with those on I3D's logits of the first draw where I3D is wanted; and more metrics of those.

    These are `<name>.floor`, `.low`, `.high`, `.infinite`, and curves by position.
    """
    if logits is None:
        return dict(distances), {}
    videos = system.seen[0].columns["i3d"]
    found = logits.compare(videos, splits)
    if not splits:
        return {**distances, **found}, {}
    beside: dict[str, Value] = {
        f"{name}.{part}": getattr(distance, part)
        for name, distance in found.items()
        for part in ("floor", "low", "high", "infinite")
    }
    return {**distances, **found}, {**beside, **logits.by_position(videos)}


def with_resamples(scorer: Scorer, times: int, seed: int, system: SystemMeasurements) -> Scores:
    """All figures of one system, with `resampled` ones."""
    scores = scorer.score(system)
    again = [
        scorer.score(system.resampled(Key(seed, step=index, purpose="resample")), splits=0).metrics
        for index in range(times)
    ]
    resampled = {}
    for name in scores.metrics:
        numbers = [number for metrics in again if isinstance(number := metrics.get(name), float)]
        if numbers and len(numbers) == times:
            resampled[name] = tuple(numbers)
    return replace(scores, resampled=resampled)


def cost(system: SystemMeasurements) -> dict[str, Value]:
    """Network evaluations, and seconds of sampling and of decoding per second of video."""
    seconds = system.seen[0].seconds
    sampling, decoding = (seconds.get(part, 0.0) / system.clip_seconds for part in SECONDS)
    return {
        "nfe": float(system.nfe),
        "seconds_per_video_second": sampling,
        "decoding_seconds_per_video_second": decoding,
        "total_seconds_per_video_second": sampling + decoding,
    }


def labels(captions: Sequence[str]) -> NDArray[np.int64]:
    """Texture, colour and speed [N, 3] that captions name; colour -1 where the word is withheld."""
    parsed = [parse(caption) for caption in captions]
    return np.array([(texture, -1 if colour is None else colour, speed) for texture, colour, speed in parsed])


def notes(rows: Mapping[str, Scores]) -> list[str]:
    """What must be said beside the table: distances of too few vectors, by name."""
    few = {
        (name, distance.n, distance.reference, distance.dim)
        for row in rows.values()
        for name, distance in row.distances.items()
        if distance.too_few and name.startswith(("fvd", "window", "video", "story", "unseen"))
    }
    found = [
        f"{name} compares {n} with {reference} vectors of {dim} numbers: under {4 * dim} on a side "
        "it is mostly bias. Read kvd instead, or evaluate more videos."
        for name, n, reference, dim in sorted(few)
    ]
    return found + refusals({name: row.distances for name, row in rows.items()})


def _thinned(table: Table) -> Table:
    """At most KERNEL_ROWS rows, evenly spaced."""
    return np.asarray(table[:: -(-len(table) // KERNEL_ROWS)])


def _kernel(table: Table, reference: Table) -> float:
    return kernel_distance(
        standardise(_thinned(table), reference), standardise(_thinned(reference), reference)
    )


def _mean_distance(rows: NDArray[np.float64]) -> float:
    """Mean Euclidean distance over all pairs of rows [N, d]."""
    squares = (rows**2).sum(axis=1)
    gaps = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * rows @ rows.T, 0.0))
    return float(gaps.sum() / max(1, len(rows) * (len(rows) - 1)))
