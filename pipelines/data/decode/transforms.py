"""From a video's own frames to the corpus's: which of them, at what rate, how large. No decoder, no torch."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from PIL import Image

from pipelines.media.color import Frames as Frame

Timed = tuple[float, Frame]
"""Seconds from the first frame, and RGB [height, width, 3]."""
Size = tuple[int, int]
"""Height and width, pixels."""


def fit_box(
    height: float, width: float, out_height: int, out_width: int
) -> tuple[float, float, float, float]:
    """The largest centred box (left, top, right, bottom) of a frame that has the output's aspect ratio."""
    scale = min(height / out_height, width / out_width)
    box_height, box_width = out_height * scale, out_width * scale
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return left, top, left + box_width, top + box_height


def nearest(height: int, width: int, sizes: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest a frame's on a logarithmic scale."""
    return min(sizes, key=lambda size: abs(math.log(width / height * size[0] / size[1])))


def resize(frame: Frame, height: int, width: int, pixel_aspect: float = 1.0) -> Frame:
    """Resize [H, W, 3], whose pixels are `pixel_aspect` times as wide as high, with antialiasing to cover
    height x width square pixels, centre-cropped; an exact fit passes unchanged."""
    if frame.shape[:2] == (height, width) and pixel_aspect == 1:
        return frame
    left, top, right, bottom = fit_box(frame.shape[0], frame.shape[1] * pixel_aspect, height, width)
    box = left / pixel_aspect, top, right / pixel_aspect, bottom
    image = Image.fromarray(frame).resize(
        (width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0
    )
    return np.asarray(image)


def resample(frames: Iterable[Timed], rate: float, fps: float | None) -> Iterator[Frame]:
    """Frames at the ticks k / fps, each the nearest in time (of two, the earlier); None keeps every frame.

    Args:
        rate: the video's own frame rate; its last frame is shown for 1 / rate.
        fps: wanted frame rate; a slower video repeats frames.
    """
    if fps is None:
        yield from (frame for _, frame in frames)
        return
    held: Timed | None = None
    tick = 0
    for now, frame in frames:
        while held is not None and tick / fps <= (held[0] + now) / 2:
            yield held[1]
            tick += 1
        held = now, frame
    while held is not None and tick / fps < held[0] + 1 / rate - 0.25 / fps:
        yield held[1]
        tick += 1


def pick(frames: Iterable[Timed], total: int, picks: int, horizon: int) -> Iterator[Frame]:
    """`picks` frames spread evenly over the first min(total, horizon); reading stops after the last of
    them."""
    span = min(total, horizon)
    wanted = {int((i + 0.5) * span / picks) for i in range(picks)}
    for index, (_, frame) in enumerate(islice(frames, max(wanted) + 1)):
        if index in wanted:
            yield frame
