"""The first latent of an inner window: masked, or encoded anew as a clip's first picture."""

from typing import Any

import torch
from torch import Tensor

from models.autoencoders.pca import PcaAutoencoder
from models.config import AutoencoderConfig
from models.losses import cut_windows
from models.rng import Key
from pipelines.training.distill import DistillStage
from pipelines.training.distillation.first_latents import image_latents
from pipelines.training.state import TrainState
from tests.models.builders import latents
from tests.pipelines.training.makers import distill_stage, run


class Causal:
    """Two pictures to a latent after the first, which shows what it encodes: a latent holds the mean of its
    pictures, and in its last channel how many they are."""

    channels, temporal_factor, crop_safe, reconstruction_error = 4, 2, False, 0.0

    def encode(self, frames: Tensor) -> Tensor:
        pictures = frames.float().mean(dim=-1)[:, :, None].expand(-1, -1, 4, -1, -1)
        groups = [pictures[:, :1], *pictures[:, 1:].split(2, dim=1)]
        made = torch.stack([group.mean(dim=1) for group in groups], dim=1) / 255
        for latent, group in zip(made.unbind(dim=1), groups, strict=True):
            latent[:, -1] = group.shape[1]
        return made

    def decode(self, latents: Tensor) -> Tensor:
        counts = torch.tensor([1] + [2] * (latents.shape[1] - 1))
        values = (255 * latents[:, :, 0].clamp(0, 1)).round().to(torch.uint8)
        return values.repeat_interleave(counts, dim=1)[..., None].expand(-1, -1, -1, -1, 3)


def test_of_a_causal_code_every_first_latent_stands_for_one_picture() -> None:
    """That of the last picture of the latent whose place it takes."""
    videos = torch.rand(2, 5, 4, 1, 1)
    images = image_latents(Causal(), videos)
    assert images.shape == videos.shape
    assert (images[:, :, -1] == 1).all()
    torch.testing.assert_close(images[:, :, 0], (255 * videos[:, :, 0]).round() / 255)


def test_of_a_crop_safe_code_they_are_the_latents() -> None:
    """But for bytes, to which pictures are rounded, and what of the latents is no picture."""
    clips = torch.randint(
        40, 215, (40, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    code = PcaAutoencoder.fit(clips.numpy(), AutoencoderConfig(components=6), 8, 8)
    videos = code.encode(clips.reshape(4, 10, 8, 8, 3))
    torch.testing.assert_close(image_latents(code, videos), videos, atol=0.05, rtol=0)


def test_windows_begin_with_images_where_they_do_not_begin_the_video() -> None:
    videos, images = latents(2, 9), latents(2, 9, seed=3)
    plain, cut = cut_windows(videos, [0, 2, 5], 4), cut_windows(videos, [0, 2, 5], 4, images)
    assert torch.equal(plain[:, 1:], cut[:, 1:])
    own = cut[:, 0].unflatten(0, (2, 3))
    assert torch.equal(own[:, 0], videos[:, 0])
    assert torch.equal(own[:, 1:], images[:, [2, 5]])
    assert torch.equal(plain[:, 0].unflatten(0, (2, 3))[:, 1:], videos[:, [2, 5]])


class Same:
    """A code that is crop-safe whatever it says: pictures are latents."""

    channels, temporal_factor, crop_safe, reconstruction_error = 4, 1, False, 0.0

    def encode(self, frames: Tensor) -> Tensor:
        return frames

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def steps(
    starts: dict[str, str], autoencoder: Any
) -> tuple[list[dict[str, float]], DistillStage, TrainState]:
    stage = distill_stage(starts, crop_safe=False, critic_updates=2, exit_shares=(0.0, 1.0, 1.0, 1.0))
    stage.rollouts.autoencoder = autoencoder
    state = stage.init("cpu")
    return run(stage, state, 4), stage, state


def test_on_a_crop_safe_code_both_ways_take_the_same_steps(starts: dict[str, str]) -> None:
    masked, _, _ = steps(starts, None)
    reencoded, _, state = steps(starts, Same())
    assert reencoded == masked
    assert all(torch.equal(kept.latents, kept.images) for kept in state.pool if kept.images is not None)
    assert all(kept.images is not None for kept in state.pool)


def test_on_a_causal_code_the_critic_and_the_score_see_other_windows(starts: dict[str, str]) -> None:
    masked, _, _ = steps(starts, None)
    reencoded, stage, state = steps(starts, Causal())
    assert reencoded[0]["critic_loss"] != masked[0]["critic_loss"]
    assert reencoded[2]["reverse_kl"] != masked[2]["reverse_kl"]
    for sample in range(40):
        window = stage.lessons.window(state.pool, Key(0), sample)
        assert (window.latents[0, -1] == 1).all() == (window.start > 0)
