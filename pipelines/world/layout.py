"""Where each factor sits in the 13 numbers of a frame, and the values it may take when clean.

texture 0..4, level 5, presence 6, colour 7..8, wave 9..10 (cos, sin), harmonic 11..12 (cos, sin).
"""

import numpy as np
from numpy.typing import NDArray

NUM_FACTORS = 13
TEXTURE = slice(0, 5)
LEVEL = 5
PRESENCE = 6
COLOUR = slice(7, 9)
WAVE = slice(9, 11)
HARMONIC = slice(11, 13)

WAVE_SPEEDS = (0.5, -0.8)
"""Legal phase steps, radians a frame: towards the viewer, and away."""
HUES = (352.0, 36.0, 138.0, 208.0, 280.0)
"""Hues of the sun, degrees."""


def texture_codes() -> NDArray[np.float64]:
    """Six words on a simplex of five numbers: norm sqrt(5), inner products -1, unit variance. [6, 5]."""
    directions = np.stack(
        [np.r_[np.ones(k), -k, np.zeros(5 - k)] / np.sqrt(k * (k + 1.0)) for k in range(1, 6)]
    )
    return np.asarray(np.sqrt(6.0) * directions.T)


def colour_codes() -> NDArray[np.float64]:
    """Five hues as sqrt(2) (cos, sin). [5, 2]."""
    angle = np.deg2rad(HUES)
    return np.asarray(np.sqrt(2.0) * np.stack([np.cos(angle), np.sin(angle)], axis=-1))
