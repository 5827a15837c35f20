"""Settings of the built-in world."""

from dataclasses import dataclass

from models.config import NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The bay at dusk: how many clips, how large, how degraded (pipelines/world)."""

    size: PositiveInt = 128
    """Height and width in pixels."""
    fps: PositiveFloat = 8.0
    """Frames per second written into the files."""
    crf: int = 14
    """libx264 quality; smaller is better and larger."""
    short_clips: PositiveInt = 3000
    """Clips in the SHORT corpus."""
    short_frames: PositiveInt = 8
    """Frames per SHORT clip."""
    long_clips: PositiveInt = 192
    """Clips in the LONG corpus."""
    long_frames: PositiveInt = 32
    """Frames per LONG clip; the sun's absence and the rise of the light scale with it."""
    long_texture: float = 0.7
    """Texture amplitude of LONG, which is low grade by design (1 is clean)."""
    long_harmonic: float = 0.45
    """Amplitude of LONG's sharp wave crests (1 is clean)."""
    long_noise: NonNegativeFloat = 0.12
    """Standard deviation of the noise on every factor of LONG (0 is clean)."""
    seed: int = 0
    """Seed of the clips."""
