"""Fixed features of windows and videos: no downloaded weights; each has a name, a version and a checksum.

A distance on these features is not comparable with an I3D "FVD": it is always named with its extractor.

factors-32   of the built-in world's factors (pipelines/distances.py); its distances are times 100
rand3d-diff  of pixels: fixed random 3-D convolutions over RGB and the frame difference times 4
st-stats     of pixels: 35 hand-made numbers of colour, gradients, motion and their change over the window

Weights come from numpy's RandomState, whose stream is frozen, so they are the same on every machine.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.windows import even_spans
from pipelines.media.color import luma

Floats = NDArray[np.float64]

SIDE = 64
"""Pixels on the shorter side that pictures are averaged down to before any pixel feature."""
DIFFERENCE_GAIN = 4.0
"""Weight of the frame difference beside the colours; without it shuffled frames go unnoticed."""
LOG_FLOOR = 1e-4
"""Added to energies before their logarithm, so that still pictures do not rule the distance."""
FACTOR_SCALE = 100.0
"""Distances on `factors-32` are reported times this."""
STORY_FRAMES = 32
"""Frames, spread over the clip, that the story features see."""
STORY_FACTORS = 9
"""Leading factors (texture, level, presence, colour) that the story features see; the waves are left out."""


class PixelFeatures(Protocol):
    """Features of windows of pixels."""

    name: str
    dim: int

    @property
    def identity(self) -> str:
        """Name, version, and everything that changes the numbers."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [N, dim] of windows [N, 3, F, h, w] from `shrink`, each of its window alone."""
        ...


def factor_windows(factors: NDArray[np.floating], length: int, count: int) -> Floats:
    """`count` spread windows of `length` frames of factors [N, T, 13], flat: [N * count, length * 13]."""
    cut = [factors[:, span.start : span.stop] for span in even_spans(factors.shape[1], length, count)]
    return np.stack(cut, axis=1).reshape(len(factors) * count, -1).astype(np.float64)


def factor_story(factors: NDArray[np.floating]) -> Floats:
    """What happens over a clip: 32 spread frames of the factors [N, T, 13] without waves, [N, 288]."""
    frames = np.linspace(0, factors.shape[1] - 1, STORY_FRAMES).round().astype(int)
    return factors[:, frames, :STORY_FACTORS].reshape(len(factors), -1).astype(np.float64)


def shrink(frames: Tensor) -> Tensor:
    """One video uint8 [F, H, W, 3] as [3, F, h, w] in [0, 1], area-averaged to 64 pixels on the shorter side.

    Smaller pictures keep their size.
    """
    _, height, width, _ = frames.shape
    shorter = min(height, width)
    if shorter <= SIDE:
        return frames.permute(3, 0, 1, 2).to(torch.float32) / 255.0
    if height == width and height % SIDE == 0:
        return _block_means(frames, height // SIDE)
    size = (round(height * SIDE / shorter), round(width * SIDE / shorter))
    pixels = frames.permute(0, 3, 1, 2).to(torch.float32) / 255.0
    return F.interpolate(pixels, size=size, mode="area").transpose(0, 1).contiguous()


def _block_means(frames: Tensor, block: int) -> Tensor:
    """Means of `block` x `block` pixels by whole numbers: five times faster than pooling floats."""
    f, height, width, _ = frames.shape
    rows = frames.view(f, height // block, block, width * 3).to(torch.int32 if block > 11 else torch.int16)
    columns = reduce(torch.add, rows.unbind(2))
    cells = columns.view(f, height // block, width // block, block, 3)
    total = reduce(torch.add, cells.unbind(3))
    pixels = total.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels / (255.0 * block * block)


class RandomConvolutions:
    """`rand3d-diff`: two fixed random 3-D convolutions, rectified; mean and deviation of each channel.

    The frame difference is an input because the mean over time of plain convolutions does not notice the
    order of the frames.
    """

    name = "rand3d-diff"
    dim = 64

    def __init__(self) -> None:
        random = np.random.RandomState(0)
        self._first = _weights(random, 24, 6, (3, 3, 3))
        self._second = _weights(random, 32, 24, (3, 3, 3))

    @property
    def identity(self) -> str:
        """Name, version and the size that pictures are reduced to."""
        return f"{self.name}/1 area {SIDE}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [N, 64] of windows [N, 3, F, h, w] on the CPU, F >= 2."""
        change = torch.diff(pixels, dim=2, prepend=pixels[:, :, :1]) * DIFFERENCE_GAIN
        hidden = torch.cat([pixels - 0.5, change], dim=1)
        hidden = F.conv3d(hidden, self._first, stride=(1, 3, 3), padding=1)
        hidden = F.conv3d(F.leaky_relu(hidden, 0.2), self._second, stride=(2, 2, 2), padding=1)
        hidden = F.leaky_relu(hidden, 0.2).flatten(2)
        return torch.cat([hidden.mean(dim=2), hidden.std(dim=2)], dim=1)


class Statistics:
    """`st-stats`: 35 numbers a window.

    Three channel means, deviation of luma, saturation; at four scales the log energies of the x- and
    y-gradient, of the frame difference at four lags and of the second difference; the trend of luma and its
    mean step.
    """

    name = "st-stats"
    dim = 35
    lags = (1, 2, 4, 8)

    @property
    def identity(self) -> str:
        """Name, version and the size that pictures are reduced to."""
        return f"{self.name}/1 area {SIDE}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [N, 35] of windows [N, 3, F, h, w], F >= 3; lags are cut to F - 1."""
        light = luma(pixels.movedim(1, -1))
        saturation = pixels.amax(dim=1) - pixels.amin(dim=1)
        level = light.mean(dim=(2, 3))
        parts = [pixels.mean(dim=(2, 3, 4)), light.flatten(1).std(dim=1, keepdim=True)]
        parts.append(saturation.flatten(1).mean(dim=1, keepdim=True))
        for _ in range(4):
            parts.append(self._energies(light))
            light = F.avg_pool2d(light, 2)
        parts.append(level[:, -1:] - level[:, :1])
        parts.append(level.diff(dim=1).abs().mean(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)

    def _energies(self, light: Tensor) -> Tensor:
        lags = [min(lag, light.shape[1] - 1) for lag in self.lags]
        changes = [light.diff(dim=3), light.diff(dim=2)]
        changes += [light[:, lag:] - light[:, :-lag] for lag in lags]
        changes.append(light.diff(n=2, dim=1))
        return torch.stack([(c.square().flatten(1).mean(dim=1) + LOG_FLOOR).log() for c in changes], dim=1)


def pixel_extractors() -> list[PixelFeatures]:
    """The pixel features of an evaluation, the headline first."""
    return [RandomConvolutions(), Statistics()]


def window_pixels(pixels: Tensor, length: int, count: int) -> Tensor:
    """`count` spread windows of `length` frames of one video [3, T, h, w]: [count, 3, length, h, w]."""
    return torch.stack(
        [pixels[:, span.start : span.stop] for span in even_spans(pixels.shape[1], length, count)]
    )


def fixed_windows() -> Tensor:
    """Four fixed windows of noise [4, 3, 8, 64, 64] that checksums are taken on."""
    random = np.random.RandomState(7)
    return torch.from_numpy(random.randint(0, 256, (4, 3, 8, SIDE, SIDE)).astype(np.float32) / 255.0)


def checksum(features: Tensor | Floats) -> list[float]:
    """Mean, deviation, first and last number of a table: what a version of an extractor is known by."""
    table = np.asarray(features, dtype=np.float64)
    return [float(table.mean()), float(table.std()), float(table.flat[0]), float(table.flat[-1])]


def _weights(random: np.random.RandomState, channels: int, inputs: int, kernel: Sequence[int]) -> Tensor:
    """Normal weights with a gain of about 3, so that small contrasts matter."""
    size = inputs * int(np.prod(kernel))
    values = random.standard_normal((channels, inputs, *kernel)) * 3.0 / np.sqrt(size)
    return torch.from_numpy(values.astype(np.float32))
