"""Window arithmetic against its promises, for every length and phase."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.windows import Span, counted, coverage, even_spans, spans

shapes = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20), st.integers(0, 19)).filter(
    lambda s: s[1] <= s[0] and s[2] <= s[1] and s[3] < s[2]
)


@given(shapes)
def test_the_tiling_covers_every_frame_and_its_shape_never_depends_on_the_phase(
    shape: tuple[int, int, int, int],
) -> None:
    frames, length, stride, phase = shape
    windows = spans(frames, length, stride, phase)
    assert len(windows) == len(spans(frames, length, stride, 0))
    assert all(w.start >= 0 and w.stop <= frames and w.length == length for w in windows)
    assert min(coverage(windows, frames)) >= 1
    assert sum(coverage(windows, frames)) == len(windows) * length


@given(shapes)
def test_starts_follow_the_phase(shape: tuple[int, int, int, int]) -> None:
    frames, length, stride, phase = shape
    inside = [w.start for w in spans(frames, length, stride, phase) if 0 < w.start < frames - length]
    assert all(start % stride == phase for start in inside)
    assert inside == sorted(set(inside))


def test_a_known_tiling() -> None:
    assert [w.start for w in spans(32, 8, 4, 1)] == [0, 1, 5, 9, 13, 17, 21, 24]
    assert coverage([Span(0, 2), Span(1, 2)], 4) == [1, 2, 1, 0]


@given(shapes)
def test_without_the_first_frames_of_inner_windows_every_frame_still_counts(
    shape: tuple[int, int, int, int],
) -> None:
    frames, length, stride, phase = shape
    tiling = spans(frames, length, stride, phase)
    parts = [counted(window, crop_safe=False) for window in tiling]
    assert [counted(window, crop_safe=True) for window in tiling] == tiling
    for window, part in zip(tiling, parts, strict=True):
        assert (part.stop, part.start - window.start) == (window.stop, int(window.start > 0))
    if stride < length:
        assert min(coverage(parts, frames)) >= 1


@given(st.integers(2, 100), st.integers(2, 9))
def test_even_windows_reach_from_first_to_last_frame(frames: int, count: int) -> None:
    windows = even_spans(frames, 2, count)
    assert windows[0].start == 0
    assert windows[-1].stop == frames
    assert [w.start for w in even_spans(32, 8, 5)] == [0, 6, 12, 18, 24]


@pytest.mark.parametrize(
    ("frames", "length", "stride", "phase"),
    [(4, 5, 1, 0), (4, 0, 1, 0), (8, 4, 0, 0), (8, 4, 2, 2), (8, 4, 2, -1)],
)
def test_impossible_windows_are_refused(frames: int, length: int, stride: int, phase: int) -> None:
    with pytest.raises(ValueError, match=r"window|stride|phase"):
        spans(frames, length, stride, phase)
