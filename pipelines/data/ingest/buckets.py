"""Further lengths and picture sizes of windows: which of them make sense."""

from itertools import pairwise

from models.errors import ConfigError
from pipelines.data.config import DataConfig


def check(data: DataConfig) -> None:
    """Refuse lengths and sizes that no window can have.

    Raises:
        ConfigError: names the setting.
    """
    lengths = data.long_lengths
    low, high = data.short_frames, data.long_frames
    if any(not max(1, low) <= length < high for length in lengths) or len(set(lengths)) < len(lengths):
        raise ConfigError(
            f"data.long_lengths = {list(lengths)}, data.short_frames = {low}, data.long_frames = {high}",
            f"Give different lengths from data.short_frames up, below data.long_frames: {low} to {high - 1}",
        )
    if any(side < 1 for size in data.shapes for side in size):
        raise ConfigError(f"data.shapes = {_told(data)}", "Give [height, width] in pixels, 1 or more")
    ratios = sorted(width / height for height, width in data.sizes)
    if any(one == two for one, two in pairwise(ratios)):
        raise ConfigError(
            f"data.shapes = {_told(data)} beside {data.height} x {data.width} has one aspect ratio twice",
            "Give one size for each aspect ratio: a video is cropped to the nearest",
        )


def _told(data: DataConfig) -> list[list[int]]:
    return [list(size) for size in data.shapes]
