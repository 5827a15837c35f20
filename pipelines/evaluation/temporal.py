"""How a video holds together over time, from pixels alone.

To add a metric, write a function of a `Video` and enter it in `METRICS`; evaluation, table and tracking take
their names from there.

None of these numbers is better when larger. Similarity over a lag RISES when a video blurs, freezes or loops;
a frozen video has no drift; noise looks like motion. So every number is read against its distribution over
real video, on both sides, and never alone: similarity beside motion, sharpness, drift and the repeat check.

Lags are in seconds, since the same lag in frames means different things at different rates.
"""

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.media.color import luma

LAGS_S = (0.25, 1.0, 2.0)
"""Lags of the similarity curve, in seconds."""
REPEAT_AFTER_S = 2.0
"""A video that looks like itself at a lag of this many seconds or more is checked for being a loop."""
ENDS = 0.15
"""Share of the frames at either end that drift compares."""
_REPEAT_PAIRS = 16
_SSIM_SIDE = 7
_UNBIASED = _SSIM_SIDE**2 / (_SSIM_SIDE**2 - 1)
_C1, _C2 = 0.01**2, 0.03**2
_LOG_FLOOR = 1e-6


class Video:
    """One video, with what several metrics derive from it.

    Args:
        pixels: float32 [3, F, h, w] in [0, 1], from `features.shrink`.
        fps: frames per second.
    """

    def __init__(self, pixels: Tensor, fps: float) -> None:
        self.pixels = pixels
        self.fps = fps
        self.luma = luma(pixels.movedim(0, -1))

    def __len__(self) -> int:
        return len(self.luma)

    @cached_property
    def ends(self) -> tuple["Video", "Video"]:
        """The first and the last 15 % of the frames, two at least."""
        length = max(2, round(ENDS * len(self)))
        return Video(self.pixels[:, :length], self.fps), Video(self.pixels[:, -length:], self.fps)

    @cached_property
    def _local(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of luma in every 7 x 7 square."""
        mean = _squares(self.luma)
        return mean, (_squares(self.luma * self.luma) - mean**2) * _UNBIASED

    def ssim(self, i: Tensor, j: Tensor) -> Tensor:
        """Structural similarity of frames i and j, [pairs]; 1 for equal ones.

        Wang et al. 2004, eq. 13, over 7 x 7 squares inside the picture, sample covariances, data range 1.
        """
        mean, variance = self._local
        product = mean[i] * mean[j]
        covariance = (_squares(self.luma[i] * self.luma[j]) - product) * _UNBIASED
        top = (2 * product + _C1) * (2 * covariance + _C2)
        bottom = (mean[i] ** 2 + mean[j] ** 2 + _C1) * (variance[i] + variance[j] + _C2)
        return (top / bottom).mean(dim=(1, 2))

    def ssim_at(self, lag: int, max_pairs: int | None = None) -> float:
        """Mean similarity of frames `lag` apart, over all pairs or `max_pairs` evenly spaced ones."""
        pairs = len(self) - lag
        starts = torch.linspace(0, pairs - 1, min(max_pairs or pairs, pairs)).round().long()
        return float(self.ssim(starts, starts + lag).mean())


Metric = Callable[[Video], float | None]
"""A number of one video; None where it is too short."""


def temporal_ssim(video: Video, lag_s: float) -> float | None:
    """Mean similarity of frames `lag_s` seconds apart.

    Too low: flicker, cuts, noise. Too high: blur, a still or a looped video.
    """
    lag = max(1, round(lag_s * video.fps))
    return video.ssim_at(lag) if lag < len(video) else None


def self_repeat(video: Video) -> float | None:
    """Largest mean similarity over lags of `REPEAT_AFTER_S` or more and at most half the video.

    Near 1 for a loop and for a still video (motion tells them apart). Each lag takes at most 16 pairs.
    """
    lags = range(max(1, round(REPEAT_AFTER_S * video.fps)), len(video) // 2 + 1)
    return max((video.ssim_at(lag, _REPEAT_PAIRS) for lag in lags), default=None)


def motion(video: Video) -> float:
    """Root mean square change of luma from frame to frame. Zero: still. High: noise or cuts."""
    return float(video.luma.diff(dim=0).square().mean().sqrt())


def sharpness(video: Video) -> float:
    """Root mean square gradient of luma. Low: blur. High: noise."""
    light = video.luma
    return float((light.diff(dim=1).square().mean() + light.diff(dim=2).square().mean()).sqrt())


def brightness(video: Video) -> float:
    """Mean luma."""
    return float(video.luma.mean())


def saturation(video: Video) -> float:
    """Mean difference between the largest and the smallest channel."""
    return float((video.pixels.amax(dim=0) - video.pixels.amin(dim=0)).mean())


def contrast(video: Video) -> float:
    """Mean standard deviation of luma in a frame."""
    return float(video.luma.flatten(1).std(dim=1).mean())


def drift(video: Video, of: Callable[[Video], float], log: bool = False) -> float:
    """|last 15 % - first 15 %| of a number or of its logarithm; four frames at least.

    Zero is no drift; a frozen end shows in motion, a growing blur or noise in sharpness, exposure in
    luma. Real video drifts too.
    """
    first, last = (of(end) for end in video.ends)
    if log:
        first, last = (float(torch.tensor(value + _LOG_FLOOR).log()) for value in (first, last))
    return abs(last - first)


METRICS: dict[str, Metric] = {
    **{f"temporal_ssim.{lag:g}s": partial(temporal_ssim, lag_s=lag) for lag in LAGS_S},
    "motion": motion,
    "pixel_sharpness": sharpness,
    "self_repeat": self_repeat,
    "drift.luma": partial(drift, of=brightness),
    "drift.saturation": partial(drift, of=saturation),
    "drift.contrast": partial(drift, of=contrast),
    "drift.log_sharpness": partial(drift, of=sharpness, log=True),
    "drift.log_motion": partial(drift, of=motion, log=True),
}
"""Every temporal metric, by the name under which it is reported."""


def temporal_metrics(pixels: Tensor, fps: float) -> NDArray[np.float32]:
    """All metrics of a video [3, F, h, w], in the order of `METRICS`; not-a-number where it is too short."""
    video = Video(pixels, fps)
    found = [metric(video) for metric in METRICS.values()]
    return np.array([np.nan if value is None else value for value in found], dtype=np.float32)


def _squares(pictures: Tensor) -> Tensor:
    """Means of all 7 x 7 squares inside the pictures [N, h, w], rows first and then columns."""
    rows = F.avg_pool2d(pictures[:, None], (1, _SSIM_SIDE), stride=1)
    return F.avg_pool2d(rows, (_SSIM_SIDE, 1), stride=1)[:, 0]
