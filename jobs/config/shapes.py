"""From settings alone to the shapes of latents and tokens, which checks and the dry run both need."""

import math
from dataclasses import dataclass

from jobs.config.schema import RunConfig
from models.autoencoders.kinds import autoencoder_kind

WORLD_FACTORS = 13
"""Numbers that describe a frame of the built-in world, all of which a linear code finds."""


@dataclass(frozen=True)
class Shapes:
    """Latents of the longest SHORT and LONG windows at the largest picture size.

    What is computed from it, memory above all, is therefore an upper bound over the buckets.
    """

    channels: int
    """Latent channels; an assumption where `autoencoder.components` is left to ingest."""
    channels_known: bool
    """Whether `channels` is certain before ingest."""
    height: int
    width: int
    short_frames: int
    """Latent frames of a SHORT window."""
    long_frames: int
    """Latent frames of a LONG window."""
    tokens_per_frame: int
    """Tokens per latent frame (per `patch_size[0]` latent frames where that is not 1)."""


def pixels_per_latent(config: RunConfig) -> tuple[int, int]:
    """Rows and columns of pixels per latent position."""
    side = autoencoder_kind(config.autoencoder).patch
    return (side, side) if side else (config.data.height, config.data.width)


def latent_frames(config: RunConfig, frames: int) -> int:
    """Latent frames of a clip of `frames` frames."""
    return autoencoder_kind(config.autoencoder).latent_frames(frames)


def shapes(config: RunConfig) -> Shapes:
    """Shapes of a config whose sizes divide (`jobs.config.checks.validate`)."""
    rows, columns = pixels_per_latent(config)
    height, width = max(config.data.sizes, key=math.prod)
    height, width = height // rows, width // columns
    known = autoencoder_kind(config.autoencoder).channels
    assumed = WORLD_FACTORS if config.uses_world else config.autoencoder.max_components
    _, patch_rows, patch_columns = config.model.patch_size
    return Shapes(
        channels=assumed if known is None else known,
        channels_known=known is not None,
        height=height,
        width=width,
        short_frames=latent_frames(config, config.data.short_frames),
        long_frames=latent_frames(config, config.data.long_frames),
        tokens_per_frame=(height // patch_rows) * (width // patch_columns),
    )


def scored_windows(config: RunConfig) -> int:
    """Windows scored per rollout: all of its tiling, or fewer."""
    tiling = len(config.distill.tiling(shapes(config).long_frames))
    return min(config.distill.windows_per_video or tiling, tiling)
