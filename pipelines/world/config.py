"""Settings of the built-in world."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The bay at dusk: how many clips, how large, how degraded (pipelines/world)."""

    size: int = 128
    """Height and width in pixels."""
    fps: float = 8.0
    """Frames per second written into the files."""
    crf: int = 14
    """libx264 quality; smaller is better and larger."""
    short_clips: int = 3000
    """Clips in the SHORT corpus."""
    short_frames: int = 8
    """Frames per SHORT clip."""
    long_clips: int = 192
    """Clips in the LONG corpus."""
    long_frames: int = 32
    """Frames per LONG clip; the sun's absence and the rise of the light scale with it."""
    long_texture: float = 0.7
    """Texture amplitude of LONG, which is low grade by design (1 is clean)."""
    long_harmonic: float = 0.45
    """Amplitude of LONG's sharp wave crests (1 is clean)."""
    long_noise: float = 0.12
    """Standard deviation of the noise on every factor of LONG (0 is clean)."""
    seed: int = 0
    """Seed of the clips."""
