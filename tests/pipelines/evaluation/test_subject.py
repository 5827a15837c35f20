"""Animals are counted and followed on drawings whose answer is known."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder
from pipelines.evaluation.features.extractors import EXTRACTORS, shrink
from pipelines.evaluation.measure import Measurer
from pipelines.evaluation.subject import COLUMN, animals, ground, ground_of, jump, subject_scores
from pipelines.media.color import luma
from tests.pipelines.evaluation.clips import PixelCode

HEIGHT, WIDTH = 48, 64
FLOOR, WALL, FUR, TAIL = 0.8, 0.3, 0.1, 0.5


def arena():
    """A bright floor with a dark wall below that has two white marks, brighter on its right."""
    light = np.full((HEIGHT, WIDTH), FLOOR) + np.linspace(0, 0.15, WIDTH)
    light[-4:] = WALL
    light[-4:, [10, 30]] = 0.9
    return light


def draw(*places, tail=False, blur=0.0, of=arena):
    """A frame with an animal of 7 x 11 pixels around each place, each with a tail of one pixel's width."""
    light = of()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for row, column in places:
        if tail:
            light[row, column : column + 18] = TAIL
            light[row : row + 14, column + 17] = FUR
        light[((y - row) / 3.5) ** 2 + ((x - column) / 5.5) ** 2 <= 1] = FUR
    return gaussian_filter(light, blur) if blur else light


def seen(frames, under=None):
    light = torch.from_numpy(np.stack(frames)).float()
    under = arena() if under is None else under
    return animals(light.expand(3, *light.shape), under.astype(np.float32))


@pytest.mark.parametrize(
    ("places", "count"),
    [
        ((), 0),
        (((20, 20),), 1),
        (((20, 20), (20, 33)), 2),
        (((10, 10), (30, 50), (38, 12)), 3),
        (((0, 0),), 1),
    ],
)
@pytest.mark.parametrize("blur", [0.0, 1.1])
def test_animals_are_counted(places, count, blur):
    assert seen([draw(*places, blur=blur)])[0, 0] == count


def test_a_tail_is_no_animal_and_parts_of_one_are_two():
    whole, torn = draw((20, 20), tail=True), draw((20, 20), tail=True)
    torn[:, 19:22] = arena()[:, 19:22]
    assert seen([whole, torn])[:, 0].tolist() == [1, 2]


def test_specks_and_what_is_always_there_are_none():
    speck = draw()
    speck[10:12, 10:14] = FUR
    np.testing.assert_array_equal(seen([speck, draw()])[:, 0], 0)
    assert np.isnan(seen([draw()])[0, 1:3]).all()


def test_the_largest_animal_is_followed():
    frames = [draw((20, 20)), draw((20, 24)), draw((23, 28))]
    frames[2][2:6, 2:6] = FUR
    found = seen(frames)
    np.testing.assert_allclose(found[:, 1:3], [(20, 20), (20, 24), (23, 28)], atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(np.diff(found[:, 1:3], axis=0), axis=1), [4, 5], atol=0.01)


def test_the_ground_is_found_under_animals_and_mirrors():
    """Of plain and mirrored pictures the darker ground, so that neither's own ground is an animal."""
    rng = np.random.default_rng(4)
    plain = [draw(rng.integers((6, 8), (40, 56))) for _ in range(60)]
    under = ground(np.stack(plain + [frame[:, ::-1] for frame in plain]).astype(np.float32))
    np.testing.assert_allclose(under, np.minimum(arena(), arena()[:, ::-1]), atol=0.16)
    for frame in (draw(), draw()[:, ::-1]):
        assert seen([frame], under)[0, 0] == 0
        assert seen([gaussian_filter(frame, 1.1)], under)[0, 0] == 0


def table(*counts, step=1.0, edges=0.1):
    """A video of measurements whose animal moves by `step`."""
    frames = np.array([(n, 5.0, 5 + i * step, edges) for i, n in enumerate(counts)], dtype=np.float32)
    frames[frames[:, 0] == 0, 1:3] = np.nan
    return frames[None]


def test_scores_are_shares_of_frames_and_ratios_to_short():
    scores = subject_scores(table(1, 1, 0, 1, 2, step=3.0, edges=0.05), table(1, 1, 1, 0, 1, step=2.0))
    assert scores["subject.one"] == pytest.approx(0.6)
    assert scores["subject.none"] == pytest.approx(0.2)
    assert scores["subject.more"] == pytest.approx(0.2)
    assert scores["subject.one_in_short"] == pytest.approx(0.8)
    assert scores["subject.jump"] == pytest.approx(1.5)
    assert scores["subject.sharpness"] == pytest.approx(0.5)


def test_a_jump_is_what_all_but_a_twentieth_of_the_steps_stay_below():
    places = np.cumsum(np.where(np.arange(101) % 10 == 9, 20.0, 1.0))
    videos = np.stack([np.ones(101), places, np.zeros(101), np.ones(101)], axis=1)[None].astype(np.float32)
    assert jump(videos) == pytest.approx(20)
    videos[0, :, 1] = np.arange(101)
    assert jump(videos) == pytest.approx(1)
    assert jump(table(1, 0, 1)) is None
    for videos, real in ((table(1, 0, 1), table(1, 1)), (table(1, 1), table(1, 1, step=0.0))):
        assert subject_scores(videos, real)["subject.jump"] is None


def test_edges_fall_with_blur():
    sharp, soft = seen([draw((20, 20)), draw((20, 20), blur=1.1)])[:, 3]
    expected = arena()
    assert soft < 0.8 * sharp
    assert seen([expected])[0, 3] == pytest.approx(
        np.sqrt(np.square(np.diff(expected, axis=0)).mean() + np.square(np.diff(expected, axis=1)).mean()),
        rel=1e-4,
    )


def test_the_ground_of_a_dataset_is_that_of_its_short_clips(settings):
    code = dataset_autoencoder(settings.dataset)
    short = ShardDataset(settings.dataset, "short")
    frames = code.decode(short.read(range(len(short))).latents).flatten(0, 1)
    light = luma(shrink(frames).movedim(0, -1)).numpy()
    np.testing.assert_allclose(ground_of(settings.dataset, code), ground(light), atol=1e-6)


def test_videos_are_looked_at_where_their_pixels_are():
    frames = np.stack([draw((20, 20 + i)) for i in range(8)])
    pixels = (frames[None, ..., None].repeat(3, axis=-1) * 255).round().astype(np.uint8)
    latents = PixelCode().encode(torch.from_numpy(pixels))
    measurer = Measurer(8, 1, 8.0, None, PixelCode(), arena().astype(np.float32))
    found = measurer.measure(latents, tuple(EXTRACTORS), temporal=0).columns[COLUMN]
    assert found.shape == (1, 8, 4)
    np.testing.assert_allclose(found[0, :, 2], 20 + np.arange(8), atol=0.1)
    assert COLUMN not in measurer.measure(latents, (), temporal=1).columns
