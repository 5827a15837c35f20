"""The work of one Ray task, without Ray: decode, judge, cut, encode and store the videos of one group."""

import atexit
import ctypes
import hashlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch

from models.autoencoders.kinds import Autoencoder
from pipelines.data.config import DataConfig, LimitsConfig
from pipelines.data.curate.quality import video_refusal
from pipelines.data.decode.decoder import Clip, Decoder
from pipelines.data.ingest.windowing import Latents, Video, encoded_windows
from pipelines.data.source.manifest import Source, local_copy
from pipelines.data.store.files import ShardFile
from pipelines.data.store.info import dataset_autoencoder
from pipelines.data.store.ledger import Moments, Status, Window, merge_moments, write_ledger
from pipelines.data.store.shards import ShardWriter
from pipelines.data.types import Reject, Rejected
from pipelines.media.color import Frames
from pipelines.storage import Storage, hash_of

SPILL_BYTES = 16 << 20
"""Latents of one video held until it is known to be whole; beyond that, it gets a shard of its own."""
AHEAD_CHUNKS = 8
"""Chunks of frames, of 1 MiB each, that wait for the autoencoder."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is the same for every group of a run."""

    out: str
    """Root of the dataset's storage."""
    folders: dict[str, str]
    """Corpus -> where it is."""
    version: str
    data: DataConfig
    device: str = "cpu"
    """Where a neural autoencoder works."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Videos of one corpus that one task reads."""

    corpus: str
    sources: tuple[Source, ...]
    picks: int = 0
    """Frames wanted of each video, for fitting; 0 is all."""

    @property
    def num_bytes(self) -> int:
        return sum(source.num_bytes for source in self.sources)

    def __str__(self) -> str:
        return f"the videos from {self.sources[0].path} on"


@dataclass
class _Record:
    """What goes into a group's ledger."""

    statuses: list[Status] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    files: list[ShardFile] = field(default_factory=list)
    moments: Moments | None = None

    def write(self, task: Task, group: Group) -> list[Status]:
        """Write the ledger, after which the group counts; how each video ended."""
        stem = f"{group.corpus}/{shard_name(task, group.sources)}"
        write_ledger(Storage(task.out), stem, self.statuses, self.files, self.moments, self.windows)
        return self.statuses


def write_group(task: Task, group: Group) -> list[Status]:
    """Decode, judge, cut, encode and store a group of videos, and record how each ended in a ledger.

    Raises:
        SostenutoError: the storage or the decoder cannot be used at all.
    """
    autoencoder = _autoencoder(task.out, task.version, task.device)
    shard = _shard(task, group.corpus, group.sources, "shard")
    record = _Record()
    try:
        with ClipsAhead(task, group) as clips:
            for source in group.sources:
                video = Video(task.data, new_status(group.corpus, source))
                try:
                    with VideoWriter(shard, _shard(task, group.corpus, [source], "long")) as writer:
                        frames = video.watch(clips.open())
                        batch = task.data.encode_batch
                        for window, latents in encoded_windows(video, frames, autoencoder, batch):
                            pixels = (window.num_frames, *video.size) if task.data.has_buckets else ()
                            writer.add(window, latents, pixels)
                        record.windows += video.dropped
                        video.finish()
                        writer.commit(record)
                    status = replace(video.status, latents_sha256=writer.hash.hexdigest())
                except Rejected as rejected:
                    status = rejected_status(video.status, rejected.reject)
                record.statuses.append(status)
        record.files += shard.commit()
        return record.write(task, group)
    except BaseException:
        shard.abort()
        raise


def judge_group(task: Task, group: Group) -> list[Status]:
    """Decode, judge and cut a group of videos, and record in a ledger what `write_group` would keep."""
    record = _Record()
    with ClipsAhead(task, group) as clips:
        for source in group.sources:
            video = Video(task.data, new_status(group.corpus, source))
            try:
                frames = video.watch(clips.open())
                record.windows += [window for window, _ in video.windows(frames)]
                record.windows += video.dropped
                video.finish()
                status = video.status
            except Rejected as rejected:
                status = rejected_status(video.status, rejected.reject)
            record.statuses.append(status)
    return record.write(task, group)


def new_status(corpus: str, source: Source) -> Status:
    """The status of a video before it is opened."""
    return Status(
        corpus=corpus,
        source_id=source.id,
        source=source.path,
        caption=source.caption,
        num_bytes=source.num_bytes,
        status="written",
    )


def rejected_status(status: Status, reject: Reject) -> Status:
    return replace(
        status, status="rejected", stage=reject.stage, reason=reject.reason, num_windows=0, latents_sha256=""
    )


class VideoWriter:
    """Stores the windows of one video: in the group's shard, or, beyond SPILL_BYTES, in a shard of its own.

    Use as a context: a video that ends it with an exception leaves nothing behind.
    """

    def __init__(self, shard: ShardWriter, own: ShardWriter) -> None:
        self._shard, self._own = shard, own
        self._waiting: list[tuple[Window, Latents, tuple[int, ...]]] = []
        self._num_bytes = 0
        self._placed: list[Window] = []
        self._moments: Moments | None = None
        self.hash = hashlib.sha256()
        """Of the latents."""

    def add(self, window: Window, latents: Latents, pixels: tuple[int, ...]) -> None:
        """Take latents [T, C, h, w]; `pixels` as ShardWriter does."""
        self.hash.update(latents.tobytes())
        exact = latents.astype(np.float64)
        total, squares = exact.sum(axis=(0, 2, 3)), np.square(exact).sum(axis=(0, 2, 3))
        own = Moments(latents.size // latents.shape[1], total.tolist(), squares.tolist())
        self._moments = merge_moments(self._moments, own)
        self._waiting.append((window, latents, pixels))
        self._num_bytes += latents.nbytes
        if self._num_bytes > SPILL_BYTES:
            self._place(self._own)

    def commit(self, record: _Record) -> None:
        """The video is whole: its windows count."""
        self._place(self._own if self._num_bytes > SPILL_BYTES else self._shard)
        record.files += self._own.commit()
        record.windows += self._placed
        record.moments = merge_moments(record.moments, self._moments)

    def _place(self, shard: ShardWriter) -> None:
        self._placed += [shard.add(*row) for row in self._waiting]
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._own.abort()


class ClipsAhead:
    """The clips of a group, decoded in order by a thread that runs at most AHEAD_CHUNKS ahead, so that the
    next is decoded while the last frames of this one are encoded. Use as a context."""

    def __init__(self, task: Task, group: Group) -> None:
        self._steps = self._decode(task, group)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode-ahead")
        self._ahead: deque[Future[Any]] = deque(self._submit() for _ in range(AHEAD_CHUNKS))

    def open(self) -> Clip:
        """The next clip; read its frames before opening another.

        Raises:
            Rejected: it cannot be read, also among its frames; the clip after it is next.
        """
        clip: Clip = self._next()
        return clip._replace(frames=self._frames())

    def _frames(self) -> Iterator[Frames]:
        while (chunk := self._next()) is not None:
            yield chunk

    def _next(self) -> Any:
        step = self._ahead.popleft().result()
        self._ahead.append(self._submit())
        if isinstance(step, Rejected):
            raise step
        return step

    def _submit(self) -> Future[Any]:
        return self._thread.submit(next, self._steps, None)

    @staticmethod
    def _decode(task: Task, group: Group) -> Generator[Any, None, None]:
        """In the thread: each clip, its chunks of frames, then None; where it fails, a Rejected instead."""
        for source in group.sources:
            try:
                with open_clip(task, group.corpus, source) as clip:
                    yield clip
                    probe = clip.probe
                    if reason := video_refusal(task.data.curation, probe.width, probe.height, probe.seconds):
                        raise Rejected("curation", reason)
                    yield from clip.frames
                    yield None
            except Rejected as rejected:
                yield rejected

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._steps.close()


@contextmanager
def open_clip(task: Task, corpus: str, source: Source, picks: int = 0) -> Iterator[Clip]:
    """A video of a corpus, decoded by this process's decoder.

    Args:
        picks: frames to read, spread over it, at the main size; 0 is all of them at the nearest size.

    Raises:
        Rejected: it cannot be read.
    """
    data = task.data
    with local_copy(task.folders[corpus], source, data.links) as path:
        sizes = data.sizes[:1] if picks else data.sizes
        yield _decoder(data.limits).open(path, sizes, data.fps, picks)


_DECODERS: dict[LimitsConfig, Decoder] = {}


def _decoder(limits: LimitsConfig) -> Decoder:
    """This process's one decoder, kept from group to group while the limits stay the same."""
    if limits not in _DECODERS:
        close_decoder()
        _DECODERS[limits] = Decoder(limits)
    return _DECODERS[limits]


def close_decoder() -> None:
    while _DECODERS:
        _DECODERS.popitem()[1].close()


atexit.register(close_decoder)


def shard_name(task: Task, sources: Sequence[Source]) -> str:
    return hash_of([task.version, [source.id for source in sources]])[:20]


def _shard(task: Task, corpus: str, sources: Sequence[Source], suffix: str) -> ShardWriter:
    lineage = {"version": task.version} | {name: version(name) for name in ("av", "decord", "torch")}
    return ShardWriter(Storage(task.out), corpus, f"{shard_name(task, sources)}-{suffix}", lineage)


@lru_cache(maxsize=1)
def _autoencoder(out: str, _version: str, device: str) -> Autoencoder:
    """The dataset's autoencoder, one per process.

    Large buffers go back to the system when freed; otherwise windows in memory pin what was freed around them
    (2.8 GiB instead of 0.5 for an hour of video).
    """
    torch.set_num_threads(1)
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
    return dataset_autoencoder(out, device)
