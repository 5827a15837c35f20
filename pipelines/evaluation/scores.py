"""From measurements to the rows of the table.

Distances of several draws are averaged, never pooled: all rows then have one n. The floor of a distance is
that of a second clean draw (`ideal`), or of one half of the corpus to the other where there is no world.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.distances import Distance, FactorFeatures, Moments
from pipelines.evaluation.features.extractors import FACTOR_SCALE, factor_story, factor_windows
from pipelines.evaluation.measure import Measured
from pipelines.evaluation.pixels import PixelReference
from pipelines.world.captions import parse
from pipelines.world.measures import measure_all, same_colour, sharpness

Value = float | list[float] | None

HEADLINE = "fvd.rand3d-diff"
"""The distance that summary.json calls `pixel_window_frechet`."""


@dataclass(frozen=True)
class Row:
    """One system's figures of one seed."""

    metrics: Mapping[str, Value]
    """By the names of summary.json, pixel and temporal numbers by theirs; None where there is none."""
    distances: Mapping[str, Distance] = field(default_factory=dict)
    """Every distance with its n and floor."""


@dataclass(frozen=True)
class Made:
    """All videos of one system."""

    seen: Sequence[Measured]
    """A set a draw, on captions of LONG."""
    unseen: Sequence[Measured] = ()
    """A set a draw, on textures that LONG never shows."""
    withheld: Measured | None = None
    """Captions without the withheld words."""
    nfe: int = 0
    """Network evaluations a video; 0 for real videos."""
    clip_seconds: float = 1.0
    """Length of a video."""

    @property
    def seconds_per_video_second(self) -> float:
        """Seconds of sampling a second of video; decoding is not in it."""
        return self.seen[0].seconds.get("sampling", 0.0) / self.clip_seconds

    @property
    def decoding_per_video_second(self) -> float:
        """Seconds of decoding a second of video."""
        return self.seen[0].seconds.get("decoding", 0.0) / self.clip_seconds


class FactorReference:
    """Frechet distances on `factors-32` to a set of clean videos, times 100.

    Args:
        clean: the set.
        ideal: a second draw, for the floor; None takes the distance between the halves of `clean`.
        window_frames, windows: frames a window and windows a video.
    """

    def __init__(self, clean: Measured, ideal: Measured | None, window_frames: int, windows: int) -> None:
        self._tables: dict[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = {
            "window_frechet": lambda factors: factor_windows(factors, window_frames, windows),
            "video_frechet": lambda factors: factors.reshape(len(factors), -1).astype(np.float64),
            "story_frechet": factor_story,
        }
        self._nets = {
            name: FactorFeatures(table(clean.factors[:1]).shape[1]) for name, table in self._tables.items()
        }
        self._moments = {name: self._of(name, clean) for name in self._tables}
        self._floors = {name: self._floor(name, clean, ideal) for name in self._tables}

    def compare(self, name: str, draws: Sequence[Measured]) -> Distance:
        """`window_frechet`, `video_frechet` or `story_frechet` of a system."""
        moments = [self._of(name, draw) for draw in draws]
        net, n = self._nets[name], self._moments[name].count
        return Distance(
            self._value(name, moments), moments[0].count, n, self._floors[name], net.dim, net.identity
        )

    def _floor(self, name: str, clean: Measured, ideal: Measured | None) -> float:
        if ideal is not None:
            return self._value(name, [self._of(name, ideal)])
        first, second = np.array_split(self._nets[name](self._tables[name](clean.factors)), 2)
        return FACTOR_SCALE * Moments.of(first).distance(Moments.of(second))

    def _of(self, name: str, videos: Measured) -> Moments:
        return Moments.of(self._nets[name](self._tables[name](videos.factors)))

    def _value(self, name: str, draws: Sequence[Moments]) -> float:
        return FACTOR_SCALE * float(np.mean([draw.distance(self._moments[name]) for draw in draws]))


class WorldScores:
    """Rows of systems on the built-in world.

    Args:
        real: real videos: `clean` and `unseen` LONG, `ideal` and `unseen_ideal` for their floors, and `long`,
            the low-grade corpus.
        window_frames, windows: frames a window and windows a video.
    """

    def __init__(self, real: Mapping[str, Measured], window_frames: int, windows: int) -> None:
        self._seen = FactorReference(real["clean"], real["ideal"], window_frames, windows)
        self._unseen = FactorReference(real["unseen"], real["unseen_ideal"], window_frames, windows)
        self._corpus = FactorReference(real["long"], None, window_frames, windows)
        self._pixels = PixelReference(real["clean"], real["ideal"])
        self._sharpness = float(sharpness(real["clean"].factors).mean())

    def row(self, made: Made) -> Row:
        """All figures of one system."""
        exact, unseen = self._exact(made.seen), self._exact(made.unseen) if made.unseen else {}
        distances = {
            name: self._seen.compare(name, made.seen) for name in ("window_frechet", "video_frechet")
        }
        distances["story_frechet"] = self._seen.compare("story_frechet", made.seen)
        distances["corpus_window_frechet"] = self._corpus.compare("window_frechet", made.seen)
        distances |= self._pixels.compare(made.seen)
        distances["pixel_window_frechet"] = distances[HEADLINE]
        if made.unseen:
            distances["unseen_window_frechet"] = self._unseen.compare("window_frechet", made.unseen)
        metrics: dict[str, Value] = {
            **exact,
            **{name: distance.value for name, distance in distances.items()},
            "unseen_window_frechet": distances["unseen_window_frechet"].value if made.unseen else None,
            "unseen_rule": unseen.get("rule"),
            "unseen_texture_error": unseen.get("texture_error"),
            "same_colour_withheld": _same_colour(made.withheld),
            **cost(made),
            **made.seen[0].temporal(),
        }
        return Row(metrics, distances)

    def _exact(self, draws: Sequence[Measured]) -> dict[str, Value]:
        measures = [measure_all(draw.factors, labels(draw.captions)) for draw in draws]
        means = {name: float(np.mean([measure[name] for measure in measures])) for name in measures[0]}
        eighths: list[float] = [means.pop(f"texture_error_eighth_{i}") for i in range(1, 9)]
        means["sharpness"] /= self._sharpness
        return {**means, "texture_error_by_eighth": eighths}


class ClipScores:
    """Rows of systems on a user's clips, where only pixels can be judged.

    Args:
        long: windows of LONG videos.
        short: windows of SHORT clips.
    """

    def __init__(self, long: Measured, short: Measured) -> None:
        self._long, self._short = PixelReference(long, None), PixelReference(short, None)

    def row(self, made: Made) -> Row:
        """Distances to LONG windows, and to SHORT as `<name>.short`; temporal numbers, diversity, cost."""
        distances = self._long.compare(made.seen)
        distances |= {f"{name}.short": distance for name, distance in self._short.compare(made.seen).items()}
        distances["pixel_window_frechet"] = distances[HEADLINE]
        metrics: dict[str, Value] = {name: distance.value for name, distance in distances.items()}
        metrics["diversity"] = self._long.spread(made.seen[0])
        return Row(metrics | cost(made) | made.seen[0].temporal(), distances)


def cost(made: Made) -> dict[str, Value]:
    """Network evaluations and seconds a second of video."""
    return {
        "nfe": float(made.nfe),
        "seconds_per_video_second": made.seconds_per_video_second,
        "decoding_seconds_per_video_second": made.decoding_per_video_second,
    }


def labels(captions: Sequence[str]) -> NDArray[np.int64]:
    """Texture, colour and speed [N, 3] that captions name; colour -1 where the word is withheld."""
    parsed = [parse(caption) for caption in captions]
    return np.array([(texture, -1 if colour is None else colour, speed) for texture, colour, speed in parsed])


def _same_colour(videos: Measured | None) -> float | None:
    return None if videos is None else float(same_colour(videos.factors).mean())


def notes(rows: Mapping[str, Row]) -> list[str]:
    """What must be said beside the table: distances of too few vectors, by name."""
    few = {
        (name, distance.n, distance.reference, distance.dim)
        for row in rows.values()
        for name, distance in row.distances.items()
        if distance.too_few and name.startswith(("fvd", "window", "video", "story", "unseen"))
    }
    return [
        f"{name} compares {n} with {reference} vectors of {dim} numbers: under {4 * dim} on a side "
        "it is mostly bias. Read kvd instead, or evaluate more videos."
        for name, n, reference, dim in sorted(few)
    ]
