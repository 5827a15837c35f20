"""The pictures: bounded, smooth, told apart, and clean where they must not touch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long, draw_short
from pipelines.world.layout import (
    COLOUR,
    HARMONIC,
    LEVEL,
    PRESENCE,
    TEXTURE,
    WAVE,
    colour_codes,
    texture_codes,
)
from pipelines.world.scene import HORIZON, SUN_RADIUS, SUN_X, SUN_Y, basis_images, mean_image
from pipelines.world.shapes import SUPERSAMPLING, grid, noise, polygon, shrink, smoothstep
from pipelines.world.skies import skies


def values(factors: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """Pixels in [0, 1] before rounding, [F, size, size, 3]."""
    return mean_image(size) + np.tensordot(factors, basis_images(size), axes=1)


def places(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the pixels."""
    y, x = np.mgrid[:size, :size]
    return (x + 0.5) / size, (y + 0.5) / size


@pytest.mark.parametrize("size", [48, 64, 128])
def test_images_have_the_size_asked_for_and_cannot_be_changed(size: int) -> None:
    assert mean_image(size).shape == (size, size, 3)
    assert basis_images(size).shape == (13, size, size, 3)
    assert mean_image(size).dtype == basis_images(size).dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        mean_image(size)[0] = 0


@pytest.mark.parametrize(("corpus", "share"), [("short", 1e-5), ("long", 3e-5)])
def test_next_to_no_value_is_clipped(corpus: str, share: float) -> None:
    config = WorldConfig(size=64)
    clips = draw_short(config, 300, 3) if corpus == "short" else draw_long(config, 60, 3)
    pixels = values(clips.factors.reshape(-1, 13)[::2], 64)
    assert np.mean((pixels < 0) | (pixels > 1)) < share


def test_sizes_show_the_same_picture() -> None:
    coarse = basis_images(128).reshape(13, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(coarse - basis_images(64)).max() < 0.06
    assert np.sqrt(np.mean((coarse - basis_images(64)) ** 2)) < 0.002


def test_basis_can_be_inverted_and_no_image_is_faint() -> None:
    flat = basis_images(128).reshape(13, -1).astype(np.float64)
    assert np.linalg.cond(flat @ flat.T) < 30
    assert np.sqrt((flat**2).mean(axis=1)).min() > 0.01


def test_skies_end_above_the_horizon_and_beside_the_sun() -> None:
    x, y = places(128)
    textures = np.abs(basis_images(128)[TEXTURE]).max(axis=(0, 3))
    assert textures[y > 0.44].max() == 0
    assert textures[np.hypot(x - SUN_X, y - SUN_Y) < 0.8 * SUN_RADIUS].max() < 0.03
    assert textures[y < 0.2].mean() > 0.02


def test_waves_stay_on_the_water_and_the_sun_off_the_upper_sky() -> None:
    _, y = places(128)
    water = np.abs(basis_images(128)[np.r_[WAVE, HARMONIC]]).max(axis=(0, 3))
    assert water[y < HORIZON].max() < 1e-4
    assert np.abs(basis_images(128)[PRESENCE])[y < 0.03].max() < 0.005


def test_a_word_shows_its_sky_alone_and_a_weak_word_all_six() -> None:
    painted = np.stack([shrink(sky) for sky in skies(grid(64))])
    plain = values(np.zeros((1, 13)), 64)[0]
    for index, code in enumerate(texture_codes()):
        factors = np.zeros((1, 13))
        factors[0, TEXTURE] = code
        shown = values(factors, 64)[0] - plain
        assert np.abs(shown - (painted[index] - painted.mean(axis=0))).max() < 0.12
        assert np.argmax([(shown * (sky - painted.mean(axis=0))).sum() for sky in painted]) == index


def test_no_ghost_of_an_absent_sun() -> None:
    x, y = places(128)
    distance = np.hypot(x - SUN_X, y - SUN_Y)
    inside = np.abs(distance - 0.80 * SUN_RADIUS) < 0.01
    outside = np.abs(distance - 1.20 * SUN_RADIUS) < 0.01
    for level in (-1.5, 0.0, 1.5):
        factors = np.zeros((1, 13))
        factors[0, LEVEL], factors[0, PRESENCE] = level, -1.0
        picture, present = (
            values(factors, 128)[0],
            values(factors * np.where(np.arange(13) == PRESENCE, -1, 1), 128)[0],
        )
        left = inside & (np.abs(y - SUN_Y) < 0.02), outside & (np.abs(y - SUN_Y) < 0.02)
        ghost = np.abs(picture[left[0]].mean(axis=0) - picture[left[1]].mean(axis=0)).max()
        sun = np.abs(present[left[0]].mean(axis=0) - present[left[1]].mean(axis=0)).max()
        assert ghost < 0.015
        assert sun > ghost


def test_a_hue_is_the_colour_its_word_says() -> None:
    x, y = places(128)
    disc = np.hypot(x - SUN_X, y - SUN_Y) < 0.7 * SUN_RADIUS
    rgb = []
    for code in colour_codes():
        factors = np.zeros((1, 13))
        factors[0, PRESENCE], factors[0, COLOUR] = 1.0, code
        rgb.append(values(factors, 128)[0][disc].mean(axis=0))
    crimson, amber, emerald, azure, violet = rgb
    assert crimson.argmax() == 0
    assert emerald.argmax() == 1
    assert azure.argmax() == violet.argmax() == 2
    assert amber[0] > amber[1] > amber[2] + 0.2
    assert violet[0] > violet[1] + 0.2


def test_level_brightens_and_phase_moves_crests_towards_the_viewer() -> None:
    assert basis_images(64)[LEVEL].min() >= 0
    column = np.zeros(13)
    crests = []
    for phase in (0.0, 0.5):
        column[WAVE] = np.sqrt(2) * np.array([np.cos(phase), np.sin(phase)])
        picture = np.tensordot(column, basis_images(128), axes=1)[:, 10].mean(axis=-1)
        crests.append(picture[86:])
    shifts = [np.dot(crests[0][8:-8], np.roll(crests[1], -shift)[8:-8]) for shift in range(-4, 5)]
    assert int(np.argmax(shifts)) - 4 > 0


def test_simplex_words_are_unit_variance_and_equally_far_apart() -> None:
    codes = texture_codes()
    assert np.allclose(codes @ codes.T, 6 * np.eye(6) - 1)
    assert np.allclose(codes.T @ codes / 6, np.eye(5))
    assert np.allclose(np.linalg.norm(colour_codes(), axis=1), np.sqrt(2))


def test_shapes() -> None:
    at = grid(16)
    assert at.x.shape == (16 * SUPERSAMPLING, 16 * SUPERSAMPLING)
    assert np.allclose(shrink(at.x)[0], (np.arange(16) + 0.5) / 16)
    assert np.allclose(smoothstep(0.0, 1.0, np.array([-1.0, 0.0, 0.5, 1.0, 2.0])), [0, 0, 0.5, 1, 1])
    assert np.allclose(smoothstep(1.0, 0.0, np.array([0.0, 1.0])), [1, 0])
    square = polygon(at, [(0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75)], 0.001)
    assert abs(square.mean() - 0.25) < 0.005
    bumps = noise(8 * at.x, 8 * at.y, seed=1)
    assert np.abs(bumps).max() <= 1
    assert np.allclose(bumps, noise(8 * at.x + 64, 8 * at.y, seed=1), atol=1e-9)
    assert not np.array_equal(bumps, noise(8 * at.x, 8 * at.y, seed=2))
