"""The linear code is exact on linear data, chooses its own size, and survives the disk bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.autoencoders.kinds import load_autoencoder
from models.autoencoders.pca import PcaAutoencoder
from models.config import AutoencoderConfig
from models.errors import CheckpointError, ConfigError, DataError
from tests.models.autoencoders.damage import assert_damage_is_refused


def low_rank(count: int, rank: int, height: int, width: int, noise: float = 0.0) -> NDArray[np.uint8]:
    """Frames that span, up to rounding and noise, `rank` directions around grey."""
    rng = np.random.default_rng(5)
    directions, _ = np.linalg.qr(rng.normal(size=(height * width * 3, rank)))
    strength = np.geomspace(900.0, 300.0, rank) * np.sqrt(height * width / 1024)
    video = 128 + rng.normal(size=(count, rank)) * strength @ directions.T
    video += noise * rng.normal(size=video.shape)
    return np.clip(np.round(video), 0, 255).astype(np.uint8).reshape(count, height, width, 3)


def as_batch(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames)[None]


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return low_rank(150, 5, 24, 32, noise=0.3)


@pytest.fixture(scope="module")
def fitted(frames: NDArray[np.uint8]) -> PcaAutoencoder:
    return PcaAutoencoder.fit(frames, AutoencoderConfig(), 24, 32)


def test_the_gap_of_the_spectrum_gives_the_number_of_components(fitted: PcaAutoencoder) -> None:
    assert fitted.channels == 5
    gap = fitted.eigenvalues[4] / fitted.eigenvalues[5]
    assert gap > 20
    assert gap == max(a / b for a, b in zip(fitted.eigenvalues, fitted.eigenvalues[1:], strict=False))


def test_a_code_of_patches_takes_frames_of_any_size_that_they_tile() -> None:
    """The latents of joined pictures are the joined latents."""
    code = PcaAutoencoder.fit(low_rank(60, 4, 16, 24), AutoencoderConfig(patch_size=8, components=4), 16, 24)
    parts = [torch.from_numpy(low_rank(4, 4, 16, 24))[None, i : i + 2] for i in (0, 2)]
    latents = [code.encode(part) for part in parts]
    for axis in (2, 3):
        together = torch.cat(parts, dim=axis)
        joined = torch.cat(latents, dim=axis + 1)
        torch.testing.assert_close(code.encode(together), joined)
        assert torch.equal(code.decode(joined), torch.cat([code.decode(x) for x in latents], dim=axis))
    turned = torch.zeros(1, 2, 24, 16, 3, dtype=torch.uint8)
    assert code.encode(turned).shape == (1, 2, 4, 3, 2)
    for height, width in ((16, 20), (12, 24)):
        with pytest.raises(ConfigError, match="multiples of 8 x 8"):
            code.encode(torch.zeros(1, 2, height, width, 3, dtype=torch.uint8))


def footage(count: int) -> NDArray[np.uint8]:
    """Smooth pictures of changing brightness: one strong direction, then a spectrum without a gap."""
    rng = np.random.default_rng(3)
    axis = np.linspace(0, np.pi, 16)
    waves = np.stack([np.cos(k * axis) / (1 + k) ** 0.8 for k in range(16)])
    pictures = np.einsum("fhwc,hy,wx->fyxc", rng.normal(size=(count, 16, 16, 3)), waves, waves)
    pictures = 128 + 40 * rng.normal(size=(count, 1, 1, 1)) + 18 * pictures
    return np.clip(np.round(pictures), 0, 255).astype(np.uint8)


def test_brightness_alone_is_no_gap() -> None:
    """The first eigenvalue of footage towers over the second; one component per patch would be useless."""
    frames = footage(600)
    wide = PcaAutoencoder.fit(frames, AutoencoderConfig(patch_size=8), 16, 16)
    ratios = [a / b for a, b in zip(wide.eigenvalues, wide.eigenvalues[1:], strict=False)]
    assert ratios.index(max(ratios)) == 0
    assert ratios[0] > 5
    assert 8 < wide.channels < 64
    kept = sum(wide.eigenvalues[: wide.channels])
    lost = wide.reconstruction_error**2 * 8 * 8 * 3
    assert kept / (kept + lost) >= 0.98
    fewer = sum(wide.eigenvalues[: wide.channels - 1]) / (kept + lost)
    assert fewer < 0.98
    narrow = PcaAutoencoder.fit(frames, AutoencoderConfig(patch_size=8, max_components=6), 16, 16)
    assert narrow.channels == 6


def test_components_agree_with_a_singular_value_decomposition(
    frames: NDArray[np.uint8], fitted: PcaAutoencoder
) -> None:
    flat = frames.reshape(len(frames), -1).astype(np.float64) / 255
    _, values, rows = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(fitted.mean, flat.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(fitted.scale, values[:5] / np.sqrt(len(flat)), rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(fitted.basis.numpy() * rows[:5], axis=1)), 1, atol=1e-4)


def test_both_sides_of_the_products_give_one_code(frames: NDArray[np.uint8]) -> None:
    small = np.ascontiguousarray(frames[:, :4, :4])
    wide = PcaAutoencoder.fit(small[:40], AutoencoderConfig(components=3), 4, 4)
    tall = PcaAutoencoder.fit(np.tile(small[:40], (2, 1, 1, 1)), AutoencoderConfig(components=3), 4, 4)
    torch.testing.assert_close(wide.basis, tall.basis, atol=1e-4, rtol=0)
    torch.testing.assert_close(wide.scale, tall.scale, rtol=1e-4, atol=0)


def test_rows_of_the_basis_are_orthonormal_with_their_largest_entry_positive(fitted: PcaAutoencoder) -> None:
    torch.testing.assert_close(fitted.basis @ fitted.basis.T, torch.eye(5), atol=1e-5, rtol=0)
    largest = fitted.basis.abs().argmax(dim=1)
    assert (fitted.basis[torch.arange(5), largest] > 0).all()


def test_latents_of_the_sample_are_standardised(frames: NDArray[np.uint8], fitted: PcaAutoencoder) -> None:
    latents = fitted.encode(as_batch(frames))
    assert latents.shape == (1, 150, 5, 1, 1)
    assert latents.dtype == torch.float32
    flat = latents.flatten(0, 1).flatten(1)
    torch.testing.assert_close(flat.mean(dim=0), torch.zeros(5), atol=1e-3, rtol=0)
    torch.testing.assert_close(flat.std(dim=0, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)


def test_encoding_is_what_the_attributes_say(frames: NDArray[np.uint8], fitted: PcaAutoencoder) -> None:
    latents = fitted.encode(as_batch(frames[:3]))[0].flatten(1)
    pixels = torch.from_numpy(frames[:3]).flatten(1).float() / 255
    torch.testing.assert_close(
        latents, ((pixels - fitted.mean) @ fitted.basis.T) / fitted.scale, atol=2e-4, rtol=0
    )
    decoded = fitted.decode(latents.view(1, 3, 5, 1, 1))[0].flatten(1).float() / 255
    expected = fitted.mean + (latents * fitted.scale) @ fitted.basis
    assert (decoded - expected.clamp(0, 1)).abs().max() < 0.51 / 255


def test_decoding_returns_what_was_encoded(frames: NDArray[np.uint8], fitted: PcaAutoencoder) -> None:
    back = fitted.decode(fitted.encode(as_batch(frames)))[0].numpy()
    assert back.dtype == np.uint8
    error = (back.astype(float) - frames) / 255
    assert np.sqrt((error**2).mean()) < 1.2 * fitted.reconstruction_error + 0.3 / 255
    assert (np.abs(error) < 2.5 / 255).mean() > 0.999


def test_the_reconstruction_error_is_measured(frames: NDArray[np.uint8], fitted: PcaAutoencoder) -> None:
    flat = torch.from_numpy(frames).flatten(1).float() / 255
    codes = (flat - fitted.mean) @ fitted.basis.T
    left = flat - fitted.mean - codes @ fitted.basis
    assert fitted.reconstruction_error == pytest.approx(float(left.square().mean().sqrt()), rel=1e-3)


def test_a_window_of_latents_is_the_latents_of_the_window(
    frames: NDArray[np.uint8], fitted: PcaAutoencoder
) -> None:
    whole = fitted.encode(as_batch(frames[:20]))
    part = fitted.encode(as_batch(frames[5:13]))
    torch.testing.assert_close(whole[:, 5:13], part, atol=1e-5, rtol=1e-5)
    assert fitted.crop_safe


def test_fitting_is_deterministic(frames: NDArray[np.uint8], fitted: PcaAutoencoder) -> None:
    again = PcaAutoencoder.fit(frames.copy(), AutoencoderConfig(), 24, 32)
    assert torch.equal(again.basis, fitted.basis)
    assert torch.equal(again.scale, fitted.scale)


def test_patches_code_each_square_alike(frames: NDArray[np.uint8]) -> None:
    config = AutoencoderConfig(patch_size=8, components=10)
    code = PcaAutoencoder.fit(frames, config, 24, 32)
    latents = code.encode(as_batch(frames[:4]))
    assert latents.shape == (1, 4, 10, 3, 4)
    assert code.grid == (3, 4)
    patch = torch.from_numpy(frames[2, 8:16, 24:32].copy()).flatten().float() / 255
    expected = (code.basis @ (patch - code.mean)) / code.scale
    torch.testing.assert_close(latents[0, 2, :, 1, 3], expected, atol=2e-4, rtol=0)


def test_as_many_components_as_pixels_lose_nothing(frames: NDArray[np.uint8]) -> None:
    code = PcaAutoencoder.fit(frames, AutoencoderConfig(patch_size=2, components=12), 24, 32)
    np.testing.assert_array_equal(code.decode(code.encode(as_batch(frames[:5])))[0], frames[:5])
    assert code.reconstruction_error < 1e-4


def test_it_comes_back_from_disk_bit_for_bit(
    fitted: PcaAutoencoder, frames: NDArray[np.uint8], tmp_path: Path
) -> None:
    fitted.save(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert isinstance(loaded, PcaAutoencoder)
    assert torch.equal(loaded.encode(as_batch(frames)), fitted.encode(as_batch(frames)))
    assert loaded.reconstruction_error == fitted.reconstruction_error
    assert loaded.eigenvalues == fitted.eigenvalues


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AutoencoderConfig(patch_size=7), "does not tile"),
        (AutoencoderConfig(patch_size=-1), "does not tile"),
        (AutoencoderConfig(components=0), "directions"),
        (AutoencoderConfig(components=151), "directions"),
    ],
)
def test_impossible_settings_are_refused(
    config: AutoencoderConfig, words: str, frames: NDArray[np.uint8]
) -> None:
    with pytest.raises(ConfigError, match=words):
        PcaAutoencoder.fit(frames, config, 24, 32)


def test_a_sample_without_content_is_refused() -> None:
    grey = np.full((10, 8, 8, 3), 128, np.uint8)
    with pytest.raises(DataError, match="equal"):
        PcaAutoencoder.fit(grey, AutoencoderConfig(), 8, 8)
    with pytest.raises(DataError, match="1 frames"):
        PcaAutoencoder.fit(grey[:1], AutoencoderConfig(), 8, 8)


def test_damaged_folders_are_refused(fitted: PcaAutoencoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable"):
        load_autoencoder(tmp_path)
    fitted.save(tmp_path)
    assert_damage_is_refused(tmp_path, [{"kind": "other"}, {"patch_height": 3}, {"height": None}])
