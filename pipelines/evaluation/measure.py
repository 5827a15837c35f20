"""From latents or frames of videos to the few numbers a video that scores are made of.

A video of 128 x 128 pixels is half a million numbers a second; what leaves a worker is its factors (13 a
frame), its window features (99 a window) and its temporal numbers.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.autoencoders.kinds import Autoencoder
from models.autoencoders.pca import PcaAutoencoder
from pipelines.evaluation.features.extractors import pixel_extractors, shrink, window_pixels
from pipelines.evaluation.temporal import TEMPORAL_NAMES, temporal_report
from pipelines.world.measures import FactorReader

Columns = dict[str, NDArray[Any]]
EVERY = tuple(extractor.name for extractor in pixel_extractors())
"""Names of all pixel features."""
_SECONDS = ("sampling", "decoding")


@dataclass(frozen=True)
class Measured:
    """What is known of a set of videos, in the order of their index."""

    captions: tuple[str, ...]
    """One a video."""
    columns: Mapping[str, NDArray[Any]]
    """`factors` [N, T, 13] (the built-in world), pixel features [N, W, d] by extractor, `temporal` [N, K]."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds a video: `sampling` and `decoding`."""

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def factors(self) -> NDArray[Any]:
        """Factors [N, T, 13] read back from the videos."""
        return self.columns["factors"]

    def windows(self, extractor: str) -> NDArray[Any]:
        """Features [n, d] of the windows of those videos whose pixels were looked at."""
        table = self.columns[extractor]
        flat = table.reshape(-1, table.shape[-1])
        return np.asarray(flat[~np.isnan(flat[:, 0])])

    def temporal(self) -> dict[str, float]:
        """Mean of each temporal number over the videos that have it."""
        table = np.asarray(self.columns["temporal"], dtype=np.float64)
        return {
            name: float(np.nanmean(values))
            for name, values in zip(TEMPORAL_NAMES, table.T, strict=True)
            if not np.isnan(values).all()
        }


class Measurer:
    """Measures videos of one size and rate.

    Args:
        window_frames: frames a window.
        windows: windows a video, evenly spread.
        fps: frames a second.
        reader: of the built-in world's factors; None for other videos.
        autoencoder: decodes latents.
    """

    def __init__(
        self,
        window_frames: int,
        windows: int,
        fps: float,
        reader: FactorReader | None,
        autoencoder: Autoencoder,
    ) -> None:
        self._window = (window_frames, windows)
        self._fps = fps
        self._reader = reader
        self._autoencoder = autoencoder
        self._extractors = pixel_extractors()
        self._read_latents = None
        if reader is not None and isinstance(autoencoder, PcaAutoencoder) and autoencoder.grid == (1, 1):
            self._read_latents = reader.from_latents(autoencoder)

    def latents(
        self,
        latents: Tensor,
        extractors: Sequence[str],
        *,
        temporal: int,
        show: Callable[[int, Tensor], None] | None = None,
    ) -> tuple[Columns, float]:
        """Measures generated or coded videos.

        Args:
            latents: [B, T, C, h, w].
            extractors: pixel features that are wanted; with none, pixels are decoded only where nothing else
                gives the factors.
            temporal: how many videos, from the first, get temporal numbers.
            show: called with the place in the batch and the frames uint8 [F, H, W, 3] of every decoded video.

        Returns:
            columns of B rows (not-a-number where not measured), and the seconds of processor time that
            decoding a video took (0 when none was).
        """
        linear = self._read_latents is not None
        rows, spent, decoded = [], 0.0, 0
        for number, video in enumerate(latents):
            frames = None
            if extractors or number < temporal or (self._reader is not None and not linear):
                start = time.process_time()
                frames = self._decode(video)
                spent, decoded = spent + time.process_time() - start, decoded + 1
                if show is not None:
                    show(number, frames)
            rows.append(self._row(frames, extractors, temporal=number < temporal, factors=not linear))
        columns = _stack(rows)
        if self._read_latents is not None:
            columns["factors"] = self._read_latents(latents)
        return columns, spent / max(1, decoded)

    def _decode(self, latents: Tensor) -> Tensor:
        return self._autoencoder.decode(latents[None])[0].cpu()

    def _row(
        self, frames: Tensor | None, extractors: Sequence[str], *, temporal: bool, factors: bool
    ) -> Columns:
        length, count = self._window
        row: Columns = {}
        if frames is not None and self._reader is not None and factors:
            row["factors"] = self._reader.factors(frames.numpy())
        small = None if frames is None or not (extractors or temporal) else shrink(frames)
        windows = None if small is None else window_pixels(small, length, count)
        for extractor in self._extractors:
            if windows is not None and extractor.name in extractors:
                row[extractor.name] = extractor(windows).numpy()
            else:
                row[extractor.name] = np.full((count, extractor.dim), np.nan, dtype=np.float32)
        report = temporal_report(small, self._fps) if small is not None and temporal else {}
        row["temporal"] = np.array([report.get(name, np.nan) for name in TEMPORAL_NAMES], dtype=np.float32)
        return row


def _stack(rows: Sequence[Columns]) -> Columns:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def join(captions: Iterable[Sequence[str]], parts: Sequence[Columns]) -> Measured:
    """One set of videos from its parts; seconds are the median over parts, without a slow first call."""
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    seconds = {
        name: float(np.median([part[name][0] for part in parts])) for name in _SECONDS if name in columns
    }
    kept = {name: column for name, column in columns.items() if name not in _SECONDS}
    return Measured(tuple(caption for part in captions for caption in part), kept, seconds)


def cut(count: int, size: int) -> list[range]:
    """0 ... count - 1 in runs of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def within(count: int, part: range) -> int:
    """How many of a part's videos are among the first `count`."""
    return min(max(0, count - part.start), len(part))
