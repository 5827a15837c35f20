"""What a Ray task does with one group of videos: decode, judge, encode, write the shard and its ledger.

No Ray in here.
"""

import ctypes
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders.kinds import Autoencoder
from pipelines.data.ingest.decoded import Event, Frames, decoded
from pipelines.data.ingest.groups import Group, Task, shard_name
from pipelines.data.ingest.read_ahead import read_ahead
from pipelines.data.ingest.video import Video, read_video
from pipelines.data.source.manifest import Source
from pipelines.data.store.info import dataset_autoencoder
from pipelines.data.store.ledger import Moments, ShardFile, Status, Window, merge_moments, write_ledger
from pipelines.data.store.shards import BucketWriter
from pipelines.storage import Storage

SPILL_BYTES = 16 << 20
"""Latents of one video that are held until it is known to be whole; beyond, it gets a shard of its own."""
AHEAD_CHUNKS = 8
"""Chunks of frames, of 1 MiB each, that wait for the autoencoder."""

Latents = NDArray[np.float32]
Pixels = tuple[int, ...]


@dataclass
class _Record:
    """What a group came to, so far."""

    statuses: list[Status] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    files: list[ShardFile] = field(default_factory=list)
    moments: Moments | None = None


class VideoWriter:
    """Windows of one video: held for the group's shard, or, when they grow, in a shard of their own."""

    def __init__(self, shard: BucketWriter, own: BucketWriter) -> None:
        self._shard, self._own = shard, own
        self._spilled = False
        self._held: list[tuple[Window, Latents, Pixels]] = []
        self._held_bytes = 0
        self._placed: list[Window] = []
        self._hash = hashlib.sha256()
        self._moments: Moments | None = None

    def add(self, window: Window, latents: Latents, pixels: Pixels) -> None:
        """Take one window; `pixels` as BucketWriter does."""
        self._hash.update(latents.tobytes())
        self._moments = merge_moments(self._moments, _moments(latents))
        if self._spilled:
            self._placed.append(self._own.add(window, latents, pixels))
            return
        self._held.append((window, latents, pixels))
        self._held_bytes += latents.nbytes
        if self._held_bytes > SPILL_BYTES:
            self._spilled = True
            self._empty_into(self._own)

    def _empty_into(self, shard: BucketWriter) -> None:
        self._placed += [shard.add(*row) for row in self._held]
        self._held.clear()

    @property
    def sha256(self) -> str:
        """Of the latents so far."""
        return self._hash.hexdigest()

    def finish(self, record: _Record) -> None:
        """The video is whole: its windows count."""
        self._empty_into(self._own if self._spilled else self._shard)
        record.files += self._own.commit()
        record.windows += self._placed
        record.moments = merge_moments(record.moments, self._moments)

    def abort(self) -> None:
        """The video is rejected."""
        self._own.abort()


def write_group(task: Task, group: Group) -> list[Status]:
    """Decode, judge, encode and store a group of videos, and record it in a ledger.

    Returns: how each video ended.

    Raises:
        SostenutoError: the storage or the decoder cannot be used at all.
    """
    storage = Storage(task.out)
    autoencoder = _autoencoder(task.out, task.version, task.device)
    shard = _shard(storage, task, group.corpus, group.sources)
    record = _Record()
    try:
        with read_ahead(decoded(task, group), AHEAD_CHUNKS) as events:
            for source in group.sources:
                writer = VideoWriter(shard, _shard(storage, task, group.corpus, (source,), "long"))
                _write_video(task, group.corpus, source, events, autoencoder, writer, record)
        record.files += shard.commit()
        return _recorded(task, group, record)
    except BaseException:
        shard.abort()
        raise


def _write_video(
    task: Task,
    corpus: str,
    source: Source,
    events: Iterator[Event],
    autoencoder: Autoencoder,
    writer: VideoWriter,
    record: _Record,
) -> None:
    """Read one video into its writer; a reject leaves nothing but what was dropped."""

    def take(video: Video, frames: Iterator[Frames]) -> None:
        for window, latents in video.windows(frames, autoencoder):
            writer.add(window, latents, (window.num_frames, *video.size) if task.data.has_buckets else ())
        record.windows += video.dropped

    try:
        status = read_video(task, corpus, source, events, take)
    except BaseException:
        writer.abort()
        raise
    if status.status == "written":
        status = replace(status, latents_sha256=writer.sha256)
        writer.finish(record)
    else:
        writer.abort()
    record.statuses.append(status)


def judge_group(task: Task, group: Group) -> list[Status]:
    """Decode a group of videos and record in a ledger what `write_group` would keep; nothing is encoded.

    Returns: what `write_group` does.
    """
    record = _Record()

    def take(video: Video, frames: Iterator[Frames]) -> None:
        record.windows += video.judged(frames) + video.dropped

    with read_ahead(decoded(task, group), AHEAD_CHUNKS) as events:
        for source in group.sources:
            record.statuses.append(read_video(task, group.corpus, source, events, take))
    return _recorded(task, group, record)


def _recorded(task: Task, group: Group, record: _Record) -> list[Status]:
    stem = f"{group.corpus}/{shard_name(task, group.sources)}"
    storage = Storage(task.out)
    write_ledger(storage, stem, record.statuses, record.files, record.moments, record.windows)
    return record.statuses


def _shard(
    storage: Storage, task: Task, corpus: str, sources: tuple[Source, ...], suffix: str = "shard"
) -> BucketWriter:
    lineage = {"version": task.version} | {name: version(name) for name in ("av", "decord", "torch")}
    return BucketWriter(storage, corpus, f"{shard_name(task, sources)}-{suffix}", lineage)


def _moments(latents: Latents) -> Moments:
    """Of latents [T, C, h, w]."""
    exact = latents.astype(np.float64)
    positions = latents.size // latents.shape[1]
    total, squares = exact.sum(axis=(0, 2, 3)), np.square(exact).sum(axis=(0, 2, 3))
    return Moments(positions, total.tolist(), squares.tolist())


_M_MMAP_THRESHOLD = -3
_MAPPED_BYTES = 1 << 20


@lru_cache(maxsize=1)
def _autoencoder(out: str, _version: str, device: str) -> Autoencoder:
    """This process's. Large buffers are returned to the system when they are freed: windows that are held
    would else keep what was freed around them (2.8 GiB instead of 0.5 for an hour of video)."""
    torch.set_num_threads(1)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    return dataset_autoencoder(out, device)
