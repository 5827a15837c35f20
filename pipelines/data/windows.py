"""From a stream of frames to encoded windows, holding a batch of windows and a block of frames at most."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders import Autoencoder

ENCODE_FRAMES = 16
"""Frames encoded together, counted from the first, so that a frame's latents do not depend on how it
arrived."""

Floats = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


class Cutting(NamedTuple):
    """How a video is cut into windows."""

    length: int
    """Frames a window."""
    stride: int
    """Frames from one window to the next; each shot starts anew."""
    cuts: Callable[[], Sequence[int]] = tuple
    """First frames of the shots after the first, rising, as far as frames have been given out."""
    keeps: Callable[[int], bool] = lambda _start: True
    """Whether the window that starts at a frame is worth encoding; asked once its frames are there."""
    batch: int = 1
    """Windows encoded together where each is encoded by itself."""


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
    starts = Starts(cutting.length, cutting.stride)
    for chunk in chunks:
        buffer = chunk if buffer is None else np.concatenate([buffer, chunk])
        for start in starts.until(first + len(buffer), cutting.cuts()):
            if cutting.keeps(start):
                yield start, buffer[start - first : start - first + cutting.length].copy()
        drop = min(starts.next - first, len(buffer))
        buffer, first = buffer[drop:], first + drop


class Starts:
    """Where the windows of a video start, found as its frames arrive.

    Args:
        length: frames a window.
        stride: frames from one window of a shot to the next.
    """

    def __init__(self, length: int, stride: int) -> None:
        self._length, self._stride = length, stride
        self._shot = 0
        self.next = 0
        """The next window starts here or later."""

    def until(self, frames: int, cuts: Sequence[int]) -> Iterator[int]:
        """Starts of the windows that end within the first `frames` frames and were not given before.

        Args:
            cuts: every cut among those frames, rising.
        """
        while True:
            after = bisect_right(cuts, self._shot)
            if after < len(cuts) and cuts[after] < self.next + self._length:
                self._shot = self.next = cuts[after]
            elif self.next + self._length <= frames:
                yield self.next
                self.next += self._stride
            else:
                return
