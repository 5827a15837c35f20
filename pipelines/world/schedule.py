"""When the sun leaves and returns, and the frames in which the rule looks for it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError

SHORTEST_LONG = 12
"""Fewest frames in which the sun can leave and return."""
LONGEST_CLIP = 32
"""Most frames of clips with the schedule `CLIP`."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Places in a clip, as shares of its length."""

    leave: tuple[float, float]
    """Earliest and latest frame in which the sun is half gone."""
    back: tuple[float, float]
    """Earliest and latest frame in which it is half back."""
    gap: tuple[float, float]
    """Shortest and longest time from one to the other."""
    present_until: float
    """The rule wants a sun in all frames before this one,"""
    absent: tuple[float, float]
    """none from the first to before the second of these,"""
    present_from: float
    """and one from here to the end."""
    smooth: int
    """Frames of the median of presence in the rule (1 is none)."""


CLIP = Schedule(
    leave=(8 / 32, 10 / 32),
    back=(21 / 32, 23 / 32),
    gap=(11 / 32, 15 / 32),
    present_until=7 / 32,
    absent=(12 / 32, 20 / 32),
    present_from=25 / 32,
    smooth=1,
)
"""Clips up to 32 frames."""
MINUTE = Schedule(
    leave=(0.25, 0.30),
    back=(0.56, 0.66),
    gap=(0.31, 0.36),
    present_until=0.22,
    absent=(0.35, 0.52),
    present_from=0.70,
    smooth=5,
)
"""Longer clips."""


def schedule(num_frames: int) -> Schedule:
    """The schedule of clips of this length.

    Raises:
        ConfigError: too short for the sun to leave and return.
    """
    if num_frames < SHORTEST_LONG:
        raise ConfigError(
            f"a LONG clip of {num_frames} frames is too short for the sun to leave and return",
            f"Set world.long_frames to {SHORTEST_LONG} or more",
        )
    return CLIP if num_frames <= LONGEST_CLIP else MINUTE


def draw_absence(
    num_frames: int, count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frames of leaving and of returning, uniform over what the schedule allows: [count] each."""
    plan = schedule(num_frames)
    first, last = _frames(plan.leave, num_frames)
    leave = rng.integers(first, last + 1, count)
    (back_first, back_last), (gap_first, gap_last) = (
        _frames(plan.back, num_frames),
        _frames(plan.gap, num_frames),
    )
    low, high = np.maximum(back_first, leave + gap_first), np.minimum(back_last, leave + gap_last)
    return leave, rng.integers(low, high + 1)


def spans(num_frames: int) -> tuple[slice, slice, slice]:
    """Frames in which the rule wants a sun, none, and one again."""
    plan = schedule(num_frames)
    first = slice(0, math.floor(plan.present_until * num_frames))
    absent = slice(math.ceil(plan.absent[0] * num_frames), math.ceil(plan.absent[1] * num_frames))
    return first, absent, slice(math.ceil(plan.present_from * num_frames), num_frames)


def _frames(shares: tuple[float, float], num_frames: int) -> tuple[int, int]:
    """Two shares of a clip as frames."""
    return round(shares[0] * num_frames), round(shares[1] * num_frames)
