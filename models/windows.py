"""Windows of a clip as whole numbers."""

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """`length` frames from `start` on."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


def spans(num_frames: int, length: int, stride: int, phase: int = 0) -> list[Span]:
    """The tiling of a clip for the reverse-KL loss: ceil((T - L)/s) + 2 spans, whatever the phase.

    Starts are phase - s, phase, phase + s, ... clamped to [0, T - L]; with s <= L every frame is covered.
    Duplicates at the ends stay, so that shapes never change.

    Args:
        num_frames: T, frames of the clip.
        length: L, frames per window.
        stride: s, frames from one window to the next.
        phase: shift in [0, s).

    Raises:
        ValueError: the window does not fit, or the stride or phase is out of range.
    """
    _check(num_frames, length, stride)
    if not 0 <= phase < stride:
        raise ValueError(f"phase {phase} is not in [0, {stride})")
    last = num_frames - length
    count = -(-last // stride) + 2
    return [Span(min(max(phase + (k - 1) * stride, 0), last), length) for k in range(count)]


def even_spans(num_frames: int, length: int, count: int) -> list[Span]:
    """`count` windows spaced evenly from the first to the last frame, for metrics."""
    _check(num_frames, length, 1)
    last = num_frames - length
    return [Span(round(i * last / max(1, count - 1)), length) for i in range(count)]


def _check(num_frames: int, length: int, stride: int) -> None:
    if not 1 <= length <= num_frames:
        raise ValueError(f"a window of {length} frames does not fit in {num_frames}: shorten the window")
    if stride < 1:
        raise ValueError(f"stride {stride}: windows must advance by at least one frame")


def counted(window: Span, crop_safe: bool) -> Span:
    """The frames of a window that count in a loss: all, where latents are crop-safe.

    A causal autoencoder encodes the first frame of a clip alone. The first latent of a window from the middle
    of a video stands for several frames instead, and no network has seen such a latent in first place: it is
    masked.
    """
    if crop_safe or window.start == 0:
        return window
    return Span(window.start + 1, window.length - 1)


def coverage(windows: Sequence[Span], num_frames: int) -> list[int]:
    """For each frame, how many of `windows` contain it."""
    counts = [0] * num_frames
    for window in windows:
        for frame in range(window.start, window.stop):
            counts[frame] += 1
    return counts
