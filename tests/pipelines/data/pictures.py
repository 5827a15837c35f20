"""Moving pictures whose shots, motion and sharpness are known: what curation is tested on."""

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def texture(seed: int, height: int = 64, width: int = 64) -> NDArray[np.float64]:
    """A smooth coloured picture [height, width, 3], 0 ... 255; other seeds look different."""
    rng = np.random.default_rng(seed)
    rows = np.cos(np.outer(np.arange(8), np.pi * (np.arange(height) + 0.5) / height))
    columns = np.cos(np.outer(np.arange(8), np.pi * (np.arange(width) + 0.5) / width))
    picture = np.einsum("klc,ky,lx->yxc", rng.normal(size=(8, 8, 3)), rows, columns)
    return np.clip(128 + 35 * picture / picture.std(), 0, 255)


def shot(seed: int, count: int, size: int = 64, speed: int = 1) -> Frames:
    """A camera that pans over a texture by `speed` pixels a frame: [count, size, size, 3]."""
    wide = texture(seed, size, size + speed * count)
    views = [wide[:, speed * i : speed * i + size] for i in range(count)]
    return np.round(np.stack(views)).astype(np.uint8)


def flat(level: int, count: int, size: int = 64) -> Frames:
    """Frames of one grey."""
    return np.full((count, size, size, 3), level, np.uint8)


def bar(count: int, size: int, width: int, speed: int) -> Frames:
    """A white bar of full height on black that moves `speed` pixels a frame and stays in the picture."""
    frames = flat(0, count, size)
    for index, frame in enumerate(frames):
        frame[:, speed * index : speed * index + width] = 255
    return frames


def blurred(frames: Frames, radius: int) -> Frames:
    """Each pixel the mean of its neighbours up to `radius` away in both directions, wrapping round."""
    out = frames.astype(np.float64)
    for axis in (1, 2):
        out = np.mean([np.roll(out, shift, axis) for shift in range(-radius, radius + 1)], axis=0)
    return np.round(out).astype(np.uint8)


def chunked(frames: Frames, sizes: list[int]) -> list[Frames]:
    """The same frames in chunks of these sizes, over and over."""
    parts, start = [], 0
    while start < len(frames):
        size = sizes[len(parts) % len(sizes)]
        parts.append(frames[start : start + size])
        start += size
    return parts
