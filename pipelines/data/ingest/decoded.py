"""The frames of a group of videos, one video after another, from this process's one decoding child."""

import atexit
from collections.abc import Generator, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipelines.data.config import LimitsConfig
from pipelines.data.curate.quality import video_refusal
from pipelines.data.decode.decoder import Decoder, Probe, VideoStream
from pipelines.data.decode.transforms import Size
from pipelines.data.ingest.groups import Group, Task
from pipelines.data.source.manifest import Source, local_copy
from pipelines.data.types import Reject, Rejected

Frames = NDArray[np.uint8]
Event: TypeAlias = Probe | Frames | Reject | None

_DECODERS: dict[LimitsConfig, Decoder] = {}


def decoded(task: Task, group: Group) -> Generator[Event, None, None]:
    """For each video of the group its Probe, its frames [n, H, W, 3] in chunks, and None; from where it
    fails on, a Reject in place of what is missing."""
    for source in group.sources:
        try:
            yield from _video(task, group.corpus, source)
        except Rejected as rejected:
            yield rejected.reject


def _video(task: Task, corpus: str, source: Source) -> Iterator[Event]:
    with local_copy(task.folders[corpus], source) as path:
        stream = _stream(task, path, others=task.data.shapes)
        yield stream.probe
        probe = stream.probe
        if reason := video_refusal(task.data.curation, probe.width, probe.height, probe.seconds):
            raise Rejected(Reject("curation", reason))
        for _, frames in stream.chunks():
            yield frames
        yield None


def next_probe(events: Iterator[Event]) -> Probe:
    """The next video's.

    Raises:
        Rejected: it has none; the video after it is next.
    """
    item = next(events)
    if isinstance(item, Reject):
        raise Rejected(item)
    assert isinstance(item, Probe)
    return item


def rest_of_video(events: Iterator[Event]) -> Iterator[Frames]:
    """The frames up to the video's end.

    Raises:
        Rejected: it turned out damaged; what came before is to be dropped.
    """
    while (item := next(events)) is not None:
        if isinstance(item, Reject):
            raise Rejected(item)
        assert isinstance(item, np.ndarray)
        yield item


def sample_group(task: Task, group: Group) -> tuple[dict[str, Frames], dict[str, str]]:
    """Decode a few frames of each video of a group, at the main size, for fitting the autoencoder.

    Returns: source id -> frames uint8 [n, H, W, 3], and path -> reason of what cannot be read.
    """
    frames: dict[str, Frames] = {}
    rejects: dict[str, str] = {}
    for source, picks in zip(group.sources, group.picks, strict=True):
        try:
            with local_copy(task.folders[group.corpus], source) as path:
                found = [chunk.copy() for _, chunk in _stream(task, path, picks).chunks()]
        except Rejected as rejected:
            rejects[source.path] = str(rejected)
            continue
        if found:
            frames[source.id] = np.concatenate(found)
    return frames, rejects


def _stream(task: Task, path: str, picks: int = 0, others: Sequence[Size] = ()) -> VideoStream:
    data = task.data
    return _decoder(data.limits).stream(path, data.height, data.width, data.fps, picks, others)


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
