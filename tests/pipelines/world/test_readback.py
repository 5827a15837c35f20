"""Factors painted are factors read: exactly, after rounding, after H.264, and out of latents."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.errors import ConfigError
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from pipelines.world.layout import COLOUR, HARMONIC, LEVEL, PRESENCE, TEXTURE, WAVE
from pipelines.world.readback import FactorReader
from pipelines.world.render import render, through_mp4
from pipelines.world.scene import basis_images, mean_image

SIZE = 64


@dataclass
class Code:
    """A whole-frame linear code."""

    mean: NDArray[np.floating] | torch.Tensor
    basis: NDArray[np.floating] | torch.Tensor
    scale: NDArray[np.floating] | torch.Tensor


def rms(error: NDArray[np.floating], which: slice | int) -> float:
    """Root mean square of some factors."""
    return float(np.sqrt(np.mean(error[..., which] ** 2)))


def test_rounding_to_8_bits_costs_less_than_a_thousandth() -> None:
    factors = draw_long(WorldConfig(), 6, 0, "clean").factors
    found = FactorReader(SIZE).factors(np.stack([render(clip, SIZE) for clip in factors]))
    assert found.shape == factors.shape
    assert found.dtype == np.float32
    for which in (TEXTURE, LEVEL, PRESENCE, COLOUR, WAVE, HARMONIC):
        assert rms(found - factors, which) < 2e-3


def test_h264_costs_what_was_measured() -> None:
    factors = draw_long(WorldConfig(), 20, 1, "clean").factors
    frames = np.stack([through_mp4(render(clip, SIZE), 8.0, 14) for clip in factors])
    error = FactorReader(SIZE).factors(frames) - factors
    floors: list[tuple[slice | int, float]] = [
        (TEXTURE, 0.035),
        (LEVEL, 0.10),
        (PRESENCE, 0.08),
        (COLOUR, 0.04),
        (WAVE, 0.03),
        (HARMONIC, 0.06),
    ]
    for which, floor in floors:
        assert rms(error, which) < floor, which


def test_any_leading_shape_and_any_number_of_frames() -> None:
    frames = render(draw_long(WorldConfig(long_frames=150), 1, 0).factors[0], SIZE)
    reader = FactorReader(SIZE)
    whole = reader.factors(frames)
    assert np.allclose(
        reader.factors(frames.reshape(10, 15, SIZE, SIZE, 3)).reshape(150, 13), whole, atol=1e-5
    )
    assert np.allclose(reader.factors(frames[7]), whole[7], atol=1e-5)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="64 pixels"):
        FactorReader(SIZE).factors(np.zeros((2, 32, 32, 3), dtype=np.uint8))


def test_latents_are_read_as_the_pixels_they_decode_to() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    mixing = np.linalg.qr(rng.normal(size=(13, 13)))[0]
    basis = mixing @ basis_images(SIZE).reshape(13, -1) + 1e-4 * rng.normal(size=(13, SIZE * SIZE * 3))
    mean = mean_image(SIZE).reshape(-1) + 0.01
    scale = rng.uniform(0.5, 2.0, 13)
    reader = FactorReader(SIZE)
    latents = rng.normal(size=(3, 5, 13, 1, 1)) * 0.15
    pixels = mean + (latents[..., 0, 0] * scale) @ basis
    frames = np.rint(pixels * 255).astype(np.uint8).reshape(3, 5, SIZE, SIZE, 3)
    found = reader.from_latents(Code(mean, basis, scale))(latents)
    assert np.abs(pixels - 0.5).max() < 0.5
    assert found.shape == (3, 5, 13)
    assert np.abs(found - reader.factors(frames)).max() < 0.01


def test_tensors_serve_as_arrays_do() -> None:
    parts = (
        mean_image(SIZE).reshape(-1).copy(),
        basis_images(SIZE).reshape(13, -1).copy(),
        np.ones(13, np.float32),
    )
    read = FactorReader(SIZE).from_latents(Code(*(torch.from_numpy(part) for part in parts)))
    factors = draw_long(WorldConfig(), 2, 0).factors
    found = read(torch.from_numpy(factors)[..., None, None])
    assert np.abs(found - factors).max() < 1e-4


def test_codes_and_latents_that_do_not_fit_are_refused() -> None:
    reader = FactorReader(SIZE)
    with pytest.raises(ConfigError, match="patch_size"):
        reader.from_latents(Code(np.zeros(300), np.zeros((5, 300)), np.ones(5)))
    code = Code(mean_image(SIZE).reshape(-1), basis_images(SIZE).reshape(13, -1), np.ones(13))
    with pytest.raises(ConfigError, match="13 numbers a frame"):
        reader.from_latents(code)(np.zeros((2, 13, 2, 2)))
