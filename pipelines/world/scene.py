"""The bay at dusk: a mean image and one image per factor, so that a frame is mean + factors @ basis.

Values are chosen so that next to no frame of the corpora leaves [0, 1] (the tests count): then a picture
is exactly linear in its factors, which can be read back by least squares. Coordinates run over [0, 1], x to
the right and y down; pictures are painted at SUPERSAMPLING times their size, n samples on a side.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.world.factors import texture_codes

Array = NDArray[np.float64]
RGB = tuple[float, float, float]

SUPERSAMPLING = 3
HORIZON = 0.56
SUN_X, SUN_Y, SUN_RADIUS = 0.64, 0.447, 0.088
SUN_LIGHT, GLOW_LIGHT = (0.60, 0.58, 0.54), (0.64, 0.55, 0.53)
"""Colour of a sun without hue, and of the air around it."""
SUN_CHROMA = 0.31
"""How far a hue shifts both."""
GLOW, GLITTER = 0.72, 0.62
"""How much of the sky the air next to the sun covers; strength of the column of light on the water."""
WAVE_HEIGHT, CREST_HEIGHT = 0.076, 0.064
"""Amplitude of the waves and of the second harmonic that sharpens them."""
SKY_STRENGTH = 0.062
"""Root mean square of a sky's texture over the upper part of the picture."""

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


class Grid(NamedTuple):
    """Sample points of a picture: x and y, each [n, n]."""

    x: Array
    y: Array


class Scene(NamedTuple):
    """The images of a frame size, float32 and read-only."""

    mean: NDArray[np.float32]
    """The picture where all factors are 0, [H, W, 3] in [0, 1]."""
    basis: NDArray[np.float32]
    """What one unit of each factor adds, [13, H, W, 3]."""


@lru_cache(maxsize=4)
def paint(size: int) -> Scene:
    """The scene at size x size pixels."""
    at = grid(size)
    tower, lamp = lighthouse(at)
    seen_sky = skies(at) * (1.0 - hidden(at))[..., None]
    presence, hue_cover = sun(at)
    picture = background(at) + seen_sky.mean(axis=0) + presence
    picture = over(picture, 0.45 * boat_shadow(at), (0.10, 0.13, 0.25))
    picture = over(picture, headlands(at), (0.15, 0.14, 0.25))
    picture = over(picture, tower, (0.17, 0.15, 0.27))
    picture = over(picture, 0.9 * lamp, (0.98, 0.86, 0.60))
    picture = over(picture, boat(at), (0.11, 0.11, 0.20))

    texture = np.tensordot(texture_codes().T, seen_sky - seen_sky.mean(axis=0), axes=1) / 6.0
    # times sqrt(2) (cos h, sin h), the two add SUN_CHROMA cos(h - 120 channel)
    channels = np.deg2rad([0.0, 120.0, 240.0])
    chroma = np.stack([np.cos(channels), np.sin(channels)]) * SUN_CHROMA / np.sqrt(2.0)
    hue = hue_cover[None, :, :, None] * chroma[:, None, None, :]
    basis = np.concatenate([texture, light(at)[None], presence[None], hue, waves(at)])

    scene = Scene(
        shrink(picture).astype(np.float32), np.stack([shrink(image) for image in basis]).astype(np.float32)
    )
    scene.mean.setflags(write=False)
    scene.basis.setflags(write=False)
    return scene


def background(at: Grid) -> Array:
    """Sky, far hills and sea without land, boat or sun, [n, n, 3]."""
    water = sea_cover(at)
    picture = ramp(at.y, SKY) * (1 - water)[..., None] + ramp(at.y, SEA) * water[..., None]
    ridge = HORIZON - 0.022 - 0.022 * (fractal(6.0 * at.x, 0.0 * at.y + 2.0, seed=41) + 0.4)
    far_hills = smoothstep(-0.006, 0.006, at.y - ridge) * (1.0 - water)
    return over(picture, 0.55 * far_hills, (0.42, 0.33, 0.47))


def sea_cover(at: Grid) -> Array:
    """1 on the water, 0 above, [n, n]."""
    return smoothstep(HORIZON - 0.004, HORIZON + 0.004, at.y)


def depth(at: Grid) -> Array:
    """0 at the horizon and above, 1 at the lower edge, [n, n]."""
    return np.clip((at.y - HORIZON) / (1.0 - HORIZON), 0.0, 1.0)


def headlands(at: Grid) -> Array:
    """Cover of the dark headlands left and right, [n, n]."""
    left = 0.085 * gaussian(at.x - 0.02, 0.17) + 0.040 * gaussian(at.x - 0.20, 0.10)
    right = 0.075 * gaussian(at.x - 1.02, 0.15) + 0.030 * gaussian(at.x - 0.84, 0.07)
    rough = 0.012 * fractal(22.0 * at.x, 0.0 * at.y + 5.0, seed=43)
    height = left + right + rough * smoothstep(0.004, 0.04, left + right) - 0.006
    shore = smoothstep(0.012, 0.0, at.y - HORIZON)
    return smoothstep(-0.005, 0.005, height - (HORIZON + 0.004 - at.y)) * shore


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
    column = gaussian(at.x - (0.345 + 0.012 * np.sin(95.0 * below)), 0.042)
    return column * smoothstep(-0.006, 0.004, below) * np.exp(-np.maximum(below, 0.0) / 0.055)


def hidden(at: Grid) -> Array:
    """1 where land or boat stands in front, [n, n]."""
    return np.maximum(np.maximum(headlands(at), boat(at)), lighthouse(at)[0])


def light(at: Grid) -> Array:
    """Picture of the level: a warm horizon and a brighter bay, [n, n, 3]."""
    amount = 0.030 + 0.072 * gaussian(at.y - HORIZON, 0.17)
    amount *= (1.0 - 0.55 * gaussian(sun_distance(at), 0.22)) * (1.0 - 0.75 * hidden(at))
    return tint(amount, (1.0, 0.86, 0.72))


def sun_distance(at: Grid) -> Array:
    """Distance to the middle of the sun, [n, n]."""
    return np.asarray(np.hypot(at.x - SUN_X, at.y - SUN_Y))


def sun(at: Grid) -> tuple[Array, Array]:
    """Half the step from no sun to a sun without hue, and how much a hue shows there: [n, n, 3], [n, n]."""
    disc = smoothstep(SUN_RADIUS + 0.008, SUN_RADIUS - 0.008, sun_distance(at))
    glow = GLOW * gaussian(sun_distance(at), 0.155) * (1.0 - disc) * (1.0 - sea_cover(at))
    # a broken column of light on the water
    q = depth(at)
    sway = SUN_X + 0.010 * np.sin(31.0 * q + 0.5) * q
    column = gaussian((at.x - sway) / (0.034 + 0.085 * q), 1.0)
    strips = 0.60 + 0.40 * np.cos(12.4 * np.pi * np.sqrt(q + 0.02))
    fading = 0.55 + 0.45 * smoothstep(0.0, 0.2, q)
    glitter = GLITTER * column * strips * fading * (1.0 - 0.75 * q) * sea_cover(at)

    behind, free = background(at), 1.0 - hidden(at)
    step = (np.array(SUN_LIGHT) - behind) * disc[..., None]
    step = step + (np.array(GLOW_LIGHT) - behind) * glow[..., None]
    step += tint(0.44 * glitter, (0.94, 0.96, 0.90))
    return 0.5 * step * free[..., None], (disc + glow + glitter) * free


def waves(at: Grid) -> Array:
    """Cos and sin of the waves and of their second harmonic, [4, n, n, 3].

    Crests bunch towards the horizon and run aslant: the phase is logarithmic in the depth.
    """
    q = depth(at)
    bend = 0.10 * np.sin(2 * np.pi * (1.3 * at.x + 0.4 * q))
    phase = 3.8 * np.log1p(3.2 * q) / np.log(4.2) + 0.9 * at.x + bend
    strength = smoothstep(0.0, 0.10, q) * (0.25 + 0.75 * q) * (1.0 - hidden(at))
    colour = (1 - q)[..., None] * np.array((1.0, 0.80, 0.70)) + q[..., None] * np.array((0.62, 0.90, 1.0))
    angle = 2.0 * np.pi * phase
    low = [WAVE_HEIGHT * strength * np.cos(angle), WAVE_HEIGHT * strength * np.sin(angle)]
    high = [CREST_HEIGHT * strength * np.cos(2 * angle), CREST_HEIGHT * strength * np.sin(2 * angle)]
    return np.asarray(np.stack(low + high)[..., None] * colour)


def skies(at: Grid) -> Array:
    """The six skies, in the order of the captions' words, at equal strength: [6, n, n, 3].

    Each fades out above the horizon, so that skies and sun do not mix.
    """
    fade = smoothstep(0.43, 0.20, at.y)[..., None]
    painted = [sky(at) * fade for sky in (streaked, puffy, aurora, slanting, starry, rayed)]
    upper = int(0.4 * at.x.shape[0])
    return np.stack([sky * (SKY_STRENGTH / np.sqrt(np.mean(sky[:upper] ** 2))) for sky in painted])


def streaked(at: Grid) -> Array:
    """Long cirrus, rose where it catches the light."""
    bend = at.y + 0.035 * np.sin(5.0 * at.x + 0.6) + 0.03 * at.x
    cloud = fractal(2.2 * at.x + 4.0 * bend, 17.0 * bend, seed=11)
    return tint(np.tanh(2.2 * cloud), (1.0, 0.74, 0.70))


def puffy(at: Grid) -> Array:
    """Small cumulus, smaller towards the horizon, lit from below."""
    away = 1.0 / (0.62 - at.y.clip(max=0.5))

    def cover(drop: float) -> Array:
        field = fractal(3.4 * away * (at.x - 0.5) + 9.0, 4.4 * away - 20.0 * drop, seed=67, octaves=2)
        return smoothstep(-0.02, 0.40, field)

    cloud = cover(0.0)
    lit = cloud - cover(-0.016)
    return tint(cloud - 0.3, (0.80, 0.66, 0.76)) + tint(0.55 * lit, (1.0, 0.60, 0.40))


def aurora(at: Grid) -> Array:
    """Two hanging curtains of light, green at the foot and violet above."""
    picture = np.zeros((*at.x.shape, 3))
    for base, sway, start, weight in ((0.285, 0.030, 0.9, 1.0), (0.150, 0.026, 2.6, 0.75)):
        foot = base + sway * np.sin(7.5 * at.x + start) + 0.016 * np.sin(19.0 * at.x + 2.0 * start)
        height = np.maximum(foot - at.y, 0.0)
        folds = 0.55 + 0.45 * fractal(20.0 * at.x + 9.0 * foot, 0.0 * at.y + start, seed=21, octaves=2)
        light = weight * folds * smoothstep(-0.030, 0.020, foot - at.y)
        picture += tint(light * np.exp(-height / 0.080), (0.02, 1.0, 0.52))
        picture += tint(light * np.exp(-height / 0.160), (0.20, 0.06, 0.24))
    return picture - tint(0.14 + 0.0 * at.x, (1.0, 0.7, 0.6))


def slanting(at: Grid) -> Array:
    """Broad diagonal bands of cloud."""
    along = at.x + 1.25 * at.y + 0.05 * noise(3.0 * at.x, 3.0 * at.y, seed=31)
    ragged = 0.8 + 0.35 * noise(5.0 * (at.x - at.y), 3.0 * along, seed=33)
    bands = np.sin(2.0 * np.pi * 4.3 * along) * ragged
    return tint(np.tanh(1.4 * bands), (0.95, 0.66, 0.98))


def starry(at: Grid) -> Array:
    """Stars of several sizes on a darker sky."""
    draw = np.random.Generator(np.random.PCG64(8))
    light = np.zeros_like(at.x)
    for index in range(52):
        x, y = (index * 0.6180339 + draw.uniform(-0.02, 0.02)) % 1.0, 0.34 * draw.uniform() ** 0.9 + 0.015
        width, weight = (0.0135, 0.85) if index % 6 == 0 else (0.0085, 0.80)
        light = np.maximum(light, weight * np.exp(-((at.x - x) ** 2 + (at.y - y) ** 2) / width**2))
    return tint(light, (0.90, 0.94, 0.97)) - tint(0.10 + 0 * light, (0.8, 0.8, 0.8))


def rayed(at: Grid) -> Array:
    """A fan of light from below the sun."""
    angle = np.arctan2(at.y - 0.54, at.x - 0.64)
    fan = np.sin(11.0 * angle + 0.8 * np.sin(3.0 * angle)) + 0.35 * np.sin(23.0 * angle + 1.0)
    return tint(np.tanh(1.5 * fan), (1.0, 0.82, 0.52))


def grid(size: int) -> Grid:
    """Centres of SUPERSAMPLING^2 sub-pixels of every pixel of a size x size picture."""
    steps = (np.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return Grid(x, y)


def shrink(picture: Array) -> Array:
    """Averages the sub-pixels of [n, n, ...] into [n / SUPERSAMPLING, n / SUPERSAMPLING, ...]."""
    size = picture.shape[0] // SUPERSAMPLING
    shape = (size, SUPERSAMPLING, size, SUPERSAMPLING, *picture.shape[2:])
    return np.asarray(picture.reshape(shape).mean(axis=(1, 3)))


def smoothstep(low: float, high: float, value: Array) -> Array:
    """3u^2 - 2u^3 with u = (value - low) / (high - low) clamped to [0, 1]; falls when high < low."""
    u = np.clip((value - low) / (high - low), 0.0, 1.0)
    return np.asarray(u * u * (3.0 - 2.0 * u))


def gaussian(value: Array, width: float) -> Array:
    """exp(-(value / width)^2)."""
    return np.asarray(np.exp(-((value / width) ** 2)))


def ramp(value: Array, stops: list[tuple[float, RGB]]) -> Array:
    """Colour [n, n, 3] interpolated linearly between (place, rgb) stops."""
    places = np.array([place for place, _ in stops])
    colours = np.array([colour for _, colour in stops])
    return np.stack([np.interp(value, places, colours[:, channel]) for channel in range(3)], axis=-1)


def tint(amount: Array, colour: RGB) -> Array:
    """Amount [n, n] times an rgb colour: [n, n, 3]."""
    return np.asarray(amount[..., None] * np.array(colour))


def over(picture: Array, cover: Array, colour: RGB) -> Array:
    """Lays a colour over a picture [n, n, 3] where cover [n, n] is 1."""
    return np.asarray(picture + cover[..., None] * (np.array(colour) - picture))


def polygon(at: Grid, corners: list[tuple[float, float]], edge: float) -> Array:
    """Cover in [0, 1] of a convex polygon with corners in clockwise order (y down), soft over `edge`."""
    inside = np.full_like(at.x, np.inf)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        inside = np.minimum(inside, ((x1 - x0) * (at.y - y0) - (y1 - y0) * (at.x - x0)) / length)
    return smoothstep(-edge, edge, inside)


def noise(x: Array, y: Array, seed: int) -> Array:
    """Smooth value noise in [-1, 1] with one bump per unit of x and y, periodic in 64 units."""
    lattice = np.random.Generator(np.random.PCG64(seed)).uniform(-1.0, 1.0, (64, 64))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = smoothstep(0.0, 1.0, x - column), smoothstep(0.0, 1.0, y - row)
    left, right, up, down = column % 64, (column + 1) % 64, row % 64, (row + 1) % 64
    top = lattice[up, left] * (1 - u) + lattice[up, right] * u
    bottom = lattice[down, left] * (1 - u) + lattice[down, right] * u
    return np.asarray(top * (1 - v) + bottom * v)


def fractal(x: Array, y: Array, seed: int, octaves: int = 3) -> Array:
    """Sum of `octaves` noises, each turned, twice as fine and half as strong, in about [-1, 1]."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        scale, turn = 2.0**octave, 0.5 + 1.1 * octave
        u, v = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        total += noise(u * scale + 7.3 * octave, v * scale + 3.1 * octave, seed + octave) / scale
    return total / (2.0 - 2.0 ** (1 - octaves))
