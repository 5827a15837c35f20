"""Six skies of equal strength that are not mixed up."""

from itertools import combinations

import numpy as np
import pytest

from pipelines.world.shapes import fractal, gaussian, grid, over, ramp, shrink, tint
from pipelines.world.skies import SKY_STRENGTH, fade, skies

AT = grid(64)


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
    shade = fade(AT)[:, 0]
    assert shade[0] == 1.0
    assert shade[-1] == 0.0
    assert (np.diff(shade) <= 0).all()
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
