"""Windows are cut shot by shot, however the frames arrive, and each is encoded as its autoencoder asks."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipelines.data.config import CurationConfig, DataConfig
from pipelines.data.curate.quality import UNSCORED, Verdict
from pipelines.data.decode.decoder import Clip
from pipelines.data.decode.protocol import Probe
from pipelines.data.ingest.windowing import Video, encoded_windows, reblocked, slide
from pipelines.data.store.ledger import Status
from pipelines.data.types import Rejected


def split(values: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    parts, start = [], 0
    while start < len(values):
        size = sizes[len(parts) % len(sizes)]
        parts.append(values[start : start + size])
        start += size
    return parts


class Arriving:
    """Chunks of rows, and the starts of shots among the rows that have been given out."""

    def __init__(self, parts: list[np.ndarray], shot_starts: list[int]) -> None:
        self._parts, self._all = parts, shot_starts
        self.shot_starts: list[int] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        given = 0
        for part in self._parts:
            given += len(part)
            self.shot_starts += [start for start in self._all if given - len(part) <= start < given]
            yield part


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
    """However frames and shots arrive; the strides of shorter windows are their own."""
    shot_starts = sorted(start for start in places if start < total)
    rows = np.arange(total)
    arriving = Arriving(split(rows, sizes), shot_starts)
    plan = [(length, stride + length % 3) for length in sorted(lengths, reverse=True)]
    found = [(span, window.copy()) for span, window in slide(arriving, arriving.shot_starts, plan)]
    expected = []
    for first, last in pairwise([0, *shot_starts, total]):
        length, step = next((one for one in plan if one[0] <= last - first), plan[0])
        expected += [(start, length) for start in range(first, last - length + 1, step)]
    assert [tuple(span) for span, _ in found] == expected
    for span, window in found:
        np.testing.assert_array_equal(window, rows[span.start : span.stop])


def test_shots_that_are_known_before_their_frames_change_no_window() -> None:
    """A crop-safe code gives latents out in blocks, later than the shots among them are found."""
    rows, shot_starts = np.arange(50), [11, 20, 43]
    for sizes in ([1], [4], [50]):
        spans = [span for span, _ in slide(split(rows, sizes), shot_starts, [(9, 9), (5, 2)])]
        assert spans == [(0, 9), (11, 9), (20, 9), (29, 9), (43, 5), (45, 5)]


def test_a_video_that_does_not_end_holds_no_more_frames_than_the_longest_window() -> None:
    """Frames that wait for the end of their shot are bounded: each window is given as soon as it is there."""
    given: list[int] = []

    def endless() -> Iterator[np.ndarray]:
        while True:
            given.append(len(given))
            yield np.array(given[-1:])

    windows = slide(endless(), [], [(12, 12), (4, 4)])
    for number in range(5):
        span, _ = next(windows)
        assert (span.start, span.length, len(given)) == (12 * number, 12, 12 * (number + 1))


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


def chunks(count: int, sizes: list[int]) -> list[np.ndarray]:
    """Frames that show their number."""
    numbered = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return split(np.broadcast_to(numbered, (count, 2, 2, 3)), sizes)


def opened(
    frames: Iterable[np.ndarray], length: int, stride: int, takes: Sequence[int] = (), **data: Any
) -> tuple[Video, Any]:
    """A LONG video of these frames, and the frames as they are watched."""
    config = DataConfig(
        short_frames=1,
        long_frames=length,
        long_stride=stride,
        curation=CurationConfig(cuts=False, scores=False),
        **data,
    )
    status = Status(corpus="long", source_id="0", source="0.mp4", caption="", num_bytes=1, status="written")
    probe = Probe(
        reader="decord", reader_reason="", applied="mirrored", width=2, height=2, fps=8.0, seconds=1.0
    )
    video = Video(config, status)
    return video, video.watch(Clip(probe, (2, 2), iter(frames), list(takes)))


def encode(
    code: Counting, frames: Iterable[np.ndarray], length: int, stride: int, batch: int = 1
) -> list[tuple[int, np.ndarray]]:
    video, watched = opened(frames, length, stride)
    return [(window.start_frame, latents) for window, latents in encoded_windows(video, watched, code, batch)]


@pytest.mark.parametrize("crop_safe", [True, False])
def test_windows_of_one_length_only_are_encoded_together(crop_safe: bool) -> None:
    code = Counting(crop_safe, temporal_factor=1)
    video, frames = opened(chunks(33, [7]), 8, 4, long_lengths=(5,))
    video._curator.shot_starts += [22, 28]
    windows = [w for w, _ in encoded_windows(video, frames, code, batch=3)]
    assert [(w.start_frame, w.num_frames) for w in windows] == [
        (0, 8), (4, 8), (8, 8), (12, 8), (22, 5), (28, 5)
    ]  # fmt: skip
    assert code.batches == ([1] * 3 if crop_safe else [3, 1, 2])


@pytest.mark.parametrize("sizes", [[50], [1], [7, 3]])
def test_no_window_spans_a_pause_of_the_recording(sizes: list[int]) -> None:
    video, frames = opened(chunks(50, sizes), 8, 8, takes=[20, 45])
    assert [window.start_frame for window, _ in video.windows(frames)] == [0, 8, 20, 28, 36]
    video.finish()
    assert (video.status.num_windows, video.status.tail_frames) == (5, 10)


@pytest.mark.parametrize("crop_safe", [True, False])
def test_what_is_not_kept_is_dropped_and_counted(crop_safe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    code = Counting(crop_safe, temporal_factor=1)
    video, frames = opened(chunks(50, [7]), 8, 8)
    verdicts = {start: Verdict(0, UNSCORED, "min_motion" if start % 16 else "") for start in range(0, 50, 8)}
    monkeypatch.setattr(video._curator, "judge", lambda start, _length: verdicts[start])
    assert [w.start_frame for w, _ in encoded_windows(video, frames, code, batch=2)] == [0, 16, 32]
    assert [w.start_frame for w in video.dropped] == [8, 24, 40]
    assert sum(code.calls) == (50 if crop_safe else 24)
    video.finish()
    status = video.status
    assert (status.num_frames, status.num_windows, status.dropped_windows, status.tail_frames) == (
        50,
        3,
        3,
        2,
    )


def test_a_video_without_a_window_is_rejected() -> None:
    video, frames = opened(chunks(7, [7]), 8, 8)
    assert list(video.windows(frames)) == []
    with pytest.raises(Rejected, match="window: 7 frames, a window of LONG needs 8"):
        video.finish()
    assert (video.status.num_frames, video.status.tail_frames) == (7, 7)


@pytest.mark.parametrize(("batch", "calls"), [(1, [1] * 6), (4, [4, 2]), (9, [6])])
def test_windows_of_a_neural_code_are_encoded_together(batch: int, calls: list[int]) -> None:
    code = Counting(crop_safe=False, temporal_factor=4)
    windows = encode(code, chunks(30, [7]), 9, 4, batch)
    assert code.batches == calls
    for start, found in windows:
        np.testing.assert_array_equal(found.ravel(), start + 4 * np.arange(3))


def test_a_crop_safe_code_reads_each_frame_once() -> None:
    code = Counting(crop_safe=True, temporal_factor=1)
    windows = encode(code, chunks(50, [7]), 20, 5)
    assert [start for start, _ in windows] == [0, 5, 10, 15, 20, 25, 30]
    assert sum(code.calls) == 50
    for start, latents in windows:
        np.testing.assert_array_equal(latents.ravel(), np.arange(start, start + 20))


def test_blocks_do_not_depend_on_how_frames_arrive() -> None:
    calls = []
    for sizes in ([50], [1], [7, 3]):
        code = Counting(crop_safe=True, temporal_factor=1)
        encode(code, chunks(50, sizes), 8, 8)
        calls.append(code.calls)
    assert calls == [[16, 16, 16, 2]] * 3


@pytest.mark.parametrize(("length", "latents"), [(9, 3), (5, 2)])
def test_another_code_reads_each_window_from_its_own_first_frame(length: int, latents: int) -> None:
    code = Counting(crop_safe=False, temporal_factor=4)
    windows = encode(code, chunks(30, [7]), length, 4)
    assert code.calls == [length] * len(windows)
    for start, found in windows:
        np.testing.assert_array_equal(found.ravel(), start + 4 * np.arange(latents))
    assert windows[0][1].shape == (latents, 1, 1, 1)
    assert torch.float32 == torch.from_numpy(windows[0][1]).dtype
