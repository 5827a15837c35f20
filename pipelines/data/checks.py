"""Settings of data that no corpus can satisfy, refused by the library and by jobs/config/ alike."""

from itertools import pairwise

from models.errors import ConfigError
from pipelines.data.config import DataConfig
from pipelines.data.curate.quality import check_curation
from pipelines.data.curate.shots import require_detector

_POSITIVE = "height width short_frames short_stride long_frames long_stride encode_batch min_actors".split()


def check_data(data: DataConfig) -> None:
    """Refuse settings that no video or window can satisfy.

    Raises:
        ConfigError: names the first fault.
    """
    for name in _POSITIVE:
        if getattr(data, name) < 1:
            raise ConfigError(f"data.{name} = {getattr(data, name)}", "Set it to 1 or more")
    if data.max_actors < data.min_actors:
        raise ConfigError(
            f"data.max_actors = {data.max_actors} and data.min_actors = {data.min_actors}",
            "Set data.max_actors to data.min_actors or more",
        )
    if data.fps is not None and not data.fps > 0:
        raise ConfigError(f"data.fps = {data.fps}", "Set it above 0, or to null to keep every frame")
    if not 0 <= data.holdout < 1:
        raise ConfigError(f"data.holdout = {data.holdout}", "Set it to a share from 0 up to, not with, 1")
    check_curation(data.curation)
    lengths, low, high = data.long_lengths, data.short_frames, data.long_frames
    if any(not low <= length < high for length in lengths) or len(set(lengths)) < len(lengths):
        raise ConfigError(
            f"data.long_lengths = {list(lengths)}, data.short_frames = {low}, data.long_frames = {high}",
            f"Give different lengths from data.short_frames up, below data.long_frames: {low} to {high - 1}",
        )
    shapes = [list(size) for size in data.shapes]
    if any(side < 1 for size in shapes for side in size):
        raise ConfigError(f"data.shapes = {shapes}", "Give [height, width] in pixels, 1 or more")
    ratios = sorted(width / height for height, width in data.sizes)
    if any(one == two for one, two in pairwise(ratios)):
        raise ConfigError(
            f"data.shapes = {shapes} beside {data.height} x {data.width} has one aspect ratio twice",
            "Give one size for each aspect ratio: a video is cropped to the nearest",
        )


def check_ingest(data: DataConfig) -> None:
    """Refuse settings that cannot be ingested on this machine.

    Raises:
        ConfigError: as `check_data`, or the detector of shots is not installed.
    """
    check_data(data)
    if data.curation.cuts:
        require_detector()
