"""Windows are cut as the shared arithmetic says, however the frames arrive."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipelines.data.ingest.windowing import Cutting, encoded_windows, reblocked, sliding


def split(values: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    parts, start = [], 0
    while start < len(values):
        size = sizes[len(parts) % len(sizes)]
        parts.append(values[start : start + size])
        start += size
    return parts


def starts(first: int, last: int, length: int, stride: int) -> range:
    return range(first, last - length + 1, stride)


@given(st.integers(0, 90), st.integers(1, 20), st.integers(1, 30), st.lists(st.integers(1, 25), min_size=1))
def test_sliding_cuts_the_spans_of_the_shared_arithmetic(
    total: int, length: int, stride: int, sizes: list[int]
) -> None:
    rows = np.arange(total)
    found = list(sliding(split(rows, sizes), Cutting(length, stride)))
    assert [start for start, _ in found] == list(starts(0, total, length, stride))
    for start, window in found:
        np.testing.assert_array_equal(window, rows[start : start + length])


class Arriving:
    """Chunks of rows, and the cuts among the rows that have been given out."""

    def __init__(self, parts: list[np.ndarray], cuts: list[int]) -> None:
        self.parts, self._cuts, self._given = parts, cuts, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for part in self.parts:
            self._given += len(part)
            yield part

    def cuts(self) -> list[int]:
        return [cut for cut in self._cuts if cut < self._given]


@given(
    st.integers(0, 90),
    st.integers(1, 20),
    st.integers(1, 30),
    st.lists(st.integers(1, 25), min_size=1),
    st.sets(st.integers(1, 89), max_size=8),
)
def test_each_shot_is_cut_as_a_video_of_its_own(
    total: int, length: int, stride: int, sizes: list[int], places: set[int]
) -> None:
    cuts = sorted(cut for cut in places if cut < total)
    rows = np.arange(total)
    arriving = Arriving(split(rows, sizes), cuts)
    found = list(sliding(arriving, Cutting(length, stride, arriving.cuts)))
    expected = [
        start for first, last in pairwise([0, *cuts, total]) for start in starts(first, last, length, stride)
    ]
    assert [start for start, _ in found] == expected
    for start, window in found:
        np.testing.assert_array_equal(window, rows[start : start + length])


@given(
    st.integers(0, 90),
    st.sets(st.integers(1, 20), min_size=1, max_size=4),
    st.integers(1, 30),
    st.lists(st.integers(1, 25), min_size=1),
    st.sets(st.integers(1, 89), max_size=8),
)
def test_each_shot_has_windows_of_the_longest_length_that_it_holds(
    total: int, lengths: set[int], stride: int, sizes: list[int], places: set[int]
) -> None:
    """However frames and cuts arrive; the strides of shorter windows are their own."""
    cuts = sorted(cut for cut in places if cut < total)
    rows = np.arange(total)
    arriving = Arriving(split(rows, sizes), cuts)
    (longest, own), *shorter = [(length, stride + length % 3) for length in sorted(lengths, reverse=True)]
    found = list(sliding(arriving, Cutting(longest, own, arriving.cuts, shorter=shorter)))
    expected = []
    for first, last in pairwise([0, *cuts, total]):
        length = max((n for n in lengths if n <= last - first), default=longest)
        expected += [(start, length) for start in starts(first, last, length, stride + length % 3)]
    assert [(start, len(window)) for start, window in found] == expected
    for start, window in found:
        np.testing.assert_array_equal(window, rows[start : start + len(window)])


def test_cuts_that_are_known_before_their_frames_change_no_window() -> None:
    """A crop-safe code gives latents out in blocks, later than the cuts among them are found."""
    rows, cuts = np.arange(50), [11, 20, 43]
    cutting = Cutting(9, 9, lambda: cuts, shorter=[(5, 2)])
    for sizes in ([1], [4], [50]):
        found = [(start, len(window)) for start, window in sliding(split(rows, sizes), cutting)]
        assert found == [(0, 9), (11, 9), (20, 9), (29, 9), (43, 5), (45, 5)]


def test_a_video_that_does_not_end_holds_no_more_frames_than_the_longest_window() -> None:
    """Frames that wait for the end of their shot are bounded: each window is given as soon as it is there."""
    given: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            given.append(len(given))
            yield np.array(given[-1:])

    windows = sliding(endless(), Cutting(12, 12, shorter=[(4, 4)]))
    for number in range(5):
        start, rows = next(windows)
        assert (start, len(rows), len(given)) == (12 * number, 12, 12 * (number + 1))


@pytest.mark.parametrize("crop_safe", [True, False])
def test_windows_of_one_length_only_are_encoded_together(crop_safe: bool) -> None:
    code = Counting(crop_safe, temporal_factor=1)
    cutting = Cutting(8, 4, lambda: [22, 28], batch=3, shorter=[(5, 5)])
    windows = [(start, len(rows)) for start, rows in encoded_windows(split(video(33), [7]), code, cutting)]
    assert windows == [(0, 8), (4, 8), (8, 8), (12, 8), (22, 5), (28, 5)]
    assert code.batches == ([1] * 3 if crop_safe else [3, 1, 2])


@pytest.mark.parametrize("crop_safe", [True, False])
def test_what_is_not_kept_is_not_given(crop_safe: bool) -> None:
    code = Counting(crop_safe, temporal_factor=1)
    cutting = Cutting(8, 8, keeps=lambda start, _length: start % 16 == 0, batch=2)
    windows = list(encoded_windows(split(video(50), [7]), code, cutting))
    assert [start for start, _ in windows] == [0, 16, 32]
    assert sum(code.calls) == (50 if crop_safe else 24)


@pytest.mark.parametrize(("batch", "calls"), [(1, [1] * 6), (4, [4, 2]), (9, [6])])
def test_windows_of_a_neural_code_are_encoded_together(batch: int, calls: list[int]) -> None:
    code = Counting(crop_safe=False, temporal_factor=4)
    windows = list(encoded_windows(split(video(30), [7]), code, Cutting(9, 4, batch=batch)))
    assert code.batches == calls
    for start, found in windows:
        np.testing.assert_array_equal(found.ravel(), start + 4 * np.arange(3))


@given(st.integers(0, 90), st.integers(1, 20), st.lists(st.integers(1, 25), min_size=1))
def test_reblocking_keeps_every_row_in_order(total: int, size: int, sizes: list[int]) -> None:
    rows = np.arange(total)
    blocks = list(reblocked(split(rows, sizes), size))
    assert all(len(block) == size for block in blocks[:-1])
    np.testing.assert_array_equal(np.concatenate([np.empty(0, int), *blocks]), rows)


class Counting:
    """Latents are the mean of a frame; counts the frames it was given."""

    channels = 1
    reconstruction_error = 0.0

    def __init__(self, crop_safe: bool, temporal_factor: int) -> None:
        self.crop_safe, self.temporal_factor = crop_safe, temporal_factor
        self.calls: list[int] = []
        self.batches: list[int] = []

    def encode(self, frames: Tensor) -> Tensor:
        self.calls.append(len(frames) * frames.shape[1])
        self.batches.append(len(frames))
        means = frames.float().mean(dim=(2, 3, 4))
        return means[:, :: self.temporal_factor, None, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        raise NotImplementedError


def video(count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))


def test_a_crop_safe_code_reads_each_frame_once() -> None:
    code = Counting(crop_safe=True, temporal_factor=1)
    windows = list(encoded_windows(split(video(50), [7]), code, Cutting(20, 5)))
    assert [start for start, _ in windows] == [0, 5, 10, 15, 20, 25, 30]
    assert sum(code.calls) == 50
    for start, latents in windows:
        np.testing.assert_array_equal(latents.ravel(), np.arange(start, start + 20))


def test_blocks_do_not_depend_on_how_frames_arrive() -> None:
    calls = []
    for sizes in ([50], [1], [7, 3]):
        code = Counting(crop_safe=True, temporal_factor=1)
        list(encoded_windows(split(video(50), sizes), code, Cutting(8, 8)))
        calls.append(code.calls)
    assert calls == [[16, 16, 16, 2]] * 3


@pytest.mark.parametrize(("length", "latents"), [(9, 3), (5, 2)])
def test_another_code_reads_each_window_from_its_own_first_frame(length: int, latents: int) -> None:
    code = Counting(crop_safe=False, temporal_factor=4)
    windows = list(encoded_windows(split(video(30), [7]), code, Cutting(length, 4)))
    assert code.calls == [length] * len(windows)
    for start, found in windows:
        np.testing.assert_array_equal(found.ravel(), start + 4 * np.arange(latents))
    assert windows[0][1].shape == (latents, 1, 1, 1)
    assert torch.float32 == torch.from_numpy(windows[0][1]).dtype
