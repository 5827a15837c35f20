"""From a stream of frames to encoded windows, holding no more than one window and one block of frames."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from models.autoencoders import Autoencoder

ENCODE_FRAMES = 16
"""Frames encoded together, counted from the first, so that a frame's latents do not depend on how it
arrived."""

Floats = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)


def encoded_windows(
    chunks: Iterable[NDArray[np.uint8]], autoencoder: Autoencoder, length: int, stride: int
) -> Iterator[tuple[int, Floats]]:
    """(first frame, latents [T, C, h, w]) of each window of `length` frames, `stride` apart, from frame 0.

    A crop-safe autoencoder encodes each frame once, however many windows show it; another one encodes each
    window.
    """
    if autoencoder.crop_safe and autoencoder.temporal_factor == 1:
        blocks = (_encode(autoencoder, block) for block in reblocked(chunks, ENCODE_FRAMES))
        yield from sliding(blocks, length, stride)
        return
    for start, frames in sliding(chunks, length, stride):
        yield start, _encode(autoencoder, frames)


def _encode(autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> Floats:
    latents: Floats = autoencoder.encode(torch.from_numpy(np.ascontiguousarray(frames))[None])[0].numpy()
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


def sliding(chunks: Iterable[NDArray[T]], length: int, stride: int) -> Iterator[tuple[int, NDArray[T]]]:
    """(start, rows start .. start + length) for start = 0, stride, 2 stride, ...; a copy each."""
    buffer: NDArray[T] | None = None
    first = start = 0
    for chunk in chunks:
        buffer = chunk if buffer is None else np.concatenate([buffer, chunk])
        while first + len(buffer) >= start + length:
            yield start, buffer[start - first : start - first + length].copy()
            start += stride
        drop = min(start - first, len(buffer))
        buffer, first = buffer[drop:], first + drop
