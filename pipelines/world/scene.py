"""The bay at dusk: a mean image and one image a factor, so that a frame is mean + factors @ basis.

Values are chosen so that next to no frame of the corpora leaves [0, 1] (the tests count): then a picture
is exactly linear in its factors, which can be read back by least squares.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipelines.world.layout import texture_codes
from pipelines.world.shapes import (
    Array,
    Grid,
    fractal,
    gaussian,
    grid,
    over,
    polygon,
    ramp,
    shrink,
    smoothstep,
    tint,
)
from pipelines.world.skies import skies

HORIZON = 0.56
SUN_X, SUN_Y, SUN_RADIUS = 0.64, 0.447, 0.088
SUN_LIGHT, GLOW_LIGHT = (0.60, 0.58, 0.54), (0.64, 0.55, 0.53)
"""Colour of a sun without hue, and of the air round it."""
SUN_CHROMA = 0.31
"""How far a hue moves both."""
GLOW, GLITTER = 0.72, 0.62
"""How much of the sky the air next to the sun covers; strength of the column of light on the water."""
WAVE_HEIGHT, CREST_HEIGHT = 0.076, 0.064
"""Amplitude of the waves and of the second harmonic that sharpens them."""

SKY = [
    (0.00, (0.24, 0.26, 0.47)),
    (0.18, (0.32, 0.30, 0.54)),
    (0.34, (0.52, 0.36, 0.55)),
    (0.46, (0.71, 0.45, 0.48)),
    (0.56, (0.78, 0.54, 0.41)),
]
SEA = [
    (0.56, (0.56, 0.42, 0.44)),
    (0.64, (0.37, 0.34, 0.47)),
    (0.80, (0.22, 0.28, 0.43)),
    (1.00, (0.15, 0.21, 0.36)),
]


def depth(at: Grid) -> Array:
    """0 at the horizon and above, 1 at the lower edge, [n, n]."""
    return np.clip((at.y - HORIZON) / (1.0 - HORIZON), 0.0, 1.0)


def sea_cover(at: Grid) -> Array:
    """1 on the water, 0 above, [n, n]."""
    return smoothstep(HORIZON - 0.004, HORIZON + 0.004, at.y)


def far_hills(at: Grid) -> Array:
    """Cover of the hazy range along the horizon, [n, n]."""
    ridge = HORIZON - 0.022 - 0.022 * (fractal(6.0 * at.x, 0.0 * at.y + 2.0, seed=41) + 0.4)
    return smoothstep(-0.006, 0.006, at.y - ridge) * (1.0 - sea_cover(at))


def headlands(at: Grid) -> Array:
    """Cover of the dark headlands left and right, [n, n]."""
    left = 0.085 * gaussian(at.x - 0.02, 0.17) + 0.040 * gaussian(at.x - 0.20, 0.10)
    right = 0.075 * gaussian(at.x - 1.02, 0.15) + 0.030 * gaussian(at.x - 0.84, 0.07)
    rough = 0.012 * fractal(22.0 * at.x, 0.0 * at.y + 5.0, seed=43)
    height = left + right + rough * smoothstep(0.004, 0.04, left + right) - 0.006
    return smoothstep(-0.005, 0.005, height - (HORIZON + 0.004 - at.y)) * smoothstep(
        0.012, 0.0, at.y - HORIZON
    )


def lighthouse(at: Grid) -> tuple[Array, Array]:
    """Cover of the tower on the left headland, and of its lamp, [n, n] each."""
    tower = polygon(at, [(0.083, 0.395), (0.101, 0.395), (0.106, 0.50), (0.078, 0.50)], 0.004)
    roof = polygon(at, [(0.092, 0.366), (0.106, 0.384), (0.078, 0.384)], 0.004)
    lamp = gaussian(np.hypot(at.x - 0.092, at.y - 0.390), 0.010)
    return np.maximum(tower, roof), lamp


def boat(at: Grid) -> Array:
    """Cover of the sailing boat, [n, n]."""
    hull = polygon(at, [(0.290, 0.600), (0.400, 0.600), (0.378, 0.625), (0.308, 0.625)], 0.005)
    sail = polygon(at, [(0.349, 0.462), (0.393, 0.588), (0.349, 0.588)], 0.005)
    jib = polygon(at, [(0.341, 0.485), (0.341, 0.588), (0.303, 0.588)], 0.005)
    return np.maximum(hull, np.maximum(sail, jib))


def boat_shadow(at: Grid) -> Array:
    """Cover of the boat's reflection, broken by the waves, [n, n]."""
    below = at.y - 0.628
    sway = 0.345 + 0.012 * np.sin(95.0 * below)
    return (
        gaussian(at.x - sway, 0.042)
        * smoothstep(-0.006, 0.004, below)
        * np.exp(-np.maximum(below, 0.0) / 0.055)
    )


def sun_distance(at: Grid) -> Array:
    """Distance to the middle of the sun, [n, n]."""
    return np.asarray(np.hypot(at.x - SUN_X, at.y - SUN_Y))


def sun_disc(at: Grid) -> Array:
    """Cover of the sun, [n, n]."""
    return smoothstep(SUN_RADIUS + 0.008, SUN_RADIUS - 0.008, sun_distance(at))


def sun_glow(at: Grid) -> Array:
    """Cover of the bright air round the sun, outside the disc and above the water, [n, n]."""
    return GLOW * gaussian(sun_distance(at), 0.155) * (1.0 - sun_disc(at)) * (1.0 - sea_cover(at))


def glitter(at: Grid) -> Array:
    """Broken column of light on the water below the sun, [n, n]."""
    q = depth(at)
    sway = SUN_X + 0.010 * np.sin(31.0 * q + 0.5) * q
    column = gaussian((at.x - sway) / (0.034 + 0.085 * q), 1.0)
    strips = 0.60 + 0.40 * np.cos(12.4 * np.pi * np.sqrt(q + 0.02))
    return (
        GLITTER * column * strips * (0.55 + 0.45 * smoothstep(0.0, 0.2, q)) * (1.0 - 0.75 * q) * sea_cover(at)
    )


def hidden(at: Grid) -> Array:
    """1 where land or boat stands in front, [n, n]."""
    tower, _ = lighthouse(at)
    return np.maximum(np.maximum(headlands(at), boat(at)), tower)


def background(at: Grid) -> Array:
    """Sky, far hills and sea without land, boat or sun, [n, n, 3]."""
    picture = ramp(at.y, SKY) * (1 - sea_cover(at))[..., None] + ramp(at.y, SEA) * sea_cover(at)[..., None]
    return over(picture, 0.55 * far_hills(at), (0.42, 0.33, 0.47))


def light(at: Grid) -> Array:
    """Picture of the level: a warm horizon and a brighter bay, [n, n, 3]."""
    amount = 0.030 + 0.072 * gaussian(at.y - HORIZON, 0.17)
    amount *= (1.0 - 0.55 * gaussian(sun_distance(at), 0.22)) * (1.0 - 0.75 * hidden(at))
    return tint(amount, (1.0, 0.86, 0.72))


def sun(at: Grid) -> tuple[Array, Array]:
    """Half the step from no sun to a sun without hue, and how much a hue shows there: [n, n, 3], [n, n]."""
    disc, glow, water, behind = sun_disc(at), sun_glow(at), glitter(at), background(at)
    step = (np.array(SUN_LIGHT) - behind) * disc[..., None] + (np.array(GLOW_LIGHT) - behind) * glow[
        ..., None
    ]
    step += tint(0.44 * water, (0.94, 0.96, 0.90))
    free = 1.0 - hidden(at)
    return 0.5 * step * free[..., None], (disc + glow + water) * free


def hue_pictures(shape: Array) -> Array:
    """Pictures that, times sqrt(2) (cos h, sin h), add SUN_CHROMA cos(h - 120 channel), [2, n, n, 3]."""
    channels = np.deg2rad([0.0, 120.0, 240.0])
    plane = np.stack([np.cos(channels), np.sin(channels)]) * SUN_CHROMA / np.sqrt(2.0)
    return np.asarray(shape[None, :, :, None] * plane[:, None, None, :])


def waves(at: Grid) -> Array:
    """Cos and sin of the waves and of their second harmonic, [4, n, n, 3].

    Crests bunch towards the horizon and run aslant: the phase is logarithmic in the depth.
    """
    q = depth(at)
    phase = (
        3.8 * np.log1p(3.2 * q) / np.log(4.2) + 0.9 * at.x + 0.10 * np.sin(2 * np.pi * (1.3 * at.x + 0.4 * q))
    )
    strength = smoothstep(0.0, 0.10, q) * (0.25 + 0.75 * q) * (1.0 - hidden(at))
    colour = (1 - q)[..., None] * np.array((1.0, 0.80, 0.70)) + q[..., None] * np.array((0.62, 0.90, 1.0))
    angle = 2.0 * np.pi * phase
    low = [WAVE_HEIGHT * strength * np.cos(angle), WAVE_HEIGHT * strength * np.sin(angle)]
    high = [CREST_HEIGHT * strength * np.cos(2 * angle), CREST_HEIGHT * strength * np.sin(2 * angle)]
    return np.asarray(np.stack(low + high)[..., None] * colour)


@lru_cache(maxsize=4)
def _painted(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [H, W, 3] and basis [13, H, W, 3], read-only."""
    at = grid(size)
    land, (tower, lamp) = headlands(at), lighthouse(at)
    seen_sky = skies(at) * (1.0 - hidden(at))[..., None]
    presence, shape = sun(at)
    picture = background(at) + seen_sky.mean(axis=0) + presence
    picture = over(picture, 0.45 * boat_shadow(at), (0.10, 0.13, 0.25))
    picture = over(picture, land, (0.15, 0.14, 0.25))
    picture = over(picture, tower, (0.17, 0.15, 0.27))
    picture = over(picture, 0.9 * lamp, (0.98, 0.86, 0.60))
    picture = over(picture, boat(at), (0.11, 0.11, 0.20))
    texture = np.tensordot(texture_codes().T, seen_sky - seen_sky.mean(axis=0), axes=1) / 6.0
    basis = np.concatenate([texture, light(at)[None], presence[None], hue_pictures(shape), waves(at)])
    mean_image_ = shrink(picture).astype(np.float32)
    basis_ = np.stack([shrink(image) for image in basis]).astype(np.float32)
    mean_image_.setflags(write=False)
    basis_.setflags(write=False)
    return mean_image_, basis_


def mean_image(size: int) -> NDArray[np.float32]:
    """The picture of all factors 0, float32 [size, size, 3] in [0, 1]."""
    return _painted(size)[0]


def basis_images(size: int) -> NDArray[np.float32]:
    """What one unit of each factor adds, in the order of `layout`, float32 [13, size, size, 3]."""
    return _painted(size)[1]
