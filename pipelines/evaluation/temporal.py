"""How a video holds together over time, from pixels alone.

None of these numbers is better when larger. Similarity over a lag RISES when a video blurs, freezes or loops;
a frozen video has no drift; noise looks like motion. So every number is read against its distribution over
real video, on both sides, and never alone: similarity beside motion, sharpness, drift and the repeat check.

Lags are in seconds, since the same lag in frames means different things at different rates. Videos come as
float32 [3, F, h, w] in [0, 1] from `features.shrink`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.media.color import luma

LAGS_S = (0.25, 1.0, 2.0)
"""Lags of the similarity curve, in seconds."""
REPEAT_AFTER_S = 2.0
"""A video that looks like itself at a lag of this many seconds or more is checked for being a loop."""
ENDS = 0.15
"""Share of the frames at either end that drift compares."""
TEMPORAL_NAMES = (
    *(f"temporal_ssim.{lag:g}s" for lag in LAGS_S),
    *("motion", "pixel_sharpness", "self_repeat"),
    *(f"drift.{name}" for name in ("luma", "saturation", "contrast", "log_sharpness", "log_motion")),
)
"""Every name that `temporal_report` may give."""
_REPEAT_PAIRS = 16
_SSIM_SIDE = 7
_UNBIASED = _SSIM_SIDE**2 / (_SSIM_SIDE**2 - 1)
_C1, _C2 = 0.01**2, 0.03**2
_LOG_FLOOR = 1e-6


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of pictures a, b [N, h, w] in [0, 1], one number a pair [N]; 1 for equal ones.

    Wang et al. 2004, eq. 13, over 7 x 7 squares inside the picture, sample covariances, data range 1.
    """
    frames = _Frames(torch.cat([a, b]))
    first = torch.arange(len(a))
    return frames.similarity(first, first + len(a))


class _Frames:
    """Pictures [N, h, w] with means and variances of their squares, for the similarity of many pairs."""

    def __init__(self, light: Tensor) -> None:
        self._light = light
        self._mean = _squares(light)
        self._variance = (_squares(light * light) - self._mean**2) * _UNBIASED

    def __len__(self) -> int:
        return len(self._light)

    def similarity(self, i: Tensor, j: Tensor) -> Tensor:
        """Structural similarity of frames i and j, [pairs]."""
        product = self._mean[i] * self._mean[j]
        covariance = (_squares(self._light[i] * self._light[j]) - product) * _UNBIASED
        top = (2 * product + _C1) * (2 * covariance + _C2)
        bottom = (self._mean[i] ** 2 + self._mean[j] ** 2 + _C1) * (
            self._variance[i] + self._variance[j] + _C2
        )
        return (top / bottom).mean(dim=(1, 2))

    def at(self, lag: int, most: int | None = None) -> float:
        """Mean similarity of frames `lag` apart, over all pairs or `most` of them."""
        pairs = len(self) - lag
        starts = torch.linspace(0, pairs - 1, min(most or pairs, pairs)).round().long()
        return float(self.similarity(starts, starts + lag).mean())


def _squares(pictures: Tensor) -> Tensor:
    """Means of all squares inside the pictures [N, h, w], rows first and then columns."""
    rows = F.avg_pool2d(pictures[:, None], (1, _SSIM_SIDE), stride=1)
    return F.avg_pool2d(rows, (_SSIM_SIDE, 1), stride=1)[:, 0]


def temporal_ssim(light: Tensor, fps: float, lags_s: Sequence[float] = LAGS_S) -> dict[float, float]:
    """Mean similarity of frames `lag` seconds apart in luma [F, h, w], for lags shorter than the video.

    Too low: flicker, cuts, noise. Too high: blur, a still or a looped video. Compare with real video at that
    lag.
    """
    return _curve(_Frames(light), fps, lags_s)


def _curve(frames: _Frames, fps: float, lags_s: Sequence[float]) -> dict[float, float]:
    steps = {lag: max(1, round(lag * fps)) for lag in lags_s}
    return {lag: frames.at(n) for lag, n in steps.items() if n < len(frames)}


def self_repeat(light: Tensor, fps: float, after_s: float = REPEAT_AFTER_S) -> float | None:
    """Largest mean similarity over lags of `after_s` seconds or more and at most half the video, [F, h, w].

    Near 1 for a loop and for a still video (motion tells them apart). None when the video is too short to
    say. Every lag is looked at, each on at most 16 pairs of frames.
    """
    return _repeat(_Frames(light), fps, after_s)


def _repeat(frames: _Frames, fps: float, after_s: float) -> float | None:
    lags = range(max(1, round(after_s * fps)), len(frames) // 2 + 1)
    return max((frames.at(lag, _REPEAT_PAIRS) for lag in lags), default=None)


def motion(light: Tensor) -> float:
    """Root mean square change from frame to frame of luma [F, h, w]. Zero: still. High: noise or cuts."""
    return float(light.diff(dim=0).square().mean().sqrt())


def sharpness(light: Tensor) -> float:
    """Root mean square gradient of luma [F, h, w]. Low: blur. High: noise."""
    return float((light.diff(dim=1).square().mean() + light.diff(dim=2).square().mean()).sqrt())


def drift(pixels: Tensor) -> dict[str, float]:
    """Last 15 % of the frames minus the first 15 %, of a video [3, F, h, w] with at least four frames.

    luma, saturation and contrast in [0, 1]; sharpness and motion as differences of logarithms. Zero is no
    drift; a frozen end shows in motion, a growing blur or noise in sharpness, exposure in luma. Real video
    drifts too.
    """
    length = max(2, round(ENDS * pixels.shape[1]))
    head, tail = _state(pixels[:, :length]), _state(pixels[:, -length:])
    return {name: tail[name] - head[name] for name in head}


def temporal_report(pixels: Tensor, fps: float) -> dict[str, float]:
    """All numbers of this module for one video [3, F, h, w]; drifts unsigned, missing ones left out."""
    light = luma(pixels.movedim(0, -1))
    frames = _Frames(light)
    report = {f"temporal_ssim.{lag:g}s": value for lag, value in _curve(frames, fps, LAGS_S).items()}
    report |= {"motion": motion(light), "pixel_sharpness": sharpness(light)}
    report |= {f"drift.{name}": abs(value) for name, value in drift(pixels).items()}
    repeat = _repeat(frames, fps, REPEAT_AFTER_S)
    return report if repeat is None else report | {"self_repeat": repeat}


def _state(pixels: Tensor) -> dict[str, float]:
    light = luma(pixels.movedim(0, -1))
    return {
        "luma": float(light.mean()),
        "saturation": float((pixels.amax(dim=0) - pixels.amin(dim=0)).mean()),
        "contrast": float(light.flatten(1).std(dim=1).mean()),
        "log_sharpness": _log(sharpness(light)),
        "log_motion": _log(motion(light)),
    }


def _log(value: float) -> float:
    return float(torch.tensor(value + _LOG_FLOOR).log())
