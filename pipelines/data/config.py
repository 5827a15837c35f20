"""Settings of ingest: where the two corpora are, how they are cut, what is refused."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What a video may ask of the machine before it is refused (pipelines/data/decode.py)."""

    max_bytes: int = 4 << 30
    """Largest file."""
    max_pixels: int = 4096 * 4096
    """Largest frame."""
    max_frames: int = 500_000
    """Most frames."""
    max_seconds: float = 14_400.0
    """Longest video."""
    timeout_s: float = 120.0
    """Longest silence of the decoder before it is replaced and the video refused."""
    memory_bytes: int = 4 << 30
    """Address space of the decoding process above what it starts with."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The two corpora and their windows (pipelines/data)."""

    short: str | None = None
    """Folder of the SHORT corpus; None is the built-in world's."""
    long: str | None = None
    """Folder of the LONG corpus; None is the built-in world's."""
    fps: float | None = None
    """Frames a second after resampling by timestamps; None keeps every frame."""
    height: int = 128
    """Pixels; frames are resized (antialiased) and centre-cropped."""
    width: int = 128
    """Pixels."""
    short_frames: int = 8
    """Frames a SHORT window."""
    short_stride: int = 8
    """Frames from one SHORT window to the next."""
    long_frames: int = 32
    """Frames a LONG window."""
    long_stride: int = 32
    """Frames from one LONG window to the next."""
    holdout: float = 0.0
    """Share of the windows of each corpus kept out of training (a window is held out by the hash of its
    id)."""
    block_bytes: int = 8 << 20
    """Small videos are grouped into one task up to this size."""
    max_reject_share: float = 0.5
    """Ingest fails when more than this share of the videos is rejected."""
    limits: LimitsConfig = LimitsConfig()
    """What a video may ask of the machine."""
