"""Clips of the built-in world as factors: what is drawn, before anything is painted.

SHORT is sharp and shows every sky, and the sun present, absent, entering or leaving. LONG shows three
skies, is softer and noisier, and keeps a rule no window shows: the sun leaves and returns in the same
colour, and the light rises from the first frame to the last.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from pipelines.world.captions import COLOURS, SPEEDS, caption
from pipelines.world.config import WorldConfig
from pipelines.world.layout import (
    COLOUR,
    HARMONIC,
    LEVEL,
    NUM_FACTORS,
    PRESENCE,
    TEXTURE,
    WAVE,
    WAVE_SPEEDS,
    colour_codes,
    texture_codes,
)
from pipelines.world.schedule import draw_absence

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Grade = Literal["low", "clean"]
Textures = Literal["seen", "unseen", "all"]

SKIES: dict[Textures, tuple[int, ...]] = {"seen": (0, 1, 2), "unseen": (3, 4, 5), "all": (0, 1, 2, 3, 4, 5)}
"""Skies of LONG, skies only SHORT has, and both."""
SUN_MIX = {"present": 0.42, "absent": 0.20, "entering": 0.19, "leaving": 0.19}
"""Shares of the SHORT clips."""
SHORT_LEVEL, SHORT_SLOPE = 1.5, 0.11
"""Light of SHORT: middle of a clip within +-, change a frame within +-."""
LONG_RISE, LONG_RISE_SPREAD, LONG_CENTRE = 2.425, 0.08, 0.15
"""Light of LONG: last frame minus first, its relative spread +-, and the middle of a clip within +-."""


@dataclass(frozen=True, eq=False)
class Clips:
    """Clips as factors, with what their captions say."""

    factors: NDArray[np.float32]
    """[N, F, 13], in the order of `layout`."""
    captions: list[str]
    """N captions."""
    labels: Labels
    """[N, 3]: indices of texture, colour and speed."""


def all_labels(textures: Textures) -> Labels:
    """Every caption over these skies once, [captions, 3]."""
    return np.array(list(product(SKIES[textures], range(len(COLOURS)), range(len(SPEEDS)))), dtype=np.int64)


def draw_short(config: WorldConfig, count: int, seed: int, labels: Labels | None = None) -> Clips:
    """Clips of the SHORT corpus. Labels [count, 3] fix the captions; else they cover all of them evenly.

    Raises:
        ConfigError: clips under 4 frames, or labels that are not count rows.
    """
    if config.short_frames < 4:
        raise ConfigError(
            f"a SHORT clip of {config.short_frames} frames is too short for the sun to enter or leave",
            "Set world.short_frames to 4 or more",
        )
    rng = _stream(seed, 0)
    labels = _labels(labels, count, "all", rng)
    frames = np.arange(config.short_frames) - (config.short_frames - 1) / 2.0
    centre, slope = (
        rng.uniform(-SHORT_LEVEL, SHORT_LEVEL, count),
        rng.uniform(-SHORT_SLOPE, SHORT_SLOPE, count),
    )
    lit = _short_sun(config.short_frames, count, rng)
    return _clips(labels, centre[:, None] + slope[:, None] * frames, lit, rng)


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
    place = np.linspace(-0.5, 0.5, config.long_frames)
    rise = LONG_RISE * (1.0 + rng.uniform(-LONG_RISE_SPREAD, LONG_RISE_SPREAD, count))
    level = rng.uniform(-LONG_CENTRE, LONG_CENTRE, count)[:, None] + rise[:, None] * place
    clips = _clips(labels, level, _long_sun(config.long_frames, count, rng), rng)
    return clips if grade == "clean" else _degrade(clips, config, _stream(seed, 2))


def _stream(seed: int, purpose: int) -> np.random.Generator:
    """The generator of a seed and a purpose."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose,))))


def _labels(labels: Labels | None, count: int, textures: Textures, rng: np.random.Generator) -> Labels:
    """The given labels, checked, or every caption equally often in random order."""
    if labels is None:
        every = all_labels(textures)
        return np.asarray(rng.permutation(np.resize(rng.permutation(every), (count, 3))))
    labels = np.asarray(labels, dtype=np.int64)
    if labels.shape != (count, 3):
        raise ConfigError(
            f"{count} clips were asked for with labels of shape {labels.shape}", "Give one row a clip"
        )
    return labels


def _short_sun(num_frames: int, count: int, rng: np.random.Generator) -> Floats:
    """How much of the sun is there, 0, 1 or 0.5 in the frame of change, [count, F]."""
    kind = rng.choice(len(SUN_MIX), count, p=list(SUN_MIX.values()))
    change = rng.integers(1, num_frames - 1, count)
    entering = 0.5 + 0.5 * np.sign(np.arange(num_frames) - change[:, None])
    kinds = np.stack([np.ones_like(entering), np.zeros_like(entering), entering, 1.0 - entering])
    return np.asarray(kinds[kind, np.arange(count)])


def _long_sun(num_frames: int, count: int, rng: np.random.Generator) -> Floats:
    """The same for LONG: there, away, there again."""
    leave, back = draw_absence(num_frames, count, rng)
    frame = np.arange(num_frames)
    leaving = 0.5 - 0.5 * np.sign(frame - leave[:, None])
    return np.asarray(leaving + 0.5 + 0.5 * np.sign(frame - back[:, None]))


def _clips(labels: Labels, level: Floats, lit: Floats, rng: np.random.Generator) -> Clips:
    """Clean clips of these labels, light [N, F] and sun [N, F]; the waves start anywhere."""
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


def _degrade(clips: Clips, config: WorldConfig, rng: np.random.Generator) -> Clips:
    """Weak texture, weak crests, noise on every factor."""
    factors = clips.factors.copy()
    factors[..., TEXTURE] *= config.long_texture
    factors[..., HARMONIC] *= config.long_harmonic
    factors += config.long_noise * rng.standard_normal(factors.shape, dtype=np.float32)
    return Clips(factors, clips.captions, clips.labels)
