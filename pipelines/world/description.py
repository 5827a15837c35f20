"""What a rendered world is, in the file world.json beside its corpora."""

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.world.captions import COLOURS, SCENE, SPEEDS, TEXTURES
from pipelines.world.config import WorldConfig
from pipelines.world.factors import (
    LONG_CENTRE,
    LONG_RISE,
    LONG_RISE_SPREAD,
    SHORT_LEVEL,
    SHORT_SLOPE,
    SKIES,
    SUN_MIX,
)
from pipelines.world.layout import HUES, NUM_FACTORS, WAVE_SPEEDS
from pipelines.world.schedule import schedule

VERSION = 1
"""Raised when the same settings give other pictures."""
FILE = "world.json"


@dataclass(frozen=True, kw_only=True)
class WorldDescription:
    """Settings, words and constants that make a world what it is."""

    version: int
    """Version of the painter."""
    config: dict[str, Any]
    """The fields of WorldConfig."""
    words: dict[str, Any]
    """What captions are made of, in the order of the labels."""
    constants: dict[str, Any]
    """Values of the factors when clean, and how clips are drawn."""


def describe(config: WorldConfig) -> WorldDescription:
    """The description of the world of this config."""
    words = {"scene": SCENE, "textures": list(TEXTURES), "colours": list(COLOURS), "speeds": list(SPEEDS)}
    constants = {
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
    }
    return WorldDescription(version=VERSION, config=asdict(config), words=words, constants=constants)
