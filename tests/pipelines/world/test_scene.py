"""The pictures: bounded, smooth, told apart, and clean where they must not touch."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.world.config import WorldConfig
from pipelines.world.factors import (
    COLOUR,
    HARMONIC,
    LEVEL,
    PRESENCE,
    TEXTURE,
    WAVE,
    colour_codes,
    draw_long,
    draw_short,
    texture_codes,
)
from pipelines.world.scene import (
    HORIZON,
    SKY_STRENGTH,
    SUN_RADIUS,
    SUN_X,
    SUN_Y,
    SUPERSAMPLING,
    fractal,
    gaussian,
    grid,
    noise,
    over,
    paint,
    polygon,
    ramp,
    shrink,
    skies,
    smoothstep,
    tint,
)

AT = grid(64)


def values(factors: NDArray[np.floating], size: int) -> NDArray[np.floating]:
    """Pixels in [0, 1] before rounding, [F, size, size, 3]."""
    return paint(size).mean + np.tensordot(factors, paint(size).basis, axes=1)


def places(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the pixels."""
    y, x = np.mgrid[:size, :size]
    return (x + 0.5) / size, (y + 0.5) / size


@pytest.mark.parametrize("size", [48, 64, 128])
def test_images_have_the_size_asked_for_and_cannot_be_changed(size: int) -> None:
    assert paint(size).mean.shape == (size, size, 3)
    assert paint(size).basis.shape == (13, size, size, 3)
    assert paint(size).mean.dtype == paint(size).basis.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        paint(size).mean[0] = 0


@pytest.mark.parametrize(("corpus", "share"), [("short", 1e-5), ("long", 3e-5)])
def test_next_to_no_value_is_clipped(corpus: str, share: float) -> None:
    config = WorldConfig(size=64)
    clips = draw_short(config, 300, 3) if corpus == "short" else draw_long(config, 60, 3)
    pixels = values(clips.factors.reshape(-1, 13)[::2], 64)
    assert np.mean((pixels < 0) | (pixels > 1)) < share


def test_sizes_show_the_same_picture() -> None:
    coarse = paint(128).basis.reshape(13, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(coarse - paint(64).basis).max() < 0.06
    assert np.sqrt(np.mean((coarse - paint(64).basis) ** 2)) < 0.002


def test_basis_can_be_inverted_and_no_image_is_faint() -> None:
    flat = paint(128).basis.reshape(13, -1).astype(np.float64)
    assert np.linalg.cond(flat @ flat.T) < 30
    assert np.sqrt((flat**2).mean(axis=1)).min() > 0.01


def test_skies_end_above_the_horizon_and_beside_the_sun() -> None:
    x, y = places(128)
    textures = np.abs(paint(128).basis[TEXTURE]).max(axis=(0, 3))
    assert textures[y > 0.44].max() == 0
    assert textures[np.hypot(x - SUN_X, y - SUN_Y) < 0.8 * SUN_RADIUS].max() < 0.03
    assert textures[y < 0.2].mean() > 0.02


def test_waves_stay_on_the_water_and_the_sun_off_the_upper_sky() -> None:
    _, y = places(128)
    water = np.abs(paint(128).basis[np.r_[WAVE, HARMONIC]]).max(axis=(0, 3))
    assert water[y < HORIZON].max() < 1e-4
    assert np.abs(paint(128).basis[PRESENCE])[y < 0.03].max() < 0.005


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
    assert paint(64).basis[LEVEL].min() >= 0
    column = np.zeros(13)
    crests = []
    for phase in (0.0, 0.5):
        column[WAVE] = np.sqrt(2) * np.array([np.cos(phase), np.sin(phase)])
        picture = np.tensordot(column, paint(128).basis, axes=1)[:, 10].mean(axis=-1)
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


@pytest.fixture(scope="module")
def painted() -> np.ndarray:
    """The six, [6, 64, 64, 3]."""
    return np.stack([shrink(sky) for sky in skies(AT)])


def test_skies_are_equally_strong(painted: np.ndarray) -> None:
    strength = np.sqrt((skies(AT)[:, : int(0.4 * AT.x.shape[0])] ** 2).mean(axis=(1, 2, 3)))
    assert strength == pytest.approx([SKY_STRENGTH] * 6)
    assert np.isfinite(painted).all()


def test_no_sky_is_like_another(painted: np.ndarray) -> None:
    centred = (painted - painted.mean(axis=0)).reshape(6, -1)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    for one, other in combinations(range(6), 2):
        assert abs(centred[one] @ centred[other]) < 0.5


def test_skies_are_painted_the_same_every_time() -> None:
    assert np.array_equal(skies(AT), skies(grid(64)))


def test_skies_fade_to_nothing(painted: np.ndarray) -> None:
    assert np.abs(painted[:, 29:]).max() == 0.0


def test_fractal_noise_is_bounded_and_rougher_with_octaves() -> None:
    smooth, rough = fractal(6 * AT.x, 6 * AT.y, 3, octaves=1), fractal(6 * AT.x, 6 * AT.y, 3, octaves=4)
    assert max(np.abs(smooth).max(), np.abs(rough).max()) <= 1.0
    bend = [np.abs(np.diff(field, n=2, axis=1)).mean() / field.std() for field in (smooth, rough)]
    assert bend[1] > 1.5 * bend[0]


def test_colours_are_laid_and_blended() -> None:
    stops = [(0.0, (0.0, 0.2, 0.4)), (1.0, (1.0, 0.4, 0.2))]
    picture = ramp(np.array([[0.0, 0.5, 1.0]]), stops)
    assert picture[0] == pytest.approx(np.array([[0, 0.2, 0.4], [0.5, 0.3, 0.3], [1, 0.4, 0.2]]))
    covered = over(picture, np.array([[0.0, 0.5, 1.0]]), (1.0, 1.0, 1.0))
    assert covered[0, 0] == pytest.approx(picture[0, 0])
    assert covered[0, 1] == pytest.approx((picture[0, 1] + 1) / 2)
    assert covered[0, 2] == pytest.approx(1.0)
    assert tint(np.array([[2.0]]), (0.1, 0.2, 0.3))[0, 0] == pytest.approx([0.2, 0.4, 0.6])
    assert gaussian(np.array([0.0, 0.3]), 0.3) == pytest.approx([1.0, np.exp(-1)])
