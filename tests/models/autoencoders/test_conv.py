"""The convolutional code learns its corpus, keeps the background, has no seams, and comes out the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.autoencoders.conv import ConvAutoencoder
from models.autoencoders.kinds import autoencoder_kind, load_autoencoder
from models.config import AutoencoderConfig
from models.errors import ConfigError, DataError, TrainingDiverged
from models.rng import Key
from tests.models.autoencoders.damage import assert_damage_is_refused

CONFIG = AutoencoderConfig(kind="conv", patch_size=8, components=4, fit_steps=60)
HEIGHT, WIDTH = 24, 32
SQUARE = 7


def arena(count: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A ground that brightens from left to right, with a dark square somewhere on it."""
    rng = np.random.default_rng(2)
    ground = np.linspace(120, 220, width)[None, :, None] * np.ones((height, 1, 3))
    frames = np.repeat(ground[None], count, axis=0)
    for frame in frames:
        top, left = rng.integers((height - SQUARE, width - SQUARE))
        frame[top : top + SQUARE, left : left + SQUARE] = (40, 30, 20)
    return frames.round().astype(np.uint8)


def fitted(frames: NDArray[np.uint8], config: AutoencoderConfig = CONFIG) -> ConvAutoencoder:
    torch.set_num_threads(1)
    code = ConvAutoencoder.untrained(frames, config, *frames.shape[1:3])
    assert list(code.learn(frames, config.fit_steps)) == list(range(1, config.fit_steps + 1))
    return code


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    return arena(60)


@pytest.fixture(scope="module")
def code(frames: NDArray[np.uint8]) -> ConvAutoencoder:
    return fitted(frames)


def as_batch(frames: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(frames)[None]


def loss(code: ConvAutoencoder, frames: NDArray[np.uint8]) -> float:
    """Root mean square of what is lost, pixels in 0 to 1."""
    back = code.decode(code.encode(as_batch(frames)))[0].numpy()
    return float(np.sqrt(((back.astype(float) - frames) ** 2).mean())) / 255


def test_before_it_learns_it_knows_the_median_picture(frames: NDArray[np.uint8]) -> None:
    code = ConvAutoencoder.untrained(frames, CONFIG, HEIGHT, WIDTH)
    ground = np.median(frames, axis=0)
    np.testing.assert_allclose(
        code.decode(code.encode(as_batch(frames[:3])))[0], ground[None].repeat(3, 0), atol=1
    )
    spread = np.sqrt(((frames / 255 - ground / 255) ** 2).mean())
    assert float(code.spread) == pytest.approx(spread, rel=1e-4)


def test_it_learns_what_is_on_the_ground(code: ConvAutoencoder, frames: NDArray[np.uint8]) -> None:
    untrained = ConvAutoencoder.untrained(frames, CONFIG, HEIGHT, WIDTH)
    assert loss(code, frames) < 0.5 * loss(untrained, frames)
    assert code.reconstruction_error == pytest.approx(loss(code, frames), rel=1e-6)


def test_latents_of_the_sample_have_unit_variance(code: ConvAutoencoder, frames: NDArray[np.uint8]) -> None:
    """Over all channels together: one scale serves them all."""
    latents = code.encode(as_batch(frames))
    assert latents.shape == (1, len(frames), 4, HEIGHT // 8, WIDTH // 8)
    assert latents.dtype == torch.float32
    flat = latents.movedim(2, 0).flatten(1)
    torch.testing.assert_close(flat.mean(dim=1), torch.zeros(4), atol=1e-4, rtol=0)
    assert float(flat.var(dim=1, correction=0).mean()) == pytest.approx(1, rel=1e-3)


def test_a_window_of_latents_is_the_latents_of_the_window(
    code: ConvAutoencoder, frames: NDArray[np.uint8]
) -> None:
    """Across the blocks of frames that go through the network at once, too."""
    whole = code.encode(as_batch(frames))
    for start, stop in ((0, 8), (5, 13), (30, 59)):
        part = code.encode(as_batch(frames[start:stop]))
        torch.testing.assert_close(whole[:, start:stop], part, atol=1e-4, rtol=1e-4)
    assert code.crop_safe


def test_the_same_frames_give_the_same_weights(frames: NDArray[np.uint8]) -> None:
    short = AutoencoderConfig(kind="conv", patch_size=8, components=4, fit_steps=4)
    torch.manual_seed(1)
    first = fitted(frames, short).state_dict()
    torch.manual_seed(2)
    second = fitted(frames.copy(), short).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = fitted(frames[:30], short).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_pixel_depends_on_the_next_square(code: ConvAutoencoder, frames: NDArray[np.uint8]) -> None:
    """Squares that know nothing of each other have seams: here a change of a latent reaches the pixels around
    its square, and a change of a pixel the latents beside its own."""
    latents = code.encode(as_batch(frames[:1]))
    changed = latents.clone()
    changed[0, 0, :, 1, 1] += 3
    moved = (code.decode(changed).int() - code.decode(latents).int()).abs().amax(dim=(0, 1, 4)) > 0
    assert moved[8:16, 4:8].any()
    assert moved[4:8, 8:16].any()
    pixels = as_batch(frames[:1]).clone()
    pixels[0, 0, 8:16, 8] = 0
    reached = (code.encode(pixels) - latents).abs().amax(dim=2)[0, 0] > 1e-4
    assert reached[1, 0]
    assert reached[1, 1]


def test_it_takes_frames_of_any_size_that_its_squares_tile(
    code: ConvAutoencoder, frames: NDArray[np.uint8]
) -> None:
    large = as_batch(frames[:2]).repeat_interleave(2, 2).repeat_interleave(2, 3)
    latents = code.encode(large)
    assert latents.shape == (1, 2, 4, 6, 8)
    ground = np.median(frames, axis=0).repeat(2, 0).repeat(2, 1)
    back = code.decode(latents)[0].float().numpy()
    assert np.abs(back - ground).mean() < 2 * np.abs(large[0].numpy() - ground).mean()
    for height, width in ((24, 36), (20, 32)):
        with pytest.raises(ConfigError, match="multiples of 8"):
            code.encode(torch.zeros(1, 2, height, width, 3, dtype=torch.uint8))


def test_it_comes_back_from_disk_bit_for_bit(
    code: ConvAutoencoder, frames: NDArray[np.uint8], tmp_path: Path
) -> None:
    code.save(tmp_path)
    loaded = load_autoencoder(tmp_path)
    assert isinstance(loaded, ConvAutoencoder)
    latents = code.encode(as_batch(frames))
    assert torch.equal(loaded.encode(as_batch(frames)), latents)
    assert torch.equal(loaded.decode(latents), code.decode(latents))
    assert loaded.reconstruction_error == code.reconstruction_error
    assert loaded.channels == 4


def test_its_kind_learns_step_by_step_and_writes(frames: NDArray[np.uint8], tmp_path: Path) -> None:
    config = AutoencoderConfig(kind="conv", patch_size=16, components=3, fit_steps=2)
    kind = autoencoder_kind(config)
    large = arena(4, 32, 48)
    assert list(kind.fit(large, 32, 48, tmp_path)) == [(1, 2), (2, 2)]
    latents = load_autoencoder(tmp_path).encode(as_batch(large))
    assert latents.shape == (1, 4, 3, 2, 3)
    assert (kind.channels, kind.patch, kind.fitted) == (3, 16, True)


def test_large_frames_are_learned_from_in_crops() -> None:
    """Of 64 pixels, wherever they lie: the code of a large picture is that of its parts."""
    large = arena(6, 72, 136)
    code = ConvAutoencoder.untrained(large, CONFIG, 72, 136)
    seen = [code._crops(large, Key(0, step)) for step in range(3)]
    assert {tuple(crops.shape) for crops in seen} == {(16, 3, 64, 64)}
    whole = (as_batch(large)[0].movedim(-1, 1) / 255 - code.background) / code.spread
    for crop in seen[0]:
        places = [(top, left) for top in range(0, 9, 8) for left in range(0, 73, 8)]
        assert any(
            torch.equal(crop, frame[:, top : top + 64, left : left + 64])
            for frame in whole
            for top, left in places
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patch_size": 0}, "patch_size is 0"),
        ({"patch_size": 12}, "patch_size is 12"),
        ({"patch_size": 64}, "patch_size is 64"),
        ({"patch_size": 16}, "does not tile"),
        ({"components": None}, "components is None"),
        ({"components": 0}, "components is 0"),
    ],
)
def test_impossible_settings_are_refused(
    changes: dict[str, int | None], words: str, frames: NDArray[np.uint8]
) -> None:
    config = AutoencoderConfig(**({"kind": "conv", "patch_size": 8, "components": 4} | changes))
    with pytest.raises(ConfigError, match=words):
        ConvAutoencoder.untrained(frames, config, HEIGHT, WIDTH)


def test_a_sample_without_content_is_refused() -> None:
    grey = np.full((10, 8, 8, 3), 128, np.uint8)
    with pytest.raises(DataError, match="equal"):
        ConvAutoencoder.untrained(grey, CONFIG, 8, 8)
    with pytest.raises(DataError, match="1 frames"):
        ConvAutoencoder.untrained(grey[:1], CONFIG, 8, 8)


def test_a_loss_that_is_no_number_stops_it(frames: NDArray[np.uint8]) -> None:
    code = ConvAutoencoder.untrained(frames, CONFIG, HEIGHT, WIDTH)
    code.spread.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="step 1"):
        next(code.learn(frames, 3))


def test_damaged_folders_are_refused(code: ConvAutoencoder, tmp_path: Path) -> None:
    code.save(tmp_path)
    changes: list[dict[str, object]] = [{"patch": 16}, {"channels": 5}, {"width": None}, {"patch": 0}]
    assert_damage_is_refused(tmp_path, [*changes, {"height": 16}])
