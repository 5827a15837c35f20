"""From settings alone to the shapes of latents and tokens: what `--dry-run` prints and validation checks."""

import math
from dataclasses import dataclass

from jobs.config.schema import RunConfig
from models.autoencoders.kinds import autoencoder_kind
from models.windows import spans

WORLD_FACTORS = 13
"""Numbers a frame of the built-in world, which a linear code finds."""


@dataclass(frozen=True)
class Shapes:
    """What one SHORT and one LONG window become: of several buckets the longest, of the largest picture size.

    So what is computed from it, memory before all, is an upper bound over the buckets.
    """

    channels: int
    """Latent channels; an assumption where `autoencoder.components` is left to ingest."""
    channels_known: bool
    """Whether `channels` is certain before ingest."""
    height: int
    """Latent rows."""
    width: int
    """Latent columns."""
    short_frames: int
    """Latent frames of a SHORT window."""
    long_frames: int
    """Latent frames of a LONG window."""
    tokens_per_frame: int
    """Tokens of one latent frame (of `patch_size[0]` latent frames where that is not 1)."""


def pixels_per_latent(config: RunConfig) -> tuple[int, int]:
    """Rows and columns of pixels that one latent position describes."""
    side = autoencoder_kind(config.autoencoder).patch
    return (side, side) if side else (config.data.height, config.data.width)


def largest_size(config: RunConfig) -> tuple[int, int]:
    """Height and width of the picture size with most pixels."""
    return max(config.data.sizes, key=math.prod)


def latent_frames(config: RunConfig, frames: int) -> int:
    """Latent frames of a clip of `frames` frames."""
    return autoencoder_kind(config.autoencoder).latent_frames(frames)


def channels(config: RunConfig) -> tuple[int, bool]:
    """Latent channels, and whether they are certain before ingest."""
    known = autoencoder_kind(config.autoencoder).channels
    if known is not None:
        return known, True
    return (WORLD_FACTORS if config.uses_world else config.autoencoder.max_components), False


def shapes(config: RunConfig) -> Shapes:
    """Shapes of a config whose sizes divide (`jobs.config.checks.validate`)."""
    rows, columns = pixels_per_latent(config)
    height, width = (side // part for side, part in zip(largest_size(config), (rows, columns), strict=True))
    count, known = channels(config)
    _, patch_rows, patch_columns = config.model.patch_size
    return Shapes(
        channels=count,
        channels_known=known,
        height=height,
        width=width,
        short_frames=latent_frames(config, config.data.short_frames),
        long_frames=latent_frames(config, config.data.long_frames),
        tokens_per_frame=(height // patch_rows) * (width // patch_columns),
    )


def scored_windows(config: RunConfig) -> int:
    """Windows scored in one rollout: M = ceil((T - L) / s) + 2 spans of a random-phase tiling, or fewer."""
    length, stride = config.distill.window_frames, config.distill.window_stride
    tiling = len(spans(shapes(config).long_frames, length, stride))
    return min(config.distill.windows_per_video or tiling, tiling)
