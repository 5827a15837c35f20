"""Pixel distances against a reference: floors, draws, sizes and diversity."""

import numpy as np
import pytest

from pipelines.distances import Distance, Moments, kernel_distance, standardise
from pipelines.evaluation.features.extractors import pixel_extractors
from pipelines.evaluation.measure import Measured
from pipelines.evaluation.pixels import KERNEL_ROWS, PixelReference

NAMES = [extractor.name for extractor in pixel_extractors()]


def videos(seed, count=60, windows=4, shift=0.0, scale=1.0, only=NAMES):
    random = np.random.default_rng(seed)
    columns = {}
    for extractor in pixel_extractors():
        table = random.standard_normal((count, windows, extractor.dim)) * scale + shift
        columns[extractor.name] = table if extractor.name in only else np.full_like(table, np.nan)
    return Measured(("",) * count, columns)


@pytest.fixture(scope="module")
def reference():
    return PixelReference(videos(0, 120, scale=3.0, shift=5.0), videos(1, scale=3.0, shift=5.0))


def test_distances_are_of_features_standardised_by_the_reference(reference):
    real, made = videos(0, 120, scale=3.0, shift=5.0), videos(2, shift=4.0)
    found = reference.compare([made])
    for name in NAMES:
        x, y = made.windows(name), real.windows(name)
        frechet = Moments.of(standardise(x, y)).distance(Moments.of(standardise(y, y)))
        assert found[f"fvd.{name}"].value == pytest.approx(frechet, rel=1e-8)
        kernel = kernel_distance(standardise(x, y), standardise(y, y))
        assert found[f"kvd.{name}"].value == pytest.approx(kernel, rel=1e-8)


def test_every_distance_carries_n_reference_floor_and_identity(reference):
    found = reference.compare([videos(2)])
    assert set(found) == {f"{kind}.{name}" for kind in ("fvd", "kvd") for name in NAMES}
    for metric, distance in found.items():
        assert (distance.n, distance.reference) == (240, 480)
        assert distance.floor == reference.floors[metric].value
        assert distance.extractor.startswith(metric.split(".", 1)[1])
    assert found["fvd.rand3d-diff"].dim == 64


def test_a_second_real_draw_is_at_the_floor_and_others_above_it(reference):
    real = reference.compare([videos(3, scale=3.0, shift=5.0)])
    moved = reference.compare([videos(3, scale=3.0, shift=7.0)])
    for name in NAMES:
        floor = reference.floors[f"fvd.{name}"].value
        assert real[f"fvd.{name}"].value == pytest.approx(floor, rel=0.3)
        assert moved[f"fvd.{name}"].value > 2 * floor
        assert abs(real[f"kvd.{name}"].value) < 0.1 * moved[f"kvd.{name}"].value


def test_draws_without_an_extractor_are_left_out_of_its_mean(reference):
    draws = [videos(4), videos(5, shift=2.0, only=NAMES[:1])]
    both = reference.compare(draws)
    alone = [reference.compare([draw])[f"fvd.{NAMES[0]}"].value for draw in draws[:1]]
    assert both[f"fvd.{NAMES[1]}"].value == reference.compare(draws[:1])[f"fvd.{NAMES[1]}"].value
    assert both[f"fvd.{NAMES[0]}"].value != pytest.approx(alone[0], rel=1e-3)


def test_without_a_second_draw_the_floor_is_between_the_halves():
    real = videos(6, 100)
    halves = PixelReference(real, None)
    for name in NAMES:
        table = real.windows(name)
        first, second = (Moments.of(standardise(half, table)) for half in np.array_split(table, 2))
        assert halves.floors[f"fvd.{name}"].value == pytest.approx(first.distance(second), rel=1e-8)
        assert halves.floors[f"fvd.{name}"].n == 200


def test_kernel_distances_of_many_rows_take_an_even_part_of_them(reference):
    many = reference.compare([videos(7, 3 * KERNEL_ROWS // 4)])
    assert many["fvd.rand3d-diff"].n == 3 * KERNEL_ROWS
    assert many["kvd.rand3d-diff"].n == KERNEL_ROWS
    some = reference.compare([videos(7, 3 * KERNEL_ROWS // 8)])
    assert some["kvd.rand3d-diff"].n == 3 * KERNEL_ROWS // 4
    assert some["kvd.rand3d-diff"].reference == 480


def test_spread_is_one_for_the_reference_and_zero_for_copies():
    real = videos(8)
    reference = PixelReference(real, None)
    assert reference.spread(real) == pytest.approx(1.0, rel=1e-6)
    copies = Measured(
        real.captions, {name: np.repeat(table[:1], 60, axis=0) for name, table in real.columns.items()}
    )
    assert reference.spread(copies) == pytest.approx(0.0, abs=1e-6)
    assert reference.spread(videos(9, scale=2.0)) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(("n", "m", "few"), [(255, 3000, True), (256, 256, False), (3000, 100, True)])
def test_under_four_vectors_a_dimension_is_too_few(n, m, few):
    assert Distance(1.0, n, m, 0.1, 64, "x").too_few is few
