"""Videos to measurements: from latents as from frames, with only what was asked for."""

import numpy as np
import pytest
import torch

from models.autoencoders.pca import PcaAutoencoder
from models.config import AutoencoderConfig
from pipelines.evaluation.features.extractors import EXTRACTORS, shrink, window_pixels
from pipelines.evaluation.measure import Measurements, Measurer, among_first, cut
from pipelines.evaluation.temporal import METRICS
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from pipelines.world.measures import FactorReader
from pipelines.world.render import render
from tests.pipelines.evaluation.clips import PixelCode

SIZE = 48
WORLD = WorldConfig(size=SIZE)
EVERY = tuple(EXTRACTORS)


@pytest.fixture(scope="module")
def videos():
    factors = draw_long(WorldConfig(), 6, 0, grade="clean").factors
    return np.stack([render(f, SIZE) for f in factors])


@pytest.fixture(scope="module")
def code(videos):
    return PcaAutoencoder.fit(videos.reshape(-1, SIZE, SIZE, 3), AutoencoderConfig(components=12), SIZE, SIZE)


def measure(code, latents, extractors, temporal=0, keep=0, world=WORLD):
    return Measurer(8, 5, 8.0, world, code).measure(latents, extractors, temporal=temporal, keep=keep)


def test_latents_are_measured_as_the_frames_they_decode_to(videos, code):
    latents = code.encode(torch.from_numpy(videos[:3]))
    measured = measure(code, latents, EVERY, temporal=3)
    from_latents = measured.columns
    from_frames = measure(PixelCode(), PixelCode().encode(code.decode(latents)), EVERY, temporal=3).columns
    assert measured.decode_seconds > 0
    assert from_latents.keys() == from_frames.keys() == {"factors", "temporal", *EVERY}
    for name in (*EVERY, "temporal"):
        np.testing.assert_allclose(from_latents[name], from_frames[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(from_latents["factors"], from_frames["factors"], atol=0.02)


def test_window_features_are_those_of_evenly_spread_windows(videos):
    pixels = PixelCode().encode(torch.from_numpy(videos[:1]))
    columns = measure(PixelCode(), pixels, EVERY).columns
    pixels = shrink(torch.from_numpy(videos[0]))
    expected = EXTRACTORS["rand3d-diff"](torch.stack([pixels[:, s : s + 8] for s in (0, 6, 12, 18, 24)]))
    np.testing.assert_allclose(columns["rand3d-diff"][0], expected, rtol=1e-5, atol=1e-5)
    assert window_pixels(pixels, 8, 5).shape == (5, 3, 8, SIZE, SIZE)


def test_only_what_is_wanted_is_decoded(videos, code):
    latents = code.encode(torch.from_numpy(videos[:3]))
    none = measure(code, latents, (), keep=3)
    assert (none.decode_seconds, none.frames) == (0.0, [])
    assert np.isnan(none.columns["rand3d-diff"]).all()
    assert np.isfinite(none.columns["factors"]).all()
    some = measure(code, latents, EVERY[:1], temporal=1, keep=2)
    assert [tuple(frames.shape) for frames in some.frames] == [(32, SIZE, SIZE, 3)] * 2
    assert np.isfinite(some.columns["rand3d-diff"]).all()
    assert np.isnan(some.columns["st-stats"]).all()
    assert np.isfinite(some.columns["temporal"][0]).sum() == len(METRICS)
    assert np.isnan(some.columns["temporal"][1:]).all()


def test_factors_of_a_code_that_is_not_of_the_whole_frame_come_from_its_pixels(videos):
    patches = PcaAutoencoder.fit(
        videos.reshape(-1, SIZE, SIZE, 3), AutoencoderConfig(patch_size=16, components=40), SIZE, SIZE
    )
    latents = patches.encode(torch.from_numpy(videos[:2]))
    measured = measure(patches, latents, ())
    direct = FactorReader(SIZE).factors(patches.decode(latents).numpy())
    assert measured.decode_seconds > 0
    np.testing.assert_allclose(measured.columns["factors"], direct, atol=1e-5)


def test_without_a_world_there_are_no_factors(videos, code):
    latents = code.encode(torch.from_numpy(videos[:1]))
    assert "factors" not in measure(code, latents, EVERY, world=None).columns


def test_a_table_gives_the_windows_and_means_that_were_measured():
    features = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    features[1] = np.nan
    temporal = np.full((2, len(METRICS)), np.nan, np.float32)
    temporal[0, 0], temporal[1, 0] = 1.0, 3.0
    table = Measurements(("a", "b"), {"rand3d-diff": features, "temporal": temporal})
    np.testing.assert_array_equal(table.windows("rand3d-diff"), features[0])
    assert table.temporal() == {next(iter(METRICS)): 2.0}


def test_drifts_to_both_sides_do_not_cancel():
    temporal = np.full((2, len(METRICS)), np.nan, np.float32)
    temporal[:, list(METRICS).index("drift.luma")] = -0.25, 0.25
    temporal[:, list(METRICS).index("motion")] = 0.25, 0.75
    assert Measurements(("", ""), {"temporal": temporal}).temporal() == {"motion": 0.5, "drift.luma": 0.25}


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (0, 3, []), (2, 9, [2])]
)
def test_cut_covers_everything_once(count, size, sizes):
    parts = cut(count, size)
    assert [len(part) for part in parts] == sizes
    assert [i for part in parts for i in part] == list(range(count))


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (10, 0), (12, 2), (15, 5), (99, 5)])
def test_among_first(count, expected):
    assert among_first(count, range(10, 15)) == expected


def test_join_takes_the_median_of_the_seconds():
    parts = [
        {"factors": np.full((2, 3), i), "sampling": np.full(2, seconds), "decoding": np.zeros(2)}
        for i, seconds in enumerate((9.0, 1.0, 2.0))
    ]
    table = Measurements.join(["a", "b"] * 3, parts)
    assert table.captions == ("a", "b") * 3
    assert table.seconds == {"sampling": 2.0, "decoding": 0.0}
    assert table.columns.keys() == {"factors"}
    assert table.factors[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_measurements_survive_the_disk():
    table = Measurements(("a", "b, c"), {"factors": np.arange(6, dtype=np.float32).reshape(2, 3)})
    again = Measurements.from_bytes(table.to_bytes())
    assert again.captions == table.captions
    np.testing.assert_array_equal(again.factors, table.factors)
