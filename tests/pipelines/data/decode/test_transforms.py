"""Frames keep their order and their time; a resize keeps the picture's proportions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.decode.transforms import fit_box, nearest, pick, resample, resize


def clip(times: list[float]) -> list[tuple[float, np.ndarray]]:
    return [(t, np.full((1, 1, 3), i, np.uint8)) for i, t in enumerate(times)]


def shown(frames: object) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in frames]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        ((1080, 1920), (480, 832)),
        ((1920, 1080), (832, 480)),
        ((500, 500), (640, 640)),
        ((600, 800), (480, 832)),
        ((600, 750), (640, 640)),
        ((100, 1000), (480, 832)),
        ((3, 2), (832, 480)),
    ],
)
def test_the_size_of_the_nearest_aspect_ratio_is_taken(frame: tuple[int, int], size: tuple[int, int]) -> None:
    assert nearest(*frame, [(480, 832), (832, 480), (640, 640)]) == size


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_turned_video_gets_the_turned_size(height: int, width: int) -> None:
    sizes = [(48, 80), (80, 48), (64, 64)]
    assert nearest(width, height, sizes) == nearest(height, width, sizes)[::-1]
    assert nearest(height, width, sizes[:1]) == sizes[0]


@pytest.mark.parametrize("rate", [1.0, 8.0, 23.976, 30.0])
def test_without_a_rate_every_frame_passes(rate: float) -> None:
    assert shown(resample(clip([i / rate for i in range(7)]), rate, None, [])) == list(range(7))


@pytest.mark.parametrize(
    ("count", "rate", "fps", "expected"),
    [
        (8, 8.0, 8.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 8.0, 4.0, [0, 2, 4, 6]),
        (4, 4.0, 8.0, [0, 0, 1, 1, 2, 2, 3, 3]),
        (10, 10.0, 4.0, [0, 2, 5, 7]),
        (1, 1.0, 4.0, [0, 0, 0, 0]),
    ],
)
def test_an_even_clip_keeps_its_length_in_seconds(
    count: int, rate: float, fps: float, expected: list[int]
) -> None:
    assert shown(resample(clip([i / rate for i in range(count)]), rate, fps, [])) == expected


def test_a_gap_is_filled_with_the_nearest_frame() -> None:
    frames = clip([0.0, 0.125, 0.25, 1.0, 1.125])
    assert shown(resample(frames, 8.0, 8.0, [])) == [0, 1, 2, 2, 2, 2, 3, 3, 3, 4]


@given(
    st.lists(st.floats(0.001, 2.0), min_size=1, max_size=40),
    st.floats(0.5, 60.0),
)
def test_each_tick_shows_the_frame_nearest_in_time(gaps: list[float], fps: float) -> None:
    times = list(np.cumsum([0.0, *gaps]))
    rate = len(gaps) / times[-1]
    out = list(resample(clip(times), rate, fps, []))
    for tick, frame in enumerate(out):
        distances = np.abs(np.asarray(times) - tick / fps)
        assert distances[int(frame[0, 0, 0])] <= distances.min() + 1e-9
    assert shown(out) == sorted(shown(out))


def test_the_last_frame_stays_as_long_as_it_is_shown() -> None:
    frames = clip([0.0, 0.125, 0.25])
    assert shown(resample(frames, 8.0, 8.0, [], last=0.5)) == [0, 1, 2, 2, 2, 2]
    assert shown(resample(frames, 8.0, 8.0, [], last=0.01)) == [0, 1, 2]
    assert shown(resample(frames, 8.0, None, [], last=0.5)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("fps", "expected", "takes"),
    [
        (None, [0, 1, 2, 3, 4, 5], [2, 5]),
        (8.0, [0, 1, 2, 2, 3, 3, 4, 5], [2, 7]),
        (16.0, [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5], [4, 14]),
    ],
)
def test_a_pause_is_left_out_and_starts_another_take(
    fps: float | None, expected: list[int], takes: list[int]
) -> None:
    """Each take is sampled from its own first frame on, and the time within it is kept."""
    found: list[int] = []
    frames = clip([0.0, 0.125, 70.01, 70.41, 70.51, 3000.0])
    assert shown(resample(frames, 8.0, fps, found, pause=60.0)) == expected
    assert found == takes


def test_a_take_is_announced_before_its_first_frame() -> None:
    takes: list[int] = []
    frames = resample(clip([0.0, 1.0, 100.0]), 1.0, 1.0, takes, pause=60.0)
    assert [(int(frame[0, 0, 0]), list(takes)) for frame in frames] == [(0, []), (1, []), (2, [2])]


@given(st.lists(st.floats(0.01, 300.0), min_size=1, max_size=20), st.floats(0.5, 30.0))
def test_takes_are_those_of_videos_of_their_own(gaps: list[float], fps: float) -> None:
    times = list(np.cumsum([0.0, *gaps]))
    found: list[int] = []
    whole = shown(resample(clip(times), 8.0, fps, found, pause=60.0))
    starts = [i + 1 for i, gap in enumerate(np.diff(times)) if gap > 60.0]
    bounds = [*found, len(whole)]
    assert len(found) == len(starts)
    for first, stop, begin, end in zip(starts, [*starts[1:], len(times)], bounds, bounds[1:], strict=False):
        own = clip([time - times[first] for time in times[first:stop]])
        alone = shown(resample(own, 8.0, fps, []))
        assert whole[begin:end] == [first + number for number in alone]


def test_nothing_comes_of_nothing() -> None:
    assert list(resample(iter(()), 8.0, 4.0, [])) == []


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300), st.integers(1, 300))
def test_the_box_is_centred_inside_the_frame_in_the_outputs_proportions(
    height: int, width: int, out_height: int, out_width: int
) -> None:
    left, top, right, bottom = fit_box(height, width, out_height, out_width)
    assert -1e-6 <= left <= right <= width + 1e-6
    assert -1e-6 <= top <= bottom <= height + 1e-6
    assert (right - left) * out_height == pytest.approx((bottom - top) * out_width)
    assert left + right == pytest.approx(width)
    assert top + bottom == pytest.approx(height)
    assert left == pytest.approx(0, abs=1e-6) or top == pytest.approx(0, abs=1e-6)


def test_an_exact_fit_is_untouched() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    assert resize(frame, 12, 20) is frame


def test_a_resize_averages_instead_of_skipping() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, 8, 8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small.astype(int) - 128).max() < 20


def test_the_sides_of_a_wide_frame_are_cut() -> None:
    frame = np.zeros((40, 120, 3), np.uint8)
    frame[:, :40], frame[:, 40:80], frame[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    square = resize(frame, 20, 20)
    assert (square[:, 3:-3].mean(axis=(0, 1)) > (-1, 250, -1)).all()
    assert square[:, 3:-3, 0].max() < 5


def test_picks_are_spread_and_reading_stops_after_the_last() -> None:
    read = []

    def frames():
        for timed in clip([float(i) for i in range(100)]):
            read.append(timed[0])
            yield timed

    assert shown(pick(frames(), 100, 4, horizon=1000)) == [12, 37, 62, 87]
    assert len(read) == 88


@pytest.mark.parametrize(
    ("total", "picks", "horizon", "expected"),
    [
        (100, 2, 10, [2, 7]),
        (3, 5, 100, [0, 1, 2]),
        (1, 1, 1, [0]),
    ],
)
def test_picks_stay_inside_the_video_and_the_horizon(
    total: int, picks: int, horizon: int, expected: list[int]
) -> None:
    assert shown(pick(clip([float(i) for i in range(total)]), total, picks, horizon)) == expected


def test_a_video_shorter_than_it_claims_gives_fewer_picks() -> None:
    assert shown(pick(clip([0.0, 1.0, 2.0]), 100, 10, horizon=100)) == []
