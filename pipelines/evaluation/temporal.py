"""How a video holds together over time, from pixels alone.

To add a metric, write a function of a `Video` and enter it in `METRICS`; evaluation, table and tracking take
their names from there.

None of these numbers is better when larger. Similarity over a lag RISES when a video blurs, freezes or loops;
a frozen video has no drift; noise looks like motion. So every number is read against its distribution over
real video, on both sides, and never alone (`over_time.py`): similarity beside motion, sharpness, drift, and
what stands still or is seen again.

Lags are in seconds, since the same lag in frames means different things at different rates.
"""

from collections.abc import Callable
from functools import cached_property, partial, reduce

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.media.color import luma

LAGS_S = (0.25, 1.0, 2.0)
"""Lags of the similarity curve, in seconds."""
REPEAT_AFTER_S = 2.0
"""What is seen again after this many seconds or more is a repeat;"""
REPEAT_RUN_S = 1.0
"""it lasts as long as this;"""
REPEAT_NEAR = 0.5
"""and differs from the first time by less than this share of the change from frame to frame."""
STILL = 0.5 / 255
"""Root mean square change of luma under which a frame stands still: half a code value."""
ENDS = 0.15
"""Share of the frames at either end that drift compares."""
_BLOCK = 512
"""Frames that are compared with all others at once."""
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
    def steps(self) -> Tensor:
        """Mean square change of luma from each frame to the next, [F - 1]."""
        return self.luma.diff(dim=0).square().mean(dim=(1, 2))

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

    def ssim_at(self, lag: int) -> float:
        """Mean similarity of all frames `lag` apart."""
        starts = torch.arange(len(self) - lag)
        return float(self.ssim(starts, starts + lag).mean())


Metric = Callable[[Video], float | None]
"""A number of one video; None where it is too short."""


def temporal_ssim(video: Video, lag_s: float) -> float | None:
    """Mean similarity of frames `lag_s` seconds apart.

    Too low: flicker, cuts, noise. Too high: blur, a still or a looped video.
    """
    lag = max(1, round(lag_s * video.fps))
    return video.ssim_at(lag) if lag < len(video) else None


def frozen_share(video: Video) -> float:
    """Share of the steps from frame to frame that change less than `STILL`."""
    return float((video.steps < STILL**2).float().mean())


def self_repeat(video: Video) -> float | None:
    """Share of the frames that lie in a second of the video that was seen before: near 1 for a short loop.

    A run of `REPEAT_RUN_S` repeats an earlier one, `REPEAT_AFTER_S` or more before it, where their mean
    square difference is under `REPEAT_NEAR`^2 of the run's own change from frame to frame. That scale is the
    video's own, so a still background does not hide a loop; what stands still itself is no repeat.
    """
    run, lag = (max(2, round(seconds * video.fps)) for seconds in (REPEAT_RUN_S, REPEAT_AFTER_S))
    starts = len(video) - run + 1
    if starts <= lag:
        return None
    light = (video.luma - video.luma.mean(dim=0)).flatten(1).double()
    size = light.square().mean(dim=1)
    change = video.steps.double().unfold(0, run - 1, 1).mean(dim=1)
    seen = torch.zeros(len(video), dtype=torch.bool)
    for first in range(lag, starts, _BLOCK):
        last = min(first + _BLOCK, starts)
        rows = slice(first, last + run - 1)
        apart = size[rows, None] + size - 2 * light[rows] @ light.T / light.shape[1]
        runs = reduce(torch.add, (apart[k : k + last - first, k : k + starts] for k in range(run))) / run
        later = torch.arange(starts) > torch.arange(first, last)[:, None] - lag
        nearest = runs.masked_fill(later, torch.inf).amin(dim=1)
        own = change[first:last]
        again = (nearest < REPEAT_NEAR**2 * own) & (own >= STILL**2)
        for k in range(run):
            seen[first + k : last + k] |= again
    return float(seen.float().mean())


def motion(video: Video) -> float:
    """Root mean square change of luma from frame to frame. Zero: still. High: noise or cuts."""
    return float(video.steps.mean().sqrt())


def unsteadiness(video: Video) -> float | None:
    """Change of the change of luma over its change, root mean squares; None for a video that stands still.

    Small for smooth motion (2 sin(a / 2) for waves that advance by a radians a frame), 1.7 where frames have
    nothing to do with each other, 2 where two alternate. High: jitter, flicker, shuffled frames.
    """
    change = video.luma.diff(dim=0)
    own = change.square().mean()
    if len(video) < 3 or own < STILL**2:
        return None
    return float((change.diff(dim=0).square().mean() / own).sqrt())


def flicker(video: Video) -> float | None:
    """Root mean square change of the change of mean luma; three frames at least."""
    level = video.luma.mean(dim=(1, 2))
    return float(level.diff(n=2).square().mean().sqrt()) if len(video) > 2 else None


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
    """A number, or its logarithm, over the last 15 % less that over the first 15 %; four frames at least.

    Zero is no drift; a frozen end shows in motion, a growing blur or noise in sharpness, exposure in
    luma. Real video drifts too, to both sides.
    """
    first, last = (of(end) for end in video.ends)
    if log:
        first, last = (float(torch.tensor(value + _LOG_FLOOR).log()) for value in (first, last))
    return last - first


METRICS: dict[str, Metric] = {
    **{f"temporal_ssim.{lag:g}s": partial(temporal_ssim, lag_s=lag) for lag in LAGS_S},
    "motion": motion,
    "unsteadiness": unsteadiness,
    "flicker": flicker,
    "frozen_share": frozen_share,
    "self_repeat": self_repeat,
    "pixel_sharpness": sharpness,
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
