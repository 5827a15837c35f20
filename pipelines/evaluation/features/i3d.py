"""The I3D network of FVD: Inception-v1 inflated to 3-D, trained on Kinetics-400, our own code in torch.

Carreira and Zisserman 2017 (the network), Unterthiner et al. 2018 (the distance on its 400 logits). Weights
are read by pipelines/evaluation/features/i3d_file.py. The original runs in TensorFlow, whose SAME padding
puts the odd cell behind; batch norm has no scale and an epsilon of 1e-3, and is folded into the convolutions.

A window is 16 frames at 224 x 224 pixels in -1 ... 1. Under 9 frames nothing reaches the last pool.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.device import half_precision
from models.weights import copy_into
from models.windows import even_spans

FRAMES, SIDE, CLASSES = 16, 224, 400
"""Frames and pixels of a window; logits."""

Widths = tuple[int, int, int, int, int, int]
"""Channels of an Inception block: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 behind the pool."""

STEM = (64, 64, 192)
"""Channels of the three convolutions before the blocks."""
BLOCKS: Final[Mapping[str, Widths]] = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}

POOLS: Final = {"3b": ((1, 3, 3), (1, 2, 2)), "4b": ((3, 3, 3), (2, 2, 2)), "5b": ((2, 2, 2), (2, 2, 2))}
"""Kernel and stride (time, height, width) of the pool before a block."""


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad [N, C, T, H, W] as TensorFlow's SAME does: ceil(size / stride) outputs, the odd cell behind."""
    pads: list[int] = []
    for size, width, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        total = max((-(-size // step) - 1) * step + width - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value) if any(pads) else x


class Unit(nn.Conv3d):
    """Convolution with SAME padding, its batch norm folded in, and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(pad_same(x, self.kernel_size, self.stride)), inplace=True)


class Pool(nn.Module):
    """Largest of each box of `kernel` cells (time, height, width), with SAME padding."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride, -torch.inf), self.kernel, self.stride)


class Mixed(nn.ModuleList):
    """An Inception block: four branches side by side."""

    def __init__(self, inputs: int, widths: Widths) -> None:
        one, squeeze_a, a, squeeze_b, b, pooled = widths
        super().__init__(
            [
                nn.Sequential(Unit(inputs, one, 1)),
                nn.Sequential(Unit(inputs, squeeze_a, 1), Unit(squeeze_a, a, 3)),
                nn.Sequential(Unit(inputs, squeeze_b, 1), Unit(squeeze_b, b, 3)),
                nn.Sequential(Pool((3, 3, 3), (1, 1, 1)), Unit(inputs, pooled, 1)),
            ]
        )
        self.outputs = one + a + b + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


class I3D(nn.Sequential):
    """Videos [N, 3, T, 224, 224] in -1 ... 1 to logits [N, classes], their mean over time; T >= 9.

    Args:
        stem, blocks, classes: channels, which a test makes few.
    """

    def __init__(
        self, stem: Sequence[int] = STEM, blocks: Mapping[str, Widths] = BLOCKS, classes: int = CLASSES
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            Conv3d_1a_7x7=Unit(3, stem[0], 7, 2),
            MaxPool3d_2a_3x3=Pool((1, 3, 3), (1, 2, 2)),
            Conv3d_2b_1x1=Unit(stem[0], stem[1], 1),
            Conv3d_2c_3x3=Unit(stem[1], stem[2], 3),
        )
        channels = stem[2]
        for name, widths in blocks.items():
            if name in POOLS:
                layers[f"MaxPool3d_before_{name}"] = Pool(*POOLS[name])
            layers[f"Mixed_{name}"] = block = Mixed(channels, widths)
            channels = block.outputs
        layers["AvgPool3d"] = nn.AvgPool3d((2, 7, 7), stride=1)
        layers["Logits"] = nn.Conv3d(channels, classes, 1)
        super().__init__(layers)

    def forward(self, videos: Tensor) -> Tensor:
        logits: Tensor = super().forward(videos)
        return logits.flatten(2).mean(dim=2)


@dataclass(frozen=True)
class WindowRule:
    """Which frames of a video the network sees."""

    shown: int
    """Frames of the video in a window. Under 16 each is held: frame k of the window is frame
    floor(k * shown / 16)."""
    count: int
    """Windows per video, spread evenly."""

    @classmethod
    def of(cls, frames: int, wanted: int) -> "WindowRule":
        """For videos of so many frames: `wanted` windows, but none that overlap."""
        return cls(min(frames, FRAMES), max(1, min(wanted, frames // FRAMES)))

    @property
    def suffix(self) -> str:
        """What the names of figures end with: nothing for whole windows, `.held8` for 8 frames held to 16."""
        return "" if self.shown == FRAMES else f".held{self.shown}"

    def windows(self, num_frames: int) -> NDArray[np.int64]:
        """Frame numbers [count, 16] of a video's windows."""
        held = np.arange(FRAMES) * self.shown // FRAMES
        spans = even_spans(num_frames, self.shown, self.count)
        return np.array([span.start for span in spans])[:, None] + held


class I3DFeatures:
    """Logits of windows of videos; bfloat16 on a GPU.

    Args:
        weights: by name, from `i3d_file.load_weights`.
        rule: which frames are windows.
        device: where the network computes.
    """

    name = "i3d"
    dim = CLASSES

    def __init__(
        self, weights: Mapping[str, NDArray[np.float32]], rule: WindowRule, device: torch.device
    ) -> None:
        self._device, self._rule = device, rule
        self.shape = (rule.count, self.dim)
        self._network = I3D().eval().requires_grad_(False)
        copy_into(self._network, {name: torch.from_numpy(value) for name, value in weights.items()}, "I3D")
        self._network.to(device)

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> NDArray[np.float32]:
        """Logits [windows, 400] of one video uint8 [F, H, W, 3], F >= rule.shown."""
        logits = []
        for numbers in self._rule.windows(len(frames)):
            window = pictures(frames[torch.from_numpy(numbers)].to(self._device))[None]
            with half_precision(self._device, self._device.type == "cuda"):
                logits.append(self._network(window)[0].float().cpu().numpy())
        return np.stack(logits)


def identity(device_type: str) -> str:
    """Name, version, and everything that changes the numbers."""
    precision = "bfloat16" if device_type == "cuda" else "float32"
    return f"i3d/1 kinetics-400 logits, {FRAMES} frames, {SIDE} px bilinear antialiased, {precision}"


def pictures(frames: Tensor) -> Tensor:
    """Frames uint8 [F, H, W, 3] as the network sees them, float32 [3, F, 224, 224] in -1 ... 1.

    The centre square is resized, bilinear and antialiased.
    """
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[:, top : top + side, left : left + side].permute(0, 3, 1, 2).to(torch.float32)
    if side != SIDE:
        square = F.interpolate(square, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return (square / 127.5 - 1.0).transpose(0, 1).contiguous()
