"""Small synthetic videos for the tests of evaluation."""

import numpy as np
import torch


def moving_clip(seed, frames=16, size=64):
    """Coloured blobs and a grating that drift over a ramp: uint8 [frames, size, size, 3]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    t = np.arange(frames)[:, None, None, None] / 8.0
    video = np.broadcast_to((0.3 + 0.3 * y)[None, :, :, None], (frames, size, size, 3)).copy()
    for _ in range(3):
        place, speed, colour = random.random(2), random.normal(0, 0.12, 2), random.uniform(-0.4, 0.4, 3)
        dx = (x[None, :, :, None] - place[0] - speed[0] * t + 0.5) % 1.0 - 0.5
        dy = (y[None, :, :, None] - place[1] - speed[1] * t + 0.5) % 1.0 - 0.5
        video += colour * np.exp(-(dx**2 + dy**2) / 0.02)
    phase, wave = random.uniform(0, 6), random.uniform(0.6, 1.4)
    video += 0.12 * np.sin(2 * np.pi * (6 * y + 2 * x)[None, :, :, None] + phase + 2 * wave * t)
    return (np.clip(video, 0, 1) * 255).round().astype(np.uint8)


class PixelCode:
    """An autoencoder whose latents are the pixels themselves: [B, T, 3, H, W] in 0 .. 1."""

    channels, temporal_factor, crop_safe, reconstruction_error = 3, 1, True, 0.0

    def encode(self, frames):
        return frames.permute(0, 1, 4, 2, 3).float() / 255

    def decode(self, latents):
        return (latents.permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8)
