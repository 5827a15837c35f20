"""The story of LONG fits every length, and no window shows it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from pipelines.world.schedule import CLIP, MINUTE, draw_absence, schedule, spans

LENGTHS = st.integers(12, 2000)


def draws(num_frames: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Frames of leaving and returning."""
    return draw_absence(num_frames, count, np.random.Generator(np.random.PCG64(1)))


@given(LENGTHS)
def test_spans_follow_each_other_inside_the_clip(num_frames: int) -> None:
    first, away, last = spans(num_frames)
    assert 0 == first.start < first.stop <= away.start < away.stop <= last.start < last.stop == num_frames


@given(LENGTHS)
def test_every_draw_leaves_the_spans_of_the_rule_alone(num_frames: int) -> None:
    first, away, last = spans(num_frames)
    leave, back = draws(num_frames, 100)
    assert (leave >= first.stop).all()
    assert (leave <= away.start).all()
    assert (back >= away.stop - 1).all()
    assert (back < last.start).all()


@pytest.mark.parametrize("num_frames", [32, 240, 480])
def test_the_gap_is_longer_than_a_window_of_eight(num_frames: int) -> None:
    leave, back = draws(num_frames)
    assert (back - leave - 1).min() >= 10
    assert leave.min() > 7


def test_leaving_and_returning_are_uniform_and_independent_at_32_frames() -> None:
    leave, back = draws(32, 9000)
    pairs, counts = np.unique(np.stack([leave, back]), axis=1, return_counts=True)
    assert pairs.shape == (2, 9)
    assert np.abs(counts / 9000 - 1 / 9).max() < 0.015


def test_longer_clips_have_the_proportions_of_the_minute() -> None:
    assert schedule(12) is schedule(32) is CLIP
    assert schedule(33) is schedule(240) is MINUTE
    assert (CLIP.smooth, MINUTE.smooth) == (1, 5)
    first, away, last = spans(240)
    assert (first.stop, away.start, away.stop, last.start) == (52, 84, 125, 168)


def test_the_same_share_of_a_longer_clip_is_away() -> None:
    shares = []
    for num_frames in (240, 480, 960):
        leave, back = draws(num_frames, 4000)
        shares.append(((back - leave) / num_frames).mean())
    assert np.ptp(shares) < 0.003
    assert shares[0] == pytest.approx(0.335, abs=0.003)


@pytest.mark.parametrize("num_frames", [0, 1, 8, 11])
def test_too_short_is_an_error_that_names_the_setting(num_frames: int) -> None:
    with pytest.raises(ConfigError, match=r"world\.long_frames"):
        spans(num_frames)
