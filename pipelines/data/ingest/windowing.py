"""From a stream of frames to encoded windows, holding a batch of windows and a block of frames at most."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders.kinds import Autoencoder

ENCODE_FRAMES = 16
"""Frames encoded together, counted from the first, so that a frame's latents do not depend on how it
arrived."""

Floats = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


class Cutting(NamedTuple):
    """How a video is cut into windows."""

    length: int
    """Frames a window of a shot that is long enough."""
    stride: int
    """Frames from one window to the next; each shot starts anew."""
    cuts: Callable[[], Sequence[int]] = tuple
    """First frames of the shots after the first, rising, as far as frames have been given out."""
    keeps: Callable[[int, int], bool] = lambda _start, _length: True
    """Whether the window of (start, length) is worth encoding; asked once its frames are there."""
    batch: int = 1
    """Windows encoded together where each is encoded by itself."""
    shorter: Sequence[tuple[int, int]] = ()
    """Length and stride of the windows of shots that are shorter than `length`, the longest first."""


def encoded_windows(
    chunks: Iterable[NDArray[np.uint8]], autoencoder: Autoencoder, cutting: Cutting
) -> Iterator[tuple[int, Floats]]:
    """(first frame, latents [T, C, h, w]) of each window that is kept, in order.

    A crop-safe autoencoder encodes each frame once, however many windows show it; another one encodes each
    window.
    """
    if autoencoder.crop_safe and autoencoder.temporal_factor == 1:
        blocks = (_encode(autoencoder, block[None])[0] for block in reblocked(chunks, ENCODE_FRAMES))
        yield from sliding(blocks, cutting)
        return
    held: list[tuple[int, NDArray[np.uint8]]] = []
    for window in sliding(chunks, cutting):
        if held and len(held[0][1]) != len(window[1]):
            yield from _encode_windows(autoencoder, held)
            held = []
        held.append(window)
        if len(held) == cutting.batch:
            yield from _encode_windows(autoencoder, held)
            held = []
    if held:
        yield from _encode_windows(autoencoder, held)


def _encode_windows(
    autoencoder: Autoencoder, windows: Sequence[tuple[int, NDArray[np.uint8]]]
) -> Iterator[tuple[int, Floats]]:
    latents = _encode(autoencoder, np.stack([frames for _, frames in windows]))
    return zip((start for start, _ in windows), latents, strict=True)


def _encode(autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> Floats:
    latents: Floats = autoencoder.encode(torch.from_numpy(np.ascontiguousarray(frames))).numpy()
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


def sliding(chunks: Iterable[NDArray[T]], cutting: Cutting) -> Iterator[tuple[int, NDArray[T]]]:
    """(start, rows start .. start + length) of each window that is kept; a copy each."""
    buffer: NDArray[T] | None = None
    first = 0
    places = Places([(cutting.length, cutting.stride), *cutting.shorter])
    for chunk, ended in _with_end(chunks):
        if chunk is not None:
            buffer = chunk if buffer is None else np.concatenate([buffer, chunk])
        if buffer is None:
            return
        for start, length in places.until(first + len(buffer), cutting.cuts(), ended):
            if cutting.keeps(start, length):
                yield start, buffer[start - first : start - first + length].copy()
        drop = min(places.next - first, len(buffer))
        buffer, first = buffer[drop:], first + drop


def _with_end(chunks: Iterable[NDArray[T]]) -> Iterator[tuple[NDArray[T] | None, bool]]:
    """(chunk, False) of each chunk, then (None, True)."""
    yield from ((chunk, False) for chunk in chunks)
    yield None, True


class Places:
    """Where the windows of a video lie, found as its frames arrive.

    All windows of a shot have one length: the longest that the shot holds. How long a shot is, is known when
    it ends or holds a window of the greatest length; until then no more than that many frames are waiting.

    Args:
        cuts: length of a window and frames from one to the next, the longest first.
    """

    def __init__(self, cuts: Sequence[tuple[int, int]]) -> None:
        self._cuts = cuts
        self._shot = 0
        self.next = 0
        """The next window starts here or later."""

    def until(self, frames: int, cuts: Sequence[int], ended: bool = False) -> Iterator[tuple[int, int]]:
        """(start, length) of the windows that end within the first `frames` frames and were not given before.

        Args:
            cuts: every cut among those frames, rising.
            ended: the video has no more frames.
        """
        while True:
            after = bisect_right(cuts, self._shot)
            end = cuts[after] if after < len(cuts) else frames if ended else None
            length, stride = self._longest(end)
            if after < len(cuts) and cuts[after] < self.next + length:
                self._shot = self.next = cuts[after]
            elif self.next + length <= frames:
                yield self.next, length
                self.next += stride
            else:
                return

    def _longest(self, end: int | None) -> tuple[int, int]:
        """Length and stride of the windows of the shot, which ends there; None: it is not known where."""
        held = (cut for cut in self._cuts if end is None or self._shot + cut[0] <= end)
        return next(held, self._cuts[0])
