"""Clips of the built-in world as factors: 13 numbers per frame, before anything is painted.

SHORT is sharp and shows every sky, and the sun present, absent, entering or leaving. LONG shows three
skies, is softer and noisier, and keeps a rule that no window shows: the sun leaves and returns in the same
colour, and the light rises from the first frame to the last.
"""

import math
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from pipelines.world.captions import COLOURS, SCENE, SPEEDS, TEXTURES, caption
from pipelines.world.config import WorldConfig

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Grade = Literal["low", "clean"]
Textures = Literal["seen", "unseen", "all"]

NUM_FACTORS = 13
TEXTURE = slice(0, 5)
LEVEL = 5
PRESENCE = 6
COLOUR = slice(7, 9)
WAVE = slice(9, 11)
HARMONIC = slice(11, 13)
"""Places of the factors; wave and harmonic are (cos, sin) of the waves' phase and of twice that."""

WAVE_SPEEDS = (0.5, -0.8)
"""Phase steps in radians per frame: towards the viewer, and away."""
HUES = (352.0, 36.0, 138.0, 208.0, 280.0)
"""Hues of the sun in degrees."""
SKIES: dict[Textures, tuple[int, ...]] = {"seen": (0, 1, 2), "unseen": (3, 4, 5), "all": (0, 1, 2, 3, 4, 5)}
"""Skies of LONG, skies that only SHORT has, and both."""
SUN_MIX = {"present": 0.42, "absent": 0.20, "entering": 0.19, "leaving": 0.19}
"""Shares of the SHORT clips."""
SHORT_LEVEL, SHORT_SLOPE = 1.5, 0.11
"""Bounds (+-) of SHORT's light: in the middle of a clip, and its change per frame."""
LONG_RISE, LONG_RISE_SPREAD, LONG_CENTRE = 2.425, 0.08, 0.15
"""LONG's light: last frame minus first, that rise's relative variation (+-), the middle of a clip (+-)."""
VERSION = 1
"""Raised when the same settings give other pictures."""
SHORTEST_LONG = 12
"""Fewest frames in which the sun can leave and return."""


def texture_codes() -> Floats:
    """The six skies as a simplex in five numbers: norm sqrt(5), inner products -1, unit variance. [6, 5]."""
    directions = np.stack(
        [np.r_[np.ones(k), -k, np.zeros(5 - k)] / np.sqrt(k * (k + 1.0)) for k in range(1, 6)]
    )
    return np.asarray(np.sqrt(6.0) * directions.T)


def colour_codes() -> Floats:
    """The five hues as sqrt(2) (cos, sin). [5, 2]."""
    angle = np.deg2rad(HUES)
    return np.asarray(np.sqrt(2.0) * np.stack([np.cos(angle), np.sin(angle)], axis=-1))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the sun of a LONG clip leaves and returns, as shares of the clip's length."""

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
    """Frames of the running median over presence in the rule (1 is none)."""


CLIP = Schedule(
    leave=(8 / 32, 10 / 32),
    back=(21 / 32, 23 / 32),
    gap=(11 / 32, 15 / 32),
    present_until=7 / 32,
    absent=(12 / 32, 20 / 32),
    present_from=25 / 32,
    smooth=1,
)
"""Clips of up to 32 frames."""
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
    """The schedule of LONG clips of this length.

    Raises:
        ConfigError: too short for the sun to leave and return.
    """
    if num_frames < SHORTEST_LONG:
        raise ConfigError(
            f"a LONG clip of {num_frames} frames is too short for the sun to leave and return",
            f"Set world.long_frames to {SHORTEST_LONG} or more",
        )
    return CLIP if num_frames <= 32 else MINUTE


def rule_spans(num_frames: int) -> tuple[slice, slice, slice]:
    """Frames in which the rule wants a sun, none, and one again."""
    shares = schedule(num_frames)
    first = slice(0, math.floor(shares.present_until * num_frames))
    absent = slice(math.ceil(shares.absent[0] * num_frames), math.ceil(shares.absent[1] * num_frames))
    return first, absent, slice(math.ceil(shares.present_from * num_frames), num_frames)


def draw_absence(num_frames: int, count: int, rng: np.random.Generator) -> tuple[Labels, Labels]:
    """Frames of leaving and of returning, uniform over what the schedule allows, [count] each."""
    shares = schedule(num_frames)
    (leave_first, leave_last), (back_first, back_last), (gap_first, gap_last) = (
        (round(first * num_frames), round(last * num_frames))
        for first, last in (shares.leave, shares.back, shares.gap)
    )
    leave = rng.integers(leave_first, leave_last + 1, count)
    low, high = np.maximum(back_first, leave + gap_first), np.minimum(back_last, leave + gap_last)
    return leave, rng.integers(low, high + 1)


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips as factors, with what their captions say."""

    factors: NDArray[np.float32]
    """[N, F, 13]."""
    captions: list[str]
    """N captions."""
    labels: Labels
    """Indices of texture, colour and speed, [N, 3]."""


def all_labels(textures: Textures) -> Labels:
    """Every caption over these skies once, [captions, 3]."""
    return np.array(list(product(SKIES[textures], range(len(COLOURS)), range(len(SPEEDS)))), dtype=np.int64)


def draw_short(config: WorldConfig, count: int, seed: int, labels: Labels | None = None) -> Clips:
    """Clips of the SHORT corpus. Labels [count, 3] fix the captions; else they cover all of them evenly.

    Raises:
        ConfigError: clips under 4 frames, or labels that are not count rows.
    """
    num_frames = config.short_frames
    if num_frames < 4:
        raise ConfigError(
            f"a SHORT clip of {num_frames} frames is too short for the sun to enter or leave",
            "Set world.short_frames to 4 or more",
        )
    rng = _stream(seed, 0)
    labels = _labels(labels, count, "all", rng)
    centre = rng.uniform(-SHORT_LEVEL, SHORT_LEVEL, count)
    slope = rng.uniform(-SHORT_SLOPE, SHORT_SLOPE, count)
    level = centre[:, None] + slope[:, None] * (np.arange(num_frames) - (num_frames - 1) / 2.0)

    kind = rng.choice(len(SUN_MIX), count, p=list(SUN_MIX.values()))
    change = rng.integers(1, num_frames - 1, count)
    entering = 0.5 + 0.5 * np.sign(np.arange(num_frames) - change[:, None])
    suns = np.stack([np.ones_like(entering), np.zeros_like(entering), entering, 1.0 - entering])
    return _clips(labels, level, suns[kind, np.arange(count)], rng)


def draw_long(
    config: WorldConfig,
    count: int,
    seed: int,
    grade: Grade = "low",
    textures: Textures = "seen",
    labels: Labels | None = None,
) -> Clips:
    """Clips of the LONG corpus. A seed gives the same clips in both grades: `clean` is the truth of `low`.

    Args:
        grade: `low` has the weak texture and crests and the noise of `config`; `clean` has none of it.
        textures: skies of the captions when labels are not given.
        labels: [count, 3], fixes the captions; else they cover all of them evenly.

    Raises:
        ConfigError: clips too short for the sun to leave and return, or labels that are not count rows.
    """
    rng = _stream(seed, 1)
    labels = _labels(labels, count, textures, rng)
    rise = LONG_RISE * (1.0 + rng.uniform(-LONG_RISE_SPREAD, LONG_RISE_SPREAD, count))
    centre = rng.uniform(-LONG_CENTRE, LONG_CENTRE, count)
    level = centre[:, None] + rise[:, None] * np.linspace(-0.5, 0.5, config.long_frames)

    leave, back = draw_absence(config.long_frames, count, rng)
    frame = np.arange(config.long_frames)
    lit = 0.5 - 0.5 * np.sign(frame - leave[:, None]) + 0.5 + 0.5 * np.sign(frame - back[:, None])
    clips = _clips(labels, level, lit, rng)
    if grade == "low":
        factors = clips.factors
        factors[..., TEXTURE] *= config.long_texture
        factors[..., HARMONIC] *= config.long_harmonic
        factors += config.long_noise * _stream(seed, 2).standard_normal(factors.shape, dtype=np.float32)
    return clips


def describe(config: WorldConfig) -> dict[str, Any]:
    """What makes a world what it is, for world.json beside its corpora: settings, words and constants."""
    return {
        "version": VERSION,
        "config": asdict(config),
        "words": {
            "scene": SCENE,
            "textures": list(TEXTURES),
            "colours": list(COLOURS),
            "speeds": list(SPEEDS),
        },
        "constants": {
            "factors": NUM_FACTORS,
            "wave_speeds_rad_a_frame": list(WAVE_SPEEDS),
            "hues_degrees": list(HUES),
            "textures_seen": list(SKIES["seen"]),
            "textures_unseen": list(SKIES["unseen"]),
            "sun_mix": SUN_MIX,
            "short_level": SHORT_LEVEL,
            "short_slope_a_frame": SHORT_SLOPE,
            "long_rise": LONG_RISE,
            "long_rise_spread": LONG_RISE_SPREAD,
            "long_centre": LONG_CENTRE,
            "long_schedule": asdict(schedule(config.long_frames)),
        },
    }


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose,))))


def _labels(labels: Labels | None, count: int, textures: Textures, rng: np.random.Generator) -> Labels:
    """The given labels, checked, or every caption equally often in random order."""
    if labels is None:
        every = all_labels(textures)
        return np.asarray(rng.permutation(np.resize(rng.permutation(every), (count, 3))))
    labels = np.asarray(labels, dtype=np.int64)
    if labels.shape != (count, 3):
        raise ConfigError(f"labels of shape {labels.shape} for {count} clips", "Give one row per clip")
    return labels


def _clips(labels: Labels, level: Floats, lit: Floats, rng: np.random.Generator) -> Clips:
    """Clean clips of labels [N, 3], light [N, F] and sun [N, F] (0, 1, or 0.5 in the frame of a change)."""
    count, num_frames = level.shape
    start = rng.uniform(0.0, 2.0 * np.pi, (count, 1))
    phase = start + np.array(WAVE_SPEEDS)[labels[:, 2]][:, None] * np.arange(num_frames)
    factors = np.empty((count, num_frames, NUM_FACTORS))
    factors[..., TEXTURE] = texture_codes()[labels[:, 0]][:, None]
    factors[..., LEVEL] = level
    factors[..., PRESENCE] = 2.0 * lit - 1.0
    factors[..., COLOUR] = colour_codes()[labels[:, 1]][:, None] * lit[..., None]
    factors[..., WAVE] = np.sqrt(2.0) * np.stack([np.cos(phase), np.sin(phase)], axis=-1)
    factors[..., HARMONIC] = np.sqrt(2.0) * np.stack([np.cos(2.0 * phase), np.sin(2.0 * phase)], axis=-1)
    return Clips(factors.astype(np.float32), [caption(*map(int, row)) for row in labels], labels)
