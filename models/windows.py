"""Windows of a clip as whole numbers: the same arithmetic serves data, training and metrics."""

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """`length` frames from `start`."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """One past the last frame."""
        return self.start + self.length


def _check(num_frames: int, length: int, stride: int) -> None:
    if not 1 <= length <= num_frames:
        raise ValueError(f"a window of {length} frames does not fit in {num_frames}: shorten the window")
    if stride < 1:
        raise ValueError(f"stride {stride}: windows must move on by at least one frame")


def spans(num_frames: int, length: int, stride: int, phase: int = 0) -> list[Span]:
    """The tiling of a clip for the reverse-KL loss: ceil((T - L)/s) + 2 spans, whatever the phase.

    Starts are phase - s, phase, phase + s, ... clamped to [0, T - L]; with s <= L every frame is covered.
    Duplicates at the ends stay, so that shapes never change.

    Args:
        num_frames: T, frames of the clip.
        length: L, frames a window.
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


def coverage(windows: Sequence[Span], num_frames: int) -> list[int]:
    """How many of `windows` show each frame."""
    counts = [0] * num_frames
    for window in windows:
        for frame in range(window.start, window.stop):
            counts[frame] += 1
    return counts


def counted(window: Span, crop_safe: bool) -> Span:
    """The frames of a window that a loss counts: all, but for a code whose latents are not crop-safe.

    A causal autoencoder codes the first frame of a clip alone. The first latent of a window from the middle
    of a video stands for several frames instead, which no network saw in first place: it is masked.
    """
    if crop_safe or window.start == 0:
        return window
    return Span(window.start + 1, window.length - 1)


def data_spans(num_frames: int, length: int, stride: int) -> list[Span]:
    """Windows cut from a source: starts 0, s, 2s, ...; a tail too short for a window is left out."""
    if length < 1 or stride < 1:
        raise ValueError(f"length {length} and stride {stride} must be at least 1")
    return [Span(start, length) for start in range(0, num_frames - length + 1, stride)]


def even_spans(num_frames: int, length: int, count: int) -> list[Span]:
    """`count` windows spread evenly from the first to the last frame, for metrics."""
    _check(num_frames, length, 1)
    last = num_frames - length
    return [Span(round(i * last / max(1, count - 1)), length) for i in range(count)]
