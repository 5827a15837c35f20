"""What a Ray task does with one group of videos: decode, encode, write the shard, report. No Ray in here."""

import atexit
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders import Autoencoder
from models.errors import LongtakeError
from pipelines.data.config import DataConfig, LimitsConfig
from pipelines.data.decode import Decoder, VideoStream
from pipelines.data.info import dataset_autoencoder, hash_of
from pipelines.data.manifest import Source
from pipelines.data.rejects import Reject, Rejected
from pipelines.data.shards import ShardFile, ShardWriter, Status, Window
from pipelines.data.windows import encoded_windows
from pipelines.storage import Storage

SPILL_BYTES = 64 << 20
"""Latents of one video that are held until it is known to be whole; beyond, it gets a shard of its own."""

_DECODERS: dict[LimitsConfig, Decoder] = {}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every group needs to know."""

    out: str
    """Root of the dataset's storage."""
    folders: dict[str, str]
    """Corpus -> its folder."""
    version: str
    data: DataConfig

    def window(self, corpus: str) -> tuple[int, int]:
        """Frames of a window and from one to the next."""
        if corpus == "short":
            return self.data.short_frames, self.data.short_stride
        return self.data.long_frames, self.data.long_stride


@dataclass(frozen=True, kw_only=True)
class Group:
    """Videos of one corpus that one task reads."""

    corpus: str
    sources: tuple[Source, ...]
    picks: tuple[int, ...] = ()
    """Frames wanted of each source, when fitting."""


class FrameCount:
    """Passes chunks of frames on and counts what passed."""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self.frames = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for _, frames in self._stream.chunks():
            self.frames += len(frames)
            yield frames


class VideoWriter:
    """Windows of one video: held for the group's shard, or, when they grow, in a shard of their own."""

    def __init__(self, storage: Storage, task: Task, corpus: str, source: Source) -> None:
        self._own = ShardWriter(storage, corpus, shard_name(task, [source]))
        self._spilled = False
        self._held: list[Window] = []
        self._held_bytes = 0
        self._hash = hashlib.sha256()
        self.windows = 0

    def add(self, window: Window) -> None:
        """Take one window."""
        self.windows += 1
        self._hash.update(window.latents.tobytes())
        self._held.append(window)
        self._held_bytes += window.latents.nbytes
        if self._spilled or self._held_bytes > SPILL_BYTES:
            self._spill()

    def _spill(self) -> None:
        self._spilled = True
        for window in self._held:
            self._own.add(window)
        self._held.clear()
        self._held_bytes = 0

    @property
    def sha256(self) -> str:
        """Of the latents so far."""
        return self._hash.hexdigest()

    def finish(self, group: ShardWriter, status: Status) -> tuple[list[ShardFile], list[Status]]:
        """Hand the windows over: (files of its own, statuses the group's shard must carry)."""
        if self._spilled:
            return self._own.commit([status]), []
        for window in self._held:
            group.add(window)
        return [], [status]

    def abort(self) -> None:
        """The video is rejected."""
        self._own.abort()


def shard_name(task: Task, sources: Sequence[Source]) -> str:
    """Name of the shard of a group: depends on the dataset's version and the videos only."""
    return hash_of([task.version, [source.id for source in sources]])[:20]


def group_by_bytes(corpus: str, sources: Sequence[Source], block_bytes: int, most: int) -> list[Group]:
    """Neighbours together, up to `block_bytes` and `most` videos; a larger video is alone."""
    groups: list[list[Source]] = []
    room = 0
    for source in sources:
        if not groups or source.num_bytes > room or len(groups[-1]) == most:
            groups.append([])
            room = block_bytes
        groups[-1].append(source)
        room -= source.num_bytes
    return [Group(corpus=corpus, sources=tuple(group)) for group in groups]


def write_group(task: Task, group: Group) -> dict[str, Any]:
    """Decode, encode and store a group of videos.

    Returns: {"statuses": one for each video, "files": the files written}, plain values.

    Raises:
        LongtakeError: the storage or the decoder cannot be used at all.
    """
    storage = Storage(task.out)
    autoencoder = _autoencoder(task.out, task.version)
    shard = ShardWriter(storage, group.corpus, shard_name(task, group.sources))
    statuses: list[Status] = []
    carried: list[Status] = []
    files: list[ShardFile] = []
    try:
        for source in group.sources:
            writer = VideoWriter(storage, task, group.corpus, source)
            status = _write_video(task, group.corpus, source, autoencoder, writer)
            statuses.append(status)
            if status.status == "written":
                own, kept = writer.finish(shard, status)
                files += own
                carried += kept
        files += shard.commit(carried)
    except BaseException:
        shard.abort()
        raise
    return {"statuses": [asdict(s) for s in statuses], "files": [asdict(f) for f in files]}


def _write_video(
    task: Task, corpus: str, source: Source, autoencoder: Autoencoder, writer: VideoWriter
) -> Status:
    """Decode and encode one video into its writer; a reject leaves nothing there."""
    length, stride = task.window(corpus)
    status = new_status(corpus, source)
    try:
        stream = _stream(task, corpus, source)
        status = _probed(status, stream)
        counted = FrameCount(stream)
        for start, latents in encoded_windows(counted, autoencoder, length, stride):
            writer.add(_row(corpus, source, start, length, status.reader, latents))
        if not writer.windows:
            reason = f"{counted.frames} frames, a window of {corpus.upper()} needs {length}"
            raise Rejected(Reject("window", reason))
    except Rejected as rejected:
        writer.abort()
        return rejected_status(status, rejected.reject)
    except BaseException:
        writer.abort()
        raise
    fps = task.data.fps or status.source_fps
    return replace(
        status,
        num_frames=counted.frames,
        seconds=counted.frames / fps,
        num_windows=writer.windows,
        tail_frames=max(0, counted.frames - (writer.windows - 1) * stride - length),
        latents_sha256=writer.sha256,
    )


def _row(corpus: str, source: Source, start: int, length: int, reader: str, latents: Any) -> Window:
    return Window(
        window_id=f"{corpus}-{source.id[:32]}-{start:08d}",
        source_id=source.id,
        source=source.path,
        start_frame=start,
        num_frames=length,
        caption=source.caption,
        reader=reader,
        latents=latents,
    )


def new_status(corpus: str, source: Source) -> Status:
    """The status of a video that nothing is known of yet."""
    return Status(
        corpus=corpus,
        source_id=source.id,
        source=source.path,
        caption=source.caption,
        num_bytes=source.num_bytes,
        status="written",
    )


def rejected_status(status: Status, reject: Reject) -> Status:
    """The same, rejected."""
    return replace(status, status="rejected", stage=reject.stage, reason=reject.reason)


def _probed(status: Status, stream: VideoStream) -> Status:
    probe = stream.probe
    return replace(
        status,
        reader=probe.reader,
        reader_reason=probe.reader_reason,
        width=probe.width,
        height=probe.height,
        source_fps=probe.fps,
    )


def sample_group(task: Task, group: Group) -> dict[str, Any]:
    """Decode a few frames of each video of a group, for fitting the autoencoder.

    Returns: {"frames": {source id: uint8 [n, H, W, 3]}, "rejects": {path: reason}}.
    """
    frames: dict[str, NDArray[np.uint8]] = {}
    rejects: dict[str, str] = {}
    for source, picks in zip(group.sources, group.picks, strict=True):
        try:
            stream = _stream(task, group.corpus, source, picks)
            found = [chunk.copy() for _, chunk in stream.chunks()]
        except Rejected as rejected:
            rejects[source.path] = str(rejected)
            continue
        if found:
            frames[source.id] = np.concatenate(found)
    return {"frames": frames, "rejects": rejects}


def _stream(task: Task, corpus: str, source: Source, picks: int = 0) -> VideoStream:
    path = f"{task.folders[corpus]}/{source.path}"
    data = task.data
    return _decoder(data.limits).stream(path, data.height, data.width, fps=data.fps, picks=picks)


def _decoder(limits: LimitsConfig) -> Decoder:
    """This process's decoding child: one, kept from group to group as long as the limits stay."""
    if limits not in _DECODERS:
        close_decoder()
        _DECODERS[limits] = Decoder(limits)
    return _DECODERS[limits]


def close_decoder() -> None:
    """End this process's decoding child, if there is one."""
    while _DECODERS:
        _DECODERS.popitem()[1].close()


atexit.register(close_decoder)


@lru_cache(maxsize=1)
def _autoencoder(out: str, _version: str) -> Autoencoder:
    torch.set_num_threads(1)
    return dataset_autoencoder(out)


def explain(error: Exception, group: Group) -> dict[str, str]:
    """An error that is not one video's fault, as plain values for the driver."""
    if isinstance(error, LongtakeError):
        return {"kind": type(error).__name__, "problem": error.problem, "remedy": error.remedy}
    first = group.sources[0].path
    return {
        "kind": "DataError",
        "problem": f"Ingest failed among the videos from {first} on: {type(error).__name__}: {error}",
        "remedy": "This is a defect of the program; run it again with --debug and report it",
    }
