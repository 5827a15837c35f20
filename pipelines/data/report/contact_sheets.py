"""Contact sheets of a corpus: windows from all over it, decoded from their latents as the model sees them."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from models.autoencoders.kinds import Autoencoder
from pipelines.data.report.summary import DatasetTables, kept_windows
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.tables import sort
from pipelines.data.types import CorpusName, Split
from pipelines.media.color import Frames
from pipelines.media.contact_sheet import Strip, contact_sheet, evenly
from pipelines.storage import Storage

WINDOWS = 12
"""Per sheet."""
CONTEXT = 2
"""Latents before a frame that a causal autoencoder decodes it with."""


class SampledWindow(NamedTuple):
    window_id: str
    caption: str
    source: str
    span: str
    """Its place in its video, such as `1.0 - 2.0 s of 5.0 s`."""
    frames: Frames
    """The first, middle and last [3, H, W, 3]."""


def sample_windows(
    dataset: str | Storage, tables: DatasetTables, corpus: CorpusName, autoencoder: Autoencoder
) -> list[SampledWindow]:
    """Decode up to WINDOWS windows from all over a corpus.

    Raises:
        DataError: a shard is missing or damaged.
    """
    manifest, index = tables.of_corpus(corpus)
    windows = kept_windows(index)
    split: Split = "train" if "train" in windows["split"].to_pylist() else "holdout"
    rows = pick_windows(windows.filter(pc.equal(windows["split"], split)), WINDOWS)
    if not rows:
        return []
    shards = ShardDataset(dataset, corpus, split)
    places = {window_id: place for place, window_id in enumerate(shards.ids)}
    videos = {video["source_id"]: video for video in manifest.to_pylist()}
    sampled = []
    for row in rows:
        seconds = videos[row["source_id"]]["seconds"]
        frame = seconds / videos[row["source_id"]]["num_frames"]
        begin, end = (row["start_frame"] * frame, (row["start_frame"] + row["num_frames"]) * frame)
        span = f"{begin:.1f} - {end:.1f} s of {seconds:.1f} s"
        latents = shards.read([places[row["window_id"]]]).latents
        frames = first_middle_last(latents, autoencoder)
        sampled.append(SampledWindow(row["window_id"], row["caption"], row["source"], span, frames))
    return sampled


def pick_windows(windows: pa.Table, count: int) -> list[dict[str, Any]]:
    """Up to `count` rows of an index: from as many videos as possible, evenly along each of them."""
    order = sort(windows, "source", "start_frame")
    sources = np.asarray(order["source"].to_pylist(), dtype=object)
    names = list(dict.fromkeys(sources.tolist()))
    chosen = [names[i] for i in evenly(len(names), min(count, len(names)))]
    rows: list[int] = []
    for place, name in enumerate(chosen):
        own = np.flatnonzero(sources == name)
        parts = min(count // len(chosen) + (place < count % len(chosen)), len(own))
        rows += [int(own[(2 * part + 1) * len(own) // (2 * parts)]) for part in range(parts)]
    picked: list[dict[str, Any]] = order.take(pa.array(rows, pa.int64())).to_pylist()
    return picked


def first_middle_last(latents: Tensor, autoencoder: Autoencoder) -> Frames:
    """Three frames [3, H, W, 3] of a window's latents [1, T, C, h, w].

    No more is decoded than they need: of a causal autoencoder CONTEXT latents before each, not all of them.
    """
    factor = autoencoder.temporal_factor
    last = (latents.shape[1] - 1) * factor
    frames = []
    for place in (0, last // 2, last):
        at = -(-place // factor)
        start = at if factor == 1 else max(0, at - CONTEXT)
        frames.append(autoencoder.decode(latents[:, start : at + 1])[0, place - start * factor].numpy())
    return np.stack(frames)


def sheet_png(title: str, windows: Sequence[SampledWindow]) -> bytes:
    strips = [Strip(window.frames, window.caption, (window.span, window.window_id)) for window in windows]
    memory = io.BytesIO()
    contact_sheet(title, strips).save(memory, "PNG", optimize=True)
    return memory.getvalue()
