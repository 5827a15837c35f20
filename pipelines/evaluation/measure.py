"""From latents of videos to the few numbers per video that scores are made of.

A video of 128 x 128 pixels is half a million numbers per second; what leaves a worker is its factors (13 per
frame), its window features (99 per window) and its temporal metrics.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save
from torch import Tensor

from models.autoencoders.kinds import Autoencoder
from models.autoencoders.pca import PcaAutoencoder
from models.rng import Key
from pipelines.evaluation.features.extractors import EXTRACTORS, shrink, window_pixels
from pipelines.evaluation.features.i3d import I3DFeatures
from pipelines.evaluation.subject import COLUMN, Floats, animals
from pipelines.evaluation.temporal import METRICS, temporal_metrics
from pipelines.world.config import WorldConfig
from pipelines.world.measures import FactorReader, LatentReader

Columns = dict[str, NDArray[Any]]
"""`factors` [N, T, 13] (the built-in world), pixel features [N, W, d] by extractor, `temporal` [N, K], and
`subject` [N, F, 4] where an animal is looked for, and where I3D is wanted its logits `i3d` [N, V, 400]."""
SECONDS = ("sampling", "decoding")
"""Columns of generated videos with the seconds that one took."""


@dataclass(frozen=True)
class Measurements:
    """What is known of a set of videos, in the order of their index."""

    captions: tuple[str, ...]
    """One per video."""
    columns: Mapping[str, NDArray[Any]]
    """As `Columns`."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds per video: `sampling` and `decoding`."""

    @staticmethod
    def join(captions: Sequence[str], parts: Sequence[Columns]) -> "Measurements":
        """One set from its parts; seconds are the median over parts, without a slow first call."""
        columns = {
            name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name not in SECONDS
        }
        seconds = {
            name: float(np.median([part[name][0] for part in parts])) for name in SECONDS if name in parts[0]
        }
        return Measurements(tuple(captions), columns, seconds)

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
        """Mean of each temporal metric over the videos that have it; of drifts, of their size."""
        table = np.asarray(self.columns["temporal"], dtype=np.float64)
        return {
            name: float(np.nanmean(np.abs(values) if name.startswith("drift.") else values))
            for name, values in zip(METRICS, table.T, strict=True)
            if not np.isnan(values).all()
        }

    def take(self, videos: Sequence[int]) -> "Measurements":
        """Some videos, in this order, which may be repeated."""
        columns = {name: column[list(videos)] for name, column in self.columns.items()}
        return Measurements(tuple(self.captions[video] for video in videos), columns, self.seconds)

    def to_bytes(self) -> bytes:
        """A safetensors file of captions and columns."""
        captions = np.frombuffer(json.dumps(self.captions).encode(), dtype=np.uint8)
        arrays = {name: np.ascontiguousarray(column) for name, column in self.columns.items()}
        return bytes(save(arrays | {"captions": captions}))

    @staticmethod
    def from_bytes(data: bytes) -> "Measurements":
        """The inverse of `to_bytes`."""
        columns = dict(load(data))
        captions = json.loads(columns.pop("captions").tobytes())
        return Measurements(tuple(captions), columns)


@dataclass(frozen=True)
class SystemMeasurements:
    """All videos of one system."""

    seen: Sequence[Measurements]
    """One set per draw, on captions of LONG."""
    unseen: Sequence[Measurements] = ()
    """One set per draw, on textures that LONG never shows."""
    withheld: Measurements | None = None
    """Captions without the withheld words."""
    nfe: int = 0
    """Network evaluations per video; 0 for real videos."""
    clip_seconds: float = 1.0
    """Length of a video."""

    def resampled(self, key: Key) -> "SystemMeasurements":
        """As many videos of each group, drawn with replacement: of all draws, and of all systems that have as
        many videos, those of the same places, which share caption and noise."""

        def draw(group: str, count: int) -> list[int]:
            picked: list[int] = key.at(purpose=group).numpy().integers(count, size=count).tolist()
            return picked

        return dataclasses.replace(
            self,
            seen=[videos.take(draw("seen", len(videos.captions))) for videos in self.seen],
            unseen=[videos.take(draw("unseen", len(videos.captions))) for videos in self.unseen],
            withheld=self.withheld and self.withheld.take(draw("withheld", len(self.withheld.captions))),
        )


@dataclass(frozen=True)
class MeasuredBatch:
    """What `Measurer` returns for a batch of B videos."""

    columns: Columns
    """B rows; not-a-number where not measured."""
    frames: list[Tensor]
    """Decoded frames uint8 [F, H, W, 3] of the first videos."""
    decode_seconds: float
    """Processor time per decoded video (0 when none was)."""


class Measurer:
    """Measures videos of one size and rate.

    Args:
        window_frames: frames per window.
        windows: windows per video, evenly spaced.
        fps: frames per second.
        world: whose factors are read back; None for other videos.
        autoencoder: decodes latents.
        ground: luma [h, w] on which an animal is looked for (subject.py); None looks for none.
        i3d: the network of FVD, where it is wanted.
    """

    def __init__(
        self,
        window_frames: int,
        windows: int,
        fps: float,
        world: WorldConfig | None,
        autoencoder: Autoencoder,
        ground: Floats | None = None,
        i3d: I3DFeatures | None = None,
    ) -> None:
        self._window = (window_frames, windows)
        self._fps = fps
        self._autoencoder, self._ground, self._i3d = autoencoder, ground, i3d
        self._read_pixels: Callable[[NDArray[np.uint8]], NDArray[np.float32]] | None = None
        self._read_latents: LatentReader | None = None
        if world is not None:
            reader = FactorReader(world.size)
            if isinstance(autoencoder, PcaAutoencoder) and autoencoder.grid == (1, 1):
                self._read_latents = reader.from_latents(autoencoder)
            else:
                self._read_pixels = reader.factors

    def measure(
        self, latents: Tensor, extractors: Sequence[str], *, temporal: int, keep: int = 0, logits: int = 0
    ) -> MeasuredBatch:
        """Measures generated or coded videos.

        Args:
            latents: [B, T, C, h, w].
            extractors: pixel features that are wanted; with none, pixels are decoded only where nothing else
                gives the factors.
            temporal: how many videos, from the first, get temporal metrics.
            keep: how many videos, from the first, are returned as frames if they are decoded.
            logits: how many videos, from the first, I3D sees.
        """
        _, windows = self._window
        rows, kept, decoded, spent = [], [], 0, 0.0
        for index, video in enumerate(latents):
            row: Columns = {
                name: np.full((windows, extractor.dim), np.nan, dtype=np.float32)
                for name, extractor in EXTRACTORS.items()
            }
            row["temporal"] = np.full(len(METRICS), np.nan, dtype=np.float32)
            if self._i3d is not None:
                row["i3d"] = np.full(self._i3d.shape, np.nan, dtype=np.float32)
            rows.append(row)
            if not (extractors or index < max(temporal, logits) or self._read_pixels):
                continue
            start = time.process_time()
            frames = self._autoencoder.decode(video[None])[0].cpu()
            spent, decoded = spent + time.process_time() - start, decoded + 1
            if index < keep:
                kept.append(frames)
            if self._read_pixels:
                row["factors"] = self._read_pixels(frames.numpy())
            if self._i3d is not None and index < logits:
                row["i3d"] = self._i3d(frames)
            if extractors or index < temporal:
                small = shrink(frames)
                if extractors:
                    cut = window_pixels(small, *self._window)
                    row |= {name: EXTRACTORS[name](cut).numpy() for name in extractors}
                    if self._ground is not None:
                        row[COLUMN] = animals(small, self._ground)
                if index < temporal:
                    row["temporal"] = temporal_metrics(small, self._fps)
        columns = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if self._read_latents is not None:
            columns["factors"] = self._read_latents(latents)
        return MeasuredBatch(columns, kept, spent / max(1, decoded))


def cut(count: int, size: int) -> list[range]:
    """0 ... count - 1 in runs of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def among_first(count: int, indices: range) -> int:
    """How many of these indices are among the first `count`."""
    return min(max(0, count - indices.start), len(indices))
