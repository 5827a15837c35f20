"""From the frames of one video to judged windows and their latents: plain generators, pulled by the writer.

At most a batch of windows, the longest window and a chunk of frames are held, however long the video is.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby, islice, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders.kinds import Autoencoder
from models.windows import Span
from pipelines.data.config import DataConfig
from pipelines.data.curate.quality import Curator
from pipelines.data.decode.decoder import Clip
from pipelines.data.store.ledger import Status, Window
from pipelines.data.types import Rejected
from pipelines.media.color import Frames

ENCODE_FRAMES = 16
"""Frames encoded together by a crop-safe autoencoder, counted from the first of the video, so that a frame's
latents do not depend on how it arrived."""

Latents = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


class Video:
    """One video on its way from frames to windows, and its status."""

    def __init__(self, data: DataConfig, status: Status) -> None:
        self.status = status
        self.dropped: list[Window] = []
        """Windows that curation refuses."""
        self.size = (0, 0)
        """Height and width of its frames, pixels."""
        self._data = data
        self._lengths = data.cuts_of(status.corpus)
        self._spans: list[Span] = []
        self._frames = 0

    def watch(self, clip: Clip) -> Iterator[Frames]:
        """The clip's frames, each as soon as its shot and its scores are known."""
        probe = clip.probe
        self.size, self._fps = clip.size, self._data.fps or probe.fps
        self._curator = Curator(self._data.curation, self._fps, probe.fps, clip.takes)
        self.status = replace(
            self.status,
            reader=probe.reader,
            reader_reason=probe.reader_reason,
            applied=probe.applied,
            width=probe.width,
            height=probe.height,
            source_fps=probe.fps,
        )
        return self._curator.watch(self._counted(clip.frames))

    def _counted(self, chunks: Iterator[Frames]) -> Iterator[Frames]:
        for chunk in chunks:
            self._frames += len(chunk)
            yield chunk

    def windows(self, chunks: Iterable[NDArray[T]]) -> Iterator[tuple[Window, NDArray[T]]]:
        """The windows that are kept, with their rows; the others go to `dropped`.

        Args:
            chunks: a row per watched frame: the frame itself or its latents.
        """
        for span, rows in slide(chunks, self._curator.shot_starts, self._lengths):
            verdict = self._curator.judge(*span)
            window = Window(
                window_id=f"{self.status.corpus}-{self.status.source_id[:32]}-{span.start:08d}",
                source_id=self.status.source_id,
                start_frame=span.start,
                num_frames=span.length,
                reader=self.status.reader,
                shot=verdict.shot,
                reason=verdict.reason,
                **verdict.scores._asdict(),
            )
            self._spans.append(span)
            if verdict.reason:
                self.dropped.append(window)
            else:
                yield window, rows.copy()

    def finish(self) -> None:
        """Count what became of the frames, once all are read.

        Raises:
            Rejected: no window is left.
        """
        ends = pairwise([*(span.start for span in self._spans), self._frames])
        shown = sum(
            min(span.length, end - start) for span, (start, end) in zip(self._spans, ends, strict=True)
        )
        kept = len(self._spans) - len(self.dropped)
        self.status = replace(
            self.status,
            num_frames=self._frames,
            seconds=self._frames / self._fps,
            num_windows=kept,
            dropped_windows=len(self.dropped),
            tail_frames=self._frames - shown,
        )
        if kept:
            return
        if self.dropped:
            commonest = Counter(window.reason for window in self.dropped).most_common(1)[0][0]
            raise Rejected("curation", f"each of {len(self.dropped)} windows: {commonest}")
        shots = len(self._curator.shot_starts) + 1
        frames = f"{self._frames} frames" + (f" in {shots} shots" if shots > 1 else "")
        needed = f"a window of {self.status.corpus.upper()} needs {self._lengths[-1][0]}"
        raise Rejected("window", f"{frames}, {needed}")


def slide(
    chunks: Iterable[NDArray[T]], shot_starts: Sequence[int], lengths: Sequence[tuple[int, int]]
) -> Iterator[tuple[Span, NDArray[T]]]:
    """Each window of a video with a view of its rows; each shot is cut anew, from its first frame on.

    All windows of a shot have one length: the longest that the shot holds. How long a shot is, is known when
    it ends or holds a window of the greatest length; until then no more than that many rows are waiting.

    Args:
        shot_starts: first frames of the shots after the first, rising, complete for the rows that came; it
            grows while `chunks` is read.
        lengths: length of a window and frames from one to the next, the longest first.
    """
    held: NDArray[T] | None = None
    first = shot = start = 0
    for chunk in chain(chunks, [None]):
        if chunk is not None:
            held = chunk if held is None else np.concatenate([held, chunk])
        if held is None:
            return
        frames = first + len(held)
        while True:
            after = bisect_right(shot_starts, shot)
            following = shot_starts[after] if after < len(shot_starts) else None
            end = frames if following is None and chunk is None else following
            fitting = (one for one in lengths if end is None or shot + one[0] <= end)
            length, stride = next(fitting, lengths[0])
            if following is not None and following < start + length:
                shot = start = following
            elif start + length <= frames:
                yield Span(start, length), held[start - first : start - first + length]
                start += stride
            else:
                break
        passed = min(start - first, len(held))
        held, first = held[passed:], first + passed


def encoded_windows(
    video: Video, frames: Iterable[Frames], autoencoder: Autoencoder, batch: int
) -> Iterator[tuple[Window, Latents]]:
    """The windows of a video that are kept, with latents [T, C, h, w].

    A crop-safe autoencoder encodes each frame once, however many windows show it; another one encodes each
    window from its own first frame.

    Args:
        frames: as `video.watch` gives them.
        batch: windows of one length to encode together.
    """
    if autoencoder.crop_safe and autoencoder.temporal_factor == 1:
        blocks = reblocked(frames, ENCODE_FRAMES)
        yield from video.windows(_encode(autoencoder, block[None])[0] for block in blocks)
        return
    for _, of_one_length in groupby(video.windows(frames), key=lambda pair: len(pair[1])):
        while together := list(islice(of_one_length, batch)):
            windows, pixels = zip(*together, strict=True)
            yield from zip(windows, _encode(autoencoder, np.stack(pixels)), strict=True)


def _encode(autoencoder: Autoencoder, frames: Frames) -> Latents:
    latents: Latents = autoencoder.encode(torch.from_numpy(np.ascontiguousarray(frames))).numpy()
    return latents


def reblocked(chunks: Iterable[NDArray[T]], size: int) -> Iterator[NDArray[T]]:
    """The same rows in blocks of `size`; the last may be smaller."""
    held: list[NDArray[T]] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        if count >= size:
            rows = np.concatenate(held)
            whole = count - count % size
            yield from (rows[i : i + size] for i in range(0, whole, size))
            held, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(held)
