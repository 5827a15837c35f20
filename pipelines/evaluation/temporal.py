"""How a video holds together over time, from pixels alone.

None of these numbers is better when larger. Similarity over a lag RISES when a video blurs, freezes or loops; a
frozen video has no drift; noise looks like motion. So every number is read against its distribution over real
video, on both sides, and never alone: similarity beside motion, sharpness, drift and the repeat check.

Lags are in seconds, since the same lag in frames means different things at different rates. Videos come as
float32 [3, F, h, w] in [0, 1] from `features.shrink`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.evaluation.features import luma

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
_C1, _C2 = 0.01**2, 0.03**2
_LOG_FLOOR = 1e-6


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of pictures a, b [N, h, w] in [0, 1], one number a pair [N]; 1 for equal pictures.

    Wang et al. 2004, eq. 13, over 7 x 7 squares inside the picture, sample covariances, data range 1.
    """
    pooled = F.avg_pool2d(torch.stack([a, b, a * a, b * b, a * b], dim=1), _SSIM_SIDE, stride=1)
    mean_a, mean_b, square_a, square_b, product = pooled.unbind(1)
    unbiased = _SSIM_SIDE**2 / (_SSIM_SIDE**2 - 1)
    var_a, var_b = (square_a - mean_a**2) * unbiased, (square_b - mean_b**2) * unbiased
    covariance = (product - mean_a * mean_b) * unbiased
    top = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    bottom = (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
    return (top / bottom).mean(dim=(1, 2))


def temporal_ssim(light: Tensor, fps: float, lags_s: Sequence[float] = LAGS_S) -> dict[float, float]:
    """Mean similarity of frames `lag` seconds apart in luma [F, h, w], for lags shorter than the video.

    Too low: flicker, cuts, noise. Too high: blur, a still or a looped video. Compare with real video at that lag.
    """
    frames = {lag: max(1, round(lag * fps)) for lag in lags_s}
    return {lag: float(ssim(light[:-n], light[n:]).mean()) for lag, n in frames.items() if n < len(light)}


def self_repeat(light: Tensor, fps: float, after_s: float = REPEAT_AFTER_S) -> float | None:
    """Largest mean similarity over lags of `after_s` seconds or more and at most half the video, [F, h, w].

    Near 1 for a loop and for a still video (motion tells them apart). None when the video is too short to say.
    Every lag is looked at, each on at most 16 pairs of frames.
    """
    first, last = max(1, round(after_s * fps)), len(light) // 2
    return max((_similarity_at(light, lag) for lag in range(first, last + 1)), default=None)


def _similarity_at(light: Tensor, lag: int) -> float:
    starts = torch.linspace(0, len(light) - lag - 1, min(_REPEAT_PAIRS, len(light) - lag)).round().long()
    return float(ssim(light[starts], light[starts + lag]).mean())


def motion(light: Tensor) -> float:
    """Root mean square difference of neighbouring frames of luma [F, h, w]. Zero: still. High: noise, flicker, cuts."""
    return float(light.diff(dim=0).square().mean().sqrt())


def sharpness(light: Tensor) -> float:
    """Root mean square gradient of luma [F, h, w]. Low: blur. High: noise."""
    return float((light.diff(dim=1).square().mean() + light.diff(dim=2).square().mean()).sqrt())


def drift(pixels: Tensor) -> dict[str, float]:
    """Last 15 % of the frames minus the first 15 %, of a video [3, F, h, w] with at least four frames.

    luma, saturation and contrast in [0, 1]; sharpness and motion as differences of logarithms. Zero is no drift;
    a frozen end shows in motion, a growing blur or noise in sharpness, exposure in luma. Real video drifts too.
    """
    length = max(2, round(ENDS * pixels.shape[1]))
    head, tail = _state(pixels[:, :length]), _state(pixels[:, -length:])
    return {name: tail[name] - head[name] for name in head}


def temporal_report(pixels: Tensor, fps: float) -> dict[str, float]:
    """All numbers of this module for one video [3, F, h, w]; drifts without their sign, missing ones left out."""
    light = luma(pixels[None])[0]
    report = {f"temporal_ssim.{lag:g}s": value for lag, value in temporal_ssim(light, fps).items()}
    report |= {"motion": motion(light), "pixel_sharpness": sharpness(light)}
    report |= {f"drift.{name}": abs(value) for name, value in drift(pixels).items()}
    repeat = self_repeat(light, fps)
    return report if repeat is None else report | {"self_repeat": repeat}


def _state(pixels: Tensor) -> dict[str, float]:
    light = luma(pixels[None])[0]
    return {
        "luma": float(light.mean()),
        "saturation": float((pixels.amax(dim=0) - pixels.amin(dim=0)).mean()),
        "contrast": float(light.flatten(1).std(dim=1).mean()),
        "log_sharpness": _log(sharpness(light)),
        "log_motion": _log(motion(light)),
    }


def _log(value: float) -> float:
    return float(torch.tensor(value + _LOG_FLOOR).log())
