"""Fixed features of windows and videos: no downloaded weights; each has a name, a version and a checksum.

A distance on these features is not comparable with an I3D "FVD": it is always named with its extractor.

factors-32   of the built-in world's factors (pipelines/distances.py); its distances are times 100
rand3d-diff  of pixels: fixed random 3-D convolutions over RGB and the frame difference times 4
st-stats     of pixels: 35 hand-made numbers of colour, gradients, motion and their change over the window

Weights come from numpy's RandomState, whose stream is frozen, so they are the same on every machine.
"""

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
STORY_FRAMES = 32
"""Evenly spaced frames that the story features see."""
STORY_FACTORS = 9
"""Leading factors (texture, level, presence, colour) that the story features see; the waves are left out."""


class PixelFeatures(Protocol):
    """Features of windows of pixels."""

    name: str
    dim: int
    identity: str
    """Name, version, and everything that changes the numbers."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [N, dim] of windows [N, 3, F, h, w] from `shrink`, each of its window alone."""
        ...


class RandomConvolutions:
    """`rand3d-diff`: two fixed random 3-D convolutions, rectified; mean and deviation of each channel.

    The frame difference is an input because the mean over time of plain convolutions does not notice the
    order of the frames. Weights are normal with a gain of about 3, so that small contrasts matter.
    """

    name = "rand3d-diff"
    dim = 64
    identity = f"{name}/1 area {SIDE}"

    def __init__(self) -> None:
        random = np.random.RandomState(0)
        self._weights = []
        for channels, inputs in ((24, 6), (32, 24)):
            values = random.standard_normal((channels, inputs, 3, 3, 3)) * 3.0 / np.sqrt(inputs * 27)
            self._weights.append(torch.from_numpy(values.astype(np.float32)))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [N, 64] of windows [N, 3, F, h, w] on the CPU, F >= 2."""
        first, second = self._weights
        change = torch.diff(pixels, dim=2, prepend=pixels[:, :, :1]) * DIFFERENCE_GAIN
        hidden = torch.cat([pixels - 0.5, change], dim=1)
        hidden = F.conv3d(hidden, first, stride=(1, 3, 3), padding=1)
        hidden = F.conv3d(F.leaky_relu(hidden, 0.2), second, stride=(2, 2, 2), padding=1)
        hidden = F.leaky_relu(hidden, 0.2).flatten(2)
        return torch.cat([hidden.mean(dim=2), hidden.std(dim=2)], dim=1)


class Statistics:
    """`st-stats`: 35 numbers per window.

    Three channel means, deviation of luma, saturation; at four scales the log energies of the x- and
    y-gradient, of the frame difference at four lags and of the second difference; the trend of luma and its
    mean step.
    """

    name = "st-stats"
    dim = 35
    identity = f"{name}/1 area {SIDE}"
    lags = (1, 2, 4, 8)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [N, 35] of windows [N, 3, F, h, w], F >= 3; lags are cut to F - 1."""
        light = luma(pixels.movedim(1, -1))
        saturation = pixels.amax(dim=1) - pixels.amin(dim=1)
        level = light.mean(dim=(2, 3))
        parts = [pixels.mean(dim=(2, 3, 4)), light.flatten(1).std(dim=1, keepdim=True)]
        parts.append(saturation.flatten(1).mean(dim=1, keepdim=True))
        for _ in range(4):
            changes = [light.diff(dim=3), light.diff(dim=2)]
            lags = [min(lag, light.shape[1] - 1) for lag in self.lags]
            changes += [light[:, lag:] - light[:, :-lag] for lag in lags]
            changes.append(light.diff(n=2, dim=1))
            energies = [(change.square().flatten(1).mean(dim=1) + LOG_FLOOR).log() for change in changes]
            parts.append(torch.stack(energies, dim=1))
            light = F.avg_pool2d(light, 2)
        parts.append(level[:, -1:] - level[:, :1])
        parts.append(level.diff(dim=1).abs().mean(dim=1, keepdim=True))
        return torch.cat(parts, dim=1)


EXTRACTORS: dict[str, PixelFeatures] = {
    extractor.name: extractor for extractor in (RandomConvolutions(), Statistics())
}
"""The pixel features of an evaluation by name, the headline first."""


def shrink(frames: Tensor) -> Tensor:
    """One video uint8 [F, H, W, 3] as [3, F, h, w] in [0, 1], area-averaged to 64 pixels on the shorter side.

    Smaller pictures keep their size.
    """
    f, height, width, _ = frames.shape
    shorter = min(height, width)
    if shorter <= SIDE:
        return frames.permute(3, 0, 1, 2).to(torch.float32) / 255.0
    if height != width or height % SIDE:
        size = (round(height * SIDE / shorter), round(width * SIDE / shorter))
        pixels = frames.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        return F.interpolate(pixels, size=size, mode="area").transpose(0, 1).contiguous()
    # block means in whole numbers: five times faster than pooling floats
    block = height // SIDE
    rows = frames.view(f, SIDE, block, width * 3).to(torch.int32 if block > 11 else torch.int16)
    cells = reduce(torch.add, rows.unbind(2)).view(f, SIDE, SIDE, block, 3)
    total = reduce(torch.add, cells.unbind(3))
    pixels = total.permute(3, 0, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels / (255.0 * block * block)


def window_pixels(pixels: Tensor, length: int, count: int) -> Tensor:
    """`count` evenly spaced windows of `length` frames of a video [3, T, h, w]: [count, 3, length, h, w]."""
    return torch.stack(
        [pixels[:, span.start : span.stop] for span in even_spans(pixels.shape[1], length, count)]
    )


def factor_windows(factors: NDArray[np.floating], length: int, count: int) -> Floats:
    """The same windows of factors [N, T, 13], flat: [N * count, length * 13]."""
    cut = [factors[:, span.start : span.stop] for span in even_spans(factors.shape[1], length, count)]
    return np.stack(cut, axis=1).reshape(len(factors) * count, -1).astype(np.float64)


def factor_videos(factors: NDArray[np.floating]) -> Floats:
    """Whole videos of factors [N, T, 13], flat: [N, T * 13]."""
    return factors.reshape(len(factors), -1).astype(np.float64)


def factor_story(factors: NDArray[np.floating]) -> Floats:
    """What happens over a clip: 32 evenly spaced frames of the factors [N, T, 13] without waves, [N, 288]."""
    frames = np.linspace(0, factors.shape[1] - 1, STORY_FRAMES).round().astype(int)
    return factors[:, frames, :STORY_FACTORS].reshape(len(factors), -1).astype(np.float64)
