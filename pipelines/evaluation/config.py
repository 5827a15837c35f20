"""Settings of evaluation."""

from dataclasses import dataclass
from typing import Literal

from models.config import NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How many videos are generated and compared, and by how many actors (pipelines/evaluation)."""

    videos: PositiveInt = 300
    """Videos per system and draw."""
    draws: PositiveInt = 5
    """Independent draws of the few-step systems, averaged; systems of more steps get one."""
    reference_videos: PositiveInt = 600
    """Clean LONG videos the distances are taken to (the built-in world)."""
    windows_per_video: PositiveInt = 5
    """Windows of the SHORT length cut from each video."""
    batch_size: PositiveInt = 50
    """Videos an actor generates at once."""
    min_actors: PositiveInt = 1
    """Actors at the start."""
    max_actors: PositiveInt = 2
    """Actors at most; Ray adds them while work is waiting."""
    showcase: NonNegativeInt = 6
    """Videos per system written as MP4 and shown beside each other."""
    unseen_videos: int = 300
    """Videos of the textures that LONG never shows, per system and draw; at most `videos`."""
    withheld_videos: int = 100
    """Videos with the withheld words left out of the caption, where training withholds words."""
    fvd: bool = False
    """Also compare on I3D: fvd, kvd, mmd_jedi, inception_score (pipelines/evaluation/fvd.py). `sostenuto
    fetch i3d` brings its weights. A window of 16 frames costs a core a second or more."""
    fvd_videos: PositiveInt = 64
    """Videos per system, of its first draw, and real ones that I3D sees."""
    few: bool = False
    """Give fvd also under four windows per dimension (1600), where it is mostly bias."""
    i3d: str | None = None
    """File of I3D's weights, on every node; None is that in the user's cache folder."""
    temporal_videos: int = 60
    """Videos per system whose temporal metrics (similarity over lags, drift) are taken from pixels."""
    subject: Literal["dark_blob"] | None = None
    """What every frame of your clips should show one of, so that it can be counted and followed: `dark_blob`,
    an animal darker than the ground before a still camera (pipelines/evaluation/subject.py)."""
    resamples: NonNegativeInt = 0
    """How often every metric is taken again from videos drawn with replacement, for intervals: each time the
    same videos of all systems, so that differences are paired (pipelines/evaluation/claims.py)."""
