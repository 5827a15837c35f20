"""Soft shapes the scene is painted with. Coordinates run over [0, 1], x to the right and y down."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SUPERSAMPLING = 3


class Grid(NamedTuple):
    """Sample points of a picture: x and y, each [n, n]."""

    x: Array
    y: Array


def grid(size: int) -> Grid:
    """Centres of `SUPERSAMPLING`^2 sub-pixels of every pixel of a size x size picture."""
    steps = (np.arange(size * SUPERSAMPLING) + 0.5) / (size * SUPERSAMPLING)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return Grid(x, y)


def shrink(picture: Array) -> Array:
    """Average the sub-pixels of [n, n, ...] into [n / SUPERSAMPLING, n / SUPERSAMPLING, ...]."""
    size = picture.shape[0] // SUPERSAMPLING
    shape = (size, SUPERSAMPLING, size, SUPERSAMPLING, *picture.shape[2:])
    return np.asarray(picture.reshape(shape).mean(axis=(1, 3)))


def smoothstep(low: float, high: float, value: Array) -> Array:
    """3u^2 - 2u^3 with u = (value - low) / (high - low) held in [0, 1]; falls when high < low."""
    u = np.clip((value - low) / (high - low), 0.0, 1.0)
    return np.asarray(u * u * (3.0 - 2.0 * u))


def gaussian(value: Array, width: float) -> Array:
    """exp(-(value / width)^2)."""
    return np.asarray(np.exp(-((value / width) ** 2)))


def ramp(value: Array, stops: list[tuple[float, tuple[float, float, float]]]) -> Array:
    """Colour [n, n, 3] interpolated between (place, rgb) stops by smooth monotone steps."""
    places = np.array([place for place, _ in stops])
    colours = np.array([colour for _, colour in stops])
    return np.stack([np.interp(value, places, colours[:, channel]) for channel in range(3)], axis=-1)


def tint(amount: Array, colour: tuple[float, float, float]) -> Array:
    """Amount [n, n] times an rgb colour: [n, n, 3]."""
    return np.asarray(amount[..., None] * np.array(colour))


def noise(x: Array, y: Array, seed: int) -> Array:
    """Smooth value noise in [-1, 1] with one bump a unit of x and y, periodic in 64 units."""
    lattice = np.random.Generator(np.random.PCG64(seed)).uniform(-1.0, 1.0, (64, 64))
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = smoothstep(0.0, 1.0, x - column), smoothstep(0.0, 1.0, y - row)

    def corner(down: int, right: int) -> Array:
        return np.asarray(lattice[(row + down) % 64, (column + right) % 64])

    top = corner(0, 0) * (1 - u) + corner(0, 1) * u
    bottom = corner(1, 0) * (1 - u) + corner(1, 1) * u
    return np.asarray(top * (1 - v) + bottom * v)


def fractal(x: Array, y: Array, seed: int, octaves: int = 3) -> Array:
    """Sum of `octaves` noises, each turned, twice as fine and half as strong, about [-1, 1]."""
    total = np.zeros_like(x)
    for octave in range(octaves):
        scale, turn = 2.0**octave, 0.5 + 1.1 * octave
        u, v = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        total += noise(u * scale + 7.3 * octave, v * scale + 3.1 * octave, seed + octave) / scale
    return total / (2.0 - 2.0 ** (1 - octaves))


def polygon(at: Grid, corners: list[tuple[float, float]], edge: float) -> Array:
    """Cover in [0, 1] of a convex polygon with corners in clockwise order (y down), soft over `edge`."""
    inside = np.full_like(at.x, np.inf)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        inside = np.minimum(inside, ((x1 - x0) * (at.y - y0) - (y1 - y0) * (at.x - x0)) / length)
    return smoothstep(-edge, edge, inside)


def over(picture: Array, cover: Array, colour: tuple[float, float, float]) -> Array:
    """Lay a colour over a picture [n, n, 3] where cover [n, n] is 1."""
    return np.asarray(picture + cover[..., None] * (np.array(colour) - picture))
