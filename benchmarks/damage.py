"""Graded damage with known truth: what metrics of video are tried on.

A damage takes one video and five strengths, and says what is wrong: nothing else changes. Draws depend on the
damage and the video, not on the strength, so the strengths of a video differ in nothing but strength.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, shift

from pipelines.media.color import Frames
from pipelines.world.factors import (
    COLOUR,
    LEVEL,
    PRESENCE,
    SHORT_LEVEL,
    SHORT_SLOPE,
    TEXTURE,
    colour_codes,
    rule_spans,
    texture_codes,
)

Factors = NDArray[np.float32]
Random = np.random.Generator

PARTS = 8
"""Frames of a window, which has no story of its own."""
SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of videos that are damaged wholly, where the damage itself has no grade."""


@dataclass(frozen=True)
class Damage:
    """One kind of damage in five strengths, from the weakest."""

    unit: str
    """What the strengths are."""
    strengths: tuple[float, ...]
    apply: Callable[[Frames, float, Random], Frames]
    """Video uint8 [F, H, W, 3], strength, draws -> video."""

    def __call__(self, video: Frames, strength: float, *key: object) -> Frames:
        """The damaged video; `key` names the draws."""
        return self.apply(video, strength, draws(*key))


def draws(*key: object) -> Random:
    """The same random numbers for the same key, on every machine."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])


def blurred(video: Frames, sigma: float, _random: Random) -> Frames:
    """Every frame under a Gaussian of `sigma` pixels."""
    return _whole(gaussian_filter(video.astype(np.float32), (0, sigma, sigma, 0), mode="nearest"))


def jittered(video: Frames, sigma: float, random: Random) -> Frames:
    """Every frame moved by its own draw of so many pixels."""
    moves = random.standard_normal((len(video), 2)) * sigma
    return _whole(
        np.stack(
            [
                shift(frame, (*move, 0), np.float32, 1, "nearest")
                for frame, move in zip(video, moves, strict=True)
            ]
        )
    )


def flickering(video: Frames, amount: float, random: Random) -> Frames:
    """Every frame lighter or darker by its own draw."""
    light = random.standard_normal(len(video)) * amount * 255
    return _whole(video + light[:, None, None, None])


def frozen(video: Frames, share: float, _random: Random) -> Frames:
    """The last share of the frames is one still."""
    last = max(1, round(len(video) * (1 - share)))
    return video[np.minimum(np.arange(len(video)), last - 1)]


def looped(video: Frames, share: float, _random: Random) -> Frames:
    """The video is its beginning again and again; the repeats are the last share."""
    period = max(1, round(len(video) * (1 - share)))
    return video[np.arange(len(video)) % period]


def shuffled(video: Frames, parts: float, random: Random) -> Frames:
    """So many parts of equal length in another order, no two that followed each other still do."""
    blocks = np.array_split(np.arange(len(video)), int(parts))
    return video[np.concatenate([blocks[place] for place in _apart(len(blocks), random)])]


def brightening(video: Frames, amount: float, _random: Random) -> Frames:
    """Ever lighter, at the end by `amount`."""
    return _whole(video + np.linspace(0, amount * 255, len(video))[:, None, None, None])


def tinted(video: Frames, amount: float, _random: Random) -> Frames:
    """Ever redder and less blue, at the end by `amount`; the luma stays."""
    growth = np.linspace(0, amount * 255, len(video))[:, None, None, None]
    return _whole(video + growth * np.array([1.0, -0.319, -0.978]))


PIXELS = {
    "blurred": Damage("pixels of 64", (0.4, 0.6, 1.0, 2.0, 4.0), blurred),
    "jittered": Damage("pixels of 64", (0.125, 0.25, 0.5, 1.0, 2.0), jittered),
    "flickering": Damage("of white", (0.01, 0.02, 0.05, 0.1, 0.2), flickering),
    "frozen": Damage("share of the video", (0.1, 0.25, 0.5, 0.75, 1.0), frozen),
    "looped": Damage("share of the video", (0.125, 0.25, 0.5, 0.75, 0.875), looped),
    "shuffled": Damage("parts", (2, 4, 8, 16, 32), shuffled),
    "brightening": Damage("of white", (0.02, 0.05, 0.1, 0.2, 0.4), brightening),
    "tinted": Damage("of white", (0.02, 0.05, 0.1, 0.2, 0.4), tinted),
}
"""Damage of any video."""


def other_video(videos: Sequence[Frames], sources: Sequence[str], index: int, random: Random) -> Frames:
    """From the middle on, a video of another source: another identity."""
    video = videos[index]
    others = [place for place, source in enumerate(sources) if source != sources[index]]
    half = len(video) // 2
    return np.concatenate([video[:half], videos[random.choice(others)][half:]])


def other_windows(videos: Sequence[Frames], sources: Sequence[str], index: int, random: Random) -> Frames:
    """Windows of this source in an order of chance: each is right, there is no story."""
    own = [videos[place] for place, source in enumerate(sources) if source == sources[index]]
    windows = np.concatenate([np.stack(np.split(video, len(video) // PARTS)) for video in own])
    chosen = random.choice(len(windows), len(videos[index]) // PARTS, replace=False)
    return np.concatenate(windows[chosen])


def no_return(factors: Factors, _labels: NDArray[np.int64], _random: Random) -> Factors:
    """The sun that left stays away: the story breaks where it should return."""
    broken = factors.copy()
    _, away, _ = rule_spans(len(factors))
    broken[away.start :, PRESENCE] = -1
    broken[away.start :, COLOUR] = 0
    return broken


def other_identity(factors: Factors, label: NDArray[np.int64], random: Random) -> Factors:
    """From the middle on, another sky and another sun; light, waves and schedule stay."""
    swapped, half = factors.copy(), len(factors) // 2
    sky = (label[0] + random.integers(1, 3)) % 3
    hue = (label[1] + random.integers(1, len(colour_codes()))) % len(colour_codes())
    swapped[half:, TEXTURE] = texture_codes()[sky]
    lit = (factors[half:, PRESENCE] + 1) / 2
    swapped[half:, COLOUR] = lit[:, None] * colour_codes()[hue]
    return swapped


def windows_alone(factors: Factors, label: NDArray[np.int64], random: Random) -> Factors:
    """An order of 0 ... count - 1 in which none is followed by its successor, by trial."""
    made, count = factors.copy(), -(-len(factors) // PARTS)
    slopes = np.repeat(random.uniform(-SHORT_SLOPE, SHORT_SLOPE, count), PARTS)[: len(factors)]
    level = random.uniform(-SHORT_LEVEL, SHORT_LEVEL) + np.cumsum(slopes)
    made[:, LEVEL] = np.clip(level, -SHORT_LEVEL, SHORT_LEVEL)
    changes = np.zeros(len(factors), dtype=int)
    for window in range(count):
        if random.random() < 0.38:  # as often as a SHORT clip shows the sun enter or leave
            changes[min(len(factors) - 1, window * PARTS + random.integers(1, PARTS - 1))] = 1
    lit = (np.cumsum(changes) + (random.random() < 0.68)) % 2  # present at the start as often as in SHORT
    made[:, PRESENCE] = 2.0 * lit - 1
    made[:, COLOUR] = lit[:, None] * colour_codes()[label[1]]
    return made


WORLD = {"no return": no_return, "other identity": other_identity, "windows alone": windows_alone}
"""Damage of the built-in world's factors [F, 13] and label: the rest of the video is as it was."""
CLIPS = {"other identity": other_video, "windows alone": other_windows}
"""The same of any videos, by what other videos show."""


def _apart(count: int, random: Random) -> NDArray[np.int64]:
    """An order of 0 ... count - 1 in which none is followed by its successor, by trial."""
    while True:
        order = random.permutation(count)
        if not (np.diff(order) == 1).any():
            return np.asarray(order)


def _whole(values: NDArray[np.floating]) -> Frames:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
