"""The six skies. Each fades out above the horizon and round the sun, so skies and sun do not mix."""

import numpy as np

from pipelines.world.shapes import Array, Grid, fractal, noise, smoothstep, tint

SKY_STRENGTH = 0.062
"""Root mean square of a sky over the upper part of the picture."""


def fade(at: Grid) -> Array:
    """1 at the top, 0 from a little above the horizon downwards, [n, n]."""
    return smoothstep(0.43, 0.20, at.y)


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

    lit, cloud = cover(0.0) - cover(-0.016), cover(0.0)
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
    bands = np.sin(2.0 * np.pi * 4.3 * along) * (
        0.8 + 0.35 * noise(5.0 * (at.x - at.y), 3.0 * along, seed=33)
    )
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


def skies(at: Grid) -> Array:
    """All six, in the order of the captions' words, at equal strength: [6, n, n, 3]."""
    painted = [
        paint(at) * fade(at)[..., None] for paint in (streaked, puffy, aurora, slanting, starry, rayed)
    ]
    upper = int(0.4 * at.x.shape[0])
    return np.stack([sky * (SKY_STRENGTH / np.sqrt(np.mean(sky[:upper] ** 2))) for sky in painted])
