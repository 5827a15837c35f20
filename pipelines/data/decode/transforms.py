"""From a video's own frames to the corpus's: which of them, at what rate, how large. No decoder, no torch."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise

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


def resample(
    frames: Iterable[Timed],
    rate: float,
    fps: float | None,
    takes: list[int],
    pause: float = math.inf,
    last: float = 0.0,
) -> Iterator[Frame]:
    """Frames at the ticks k / fps, each the nearest in time (of two, the earlier); None keeps every frame.

    Args:
        rate: the video's own frame rate; the last frame before a pause or the end is shown for 1 / rate.
        fps: wanted frame rate; a slower video repeats frames.
        takes: the number of the first frame after each pause is appended, before that frame is yielded.
        pause: seconds without a frame beyond which the time between is left out and the clock starts anew.
        last: seconds that the video's last frame is shown, where that is more.
    """
    start, begin, count = 0.0, 0, 0
    for held, after in pairwise(chain(frames, [None])):
        assert held is not None
        now, frame = held
        if fps is None:
            yield frame
            count += 1
        elif after is None or after[0] - now > pause:
            end = now - start + max(last if after is None else 0.0, 1 / rate) - 0.25 / fps
            while (count - begin) / fps < end:
                yield frame
                count += 1
        else:
            while (count - begin) / fps <= (now + after[0]) / 2 - start:
                yield frame
                count += 1
        if after is not None and after[0] - now > pause:
            takes.append(count)
            start, begin = after[0], count


def pick(frames: Iterable[Timed], total: int, picks: int, horizon: int) -> Iterator[Frame]:
    """`picks` frames spread evenly over the first min(total, horizon); reading stops after the last of
    them."""
    span = min(total, horizon)
    wanted = {int((i + 0.5) * span / picks) for i in range(picks)}
    for index, (_, frame) in enumerate(islice(frames, max(wanted) + 1)):
        if index in wanted:
            yield frame
