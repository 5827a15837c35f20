"""Videos to measurements: from latents as from frames, with only what was asked for."""

import numpy as np
import pytest
import torch

from models.autoencoders.pca import PcaAutoencoder
from models.config import AutoencoderConfig
from pipelines.evaluation.features.extractors import RandomConvolutions, shrink, window_pixels
from pipelines.evaluation.measure import EVERY, Measured, Measurer, cut, join, within
from pipelines.evaluation.temporal import TEMPORAL_NAMES
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from pipelines.world.measures import FactorReader
from pipelines.world.render import render
from tests.pipelines.evaluation.clips import PixelCode

SIZE = 48


@pytest.fixture(scope="module")
def videos():
    factors = draw_long(WorldConfig(), 6, 0, grade="clean").factors
    return np.stack([render(f, SIZE) for f in factors])


@pytest.fixture(scope="module")
def code(videos):
    return PcaAutoencoder.fit(videos.reshape(-1, SIZE, SIZE, 3), AutoencoderConfig(components=12), SIZE, SIZE)


def measurer(code, reader=True):
    return Measurer(8, 5, 8.0, FactorReader(SIZE) if reader else None, code)


def test_latents_are_measured_as_the_frames_they_decode_to(videos, code):
    latents = code.encode(torch.from_numpy(videos[:3]))
    from_latents, seconds = measurer(code).latents(latents, EVERY, temporal=3)
    pixels = PixelCode().encode(code.decode(latents))
    from_frames, _ = measurer(PixelCode()).latents(pixels, EVERY, temporal=3)
    assert seconds > 0
    assert from_latents.keys() == from_frames.keys() == {"factors", "temporal", *EVERY}
    for name in (*EVERY, "temporal"):
        np.testing.assert_allclose(from_latents[name], from_frames[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(from_latents["factors"], from_frames["factors"], atol=0.02)


def test_window_features_are_those_of_evenly_spread_windows(videos):
    pixels = PixelCode().encode(torch.from_numpy(videos[:1]))
    columns, _ = measurer(PixelCode()).latents(pixels, EVERY, temporal=0)
    pixels = shrink(torch.from_numpy(videos[0]))
    expected = RandomConvolutions()(torch.stack([pixels[:, s : s + 8] for s in (0, 6, 12, 18, 24)]))
    np.testing.assert_allclose(columns["rand3d-diff"][0], expected, rtol=1e-5, atol=1e-5)
    assert window_pixels(pixels, 8, 5).shape == (5, 3, 8, SIZE, SIZE)


def test_only_what_is_wanted_is_decoded(videos, code):
    latents = code.encode(torch.from_numpy(videos[:3]))
    shown = []
    none, seconds = measurer(code).latents(latents, (), temporal=0, show=lambda i, f: shown.append(i))
    assert (seconds, shown) == (0.0, [])
    assert np.isnan(none["rand3d-diff"]).all()
    assert np.isfinite(none["factors"]).all()
    some, _ = measurer(code).latents(latents, EVERY[:1], temporal=1, show=lambda i, f: shown.append(f.shape))
    assert shown == [(32, SIZE, SIZE, 3)] * 3
    assert np.isfinite(some["rand3d-diff"]).all()
    assert np.isnan(some["st-stats"]).all()
    assert np.isfinite(some["temporal"][0]).sum() == len(TEMPORAL_NAMES)
    assert np.isnan(some["temporal"][1:]).all()


def test_factors_of_a_code_that_is_not_of_the_whole_frame_come_from_its_pixels(videos):
    patches = PcaAutoencoder.fit(
        videos.reshape(-1, SIZE, SIZE, 3), AutoencoderConfig(patch_size=16, components=40), SIZE, SIZE
    )
    latents = patches.encode(torch.from_numpy(videos[:2]))
    columns, seconds = measurer(patches).latents(latents, (), temporal=0)
    direct = FactorReader(SIZE).factors(patches.decode(latents).numpy())
    assert seconds > 0
    np.testing.assert_allclose(columns["factors"], direct, atol=1e-5)


def test_without_a_world_there_are_no_factors(videos, code):
    latents = code.encode(torch.from_numpy(videos[:1]))
    assert "factors" not in measurer(code, reader=False).latents(latents, EVERY, temporal=0)[0]


def test_a_table_gives_the_windows_and_means_that_were_measured():
    features = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    features[1] = np.nan
    temporal = np.full((2, len(TEMPORAL_NAMES)), np.nan, np.float32)
    temporal[0, 0], temporal[1, 0] = 1.0, 3.0
    table = Measured(("a", "b"), {"rand3d-diff": features, "temporal": temporal})
    assert len(table) == 2
    np.testing.assert_array_equal(table.windows("rand3d-diff"), features[0])
    assert table.temporal() == {TEMPORAL_NAMES[0]: 2.0}


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (0, 3, []), (2, 9, [2])]
)
def test_cut_covers_everything_once(count, size, sizes):
    parts = cut(count, size)
    assert [len(part) for part in parts] == sizes
    assert [i for part in parts for i in part] == list(range(count))


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (10, 0), (12, 2), (15, 5), (99, 5)])
def test_within(count, expected):
    assert within(count, range(10, 15)) == expected


def test_join_takes_the_median_of_the_seconds():
    parts = [
        {"factors": np.full((2, 3), i), "sampling": np.full(2, seconds), "decoding": np.zeros(2)}
        for i, seconds in enumerate((9.0, 1.0, 2.0))
    ]
    table = join([["a", "b"]] * 3, parts)
    assert table.captions == ("a", "b") * 3
    assert table.seconds == {"sampling": 2.0, "decoding": 0.0}
    assert table.columns.keys() == {"factors"}
    assert table.factors[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
