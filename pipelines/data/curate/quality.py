"""What of a video is worth training on: where its shots are, and which windows are dark, still, blurred ...

Pure: frames in, figures and reasons out. Near duplicates among the windows of all videos are duplicates.py's.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from pipelines.data.config import CurationConfig
from pipelines.data.curate.dedup import MOST_DISTANCE
from pipelines.data.curate.scores import FrameScores, Scores, small_pictures
from pipelines.data.curate.shots import CutDetector

ASPECTS = {"16:9": 16 / 9, "4:3": 4 / 3, "1:1": 1.0, "3:4": 3 / 4, "9:16": 9 / 16}
"""Names of the aspect ratios, width to height."""

SCORED = "min_brightness min_motion max_motion max_flash min_sharpness duplicate_distance".split()
"""Settings that need scores."""
UNSCORED = Scores(0.0, 0.0, 0.0, 0.0, bytes(24))

Frames = NDArray[np.uint8]


class Verdict(NamedTuple):
    """What is thought of one window."""

    shot: int
    """Number of its first frame's shot, from 0."""
    scores: Scores
    reason: str
    """Field of CurationConfig that refuses it, the first in their order; empty: it is kept."""


class Curator:
    """Watches one video's frames in order and judges windows of them.

    Args:
        config: what is refused.
        fps: frames a second, as ingested.
        source_fps: the video's own rate; when it is lower, frames come repeated. None: it is not lower.

    Raises:
        ConfigError: cuts are to be found, but the library is missing.
    """

    def __init__(self, config: CurationConfig, fps: float, source_fps: float | None = None) -> None:
        self._config = config
        self._scores = FrameScores(fps) if config.scores else None
        self._seen = 0
        repeats = math.ceil(fps / source_fps - 0.01) - 1 if source_fps else 0
        self._detector = CutDetector(config.cut_threshold, max(0, repeats)) if config.cuts else None

    @property
    def cuts(self) -> Sequence[int]:
        """First frames of every shot after the first, rising; complete for the frames that are decided."""
        return self._detector.cuts if self._detector else ()

    def watch(self, chunks: Iterable[Frames]) -> Iterator[Frames]:
        """The same frames in order, each as soon as it is decided: two frames late where cuts are sought.

        So a window of frames that came out of here can be judged, and `cuts` holds every cut within it.
        """
        held: Frames | None = None
        passed = 0
        for chunk in chunks:
            held = chunk if held is None else np.concatenate([held, chunk])
            ready = self.see(chunk) - passed
            if ready:
                yield held[:ready]
            held, passed = held[ready:], passed + ready
        self.finish()
        if held is not None and len(held):
            yield held

    def see(self, frames: Frames) -> int:
        """Take the next frames [n, H, W, 3], n >= 1. Returns how many frames of the video are decided."""
        self._seen += len(frames)
        if self._scores is not None or self._detector is not None:
            pictures = small_pictures(frames)
        if self._scores is not None:
            self._scores.see(frames, pictures)
        if self._detector is not None:
            self._detector.see(pictures)
        return self._decided

    @property
    def _decided(self) -> int:
        return self._detector.decided if self._detector else self._seen

    def finish(self) -> None:
        """There are no more frames: all are decided."""
        if self._detector:
            self._detector.finish()

    def judge(self, start: int, length: int) -> Verdict:
        """What is thought of the window of `length` frames from `start`, all of them decided.

        Raises:
            ValueError: they are not.
        """
        if start < 0 or length < 1 or start + length > self._decided:
            raise ValueError(f"frames {start} ... {start + length} of {self._decided} decided ones")
        shot = bisect_right(self.cuts, start)
        if self._scores is None:
            return Verdict(shot, UNSCORED, "")
        scores = self._scores.window(start, length)
        return Verdict(shot, scores, _refusal(self._config, scores))


def _refusal(config: CurationConfig, scores: Scores) -> str:
    """Name of the first setting that refuses a window; empty when none does."""
    most = math.inf if config.max_motion is None else config.max_motion
    refused = {
        "min_brightness": scores.brightness < config.min_brightness,
        "min_motion": scores.motion < config.min_motion,
        "max_motion": scores.motion > most,
        "max_flash": scores.flash > config.max_flash,
        "min_sharpness": scores.sharpness < config.min_sharpness,
    }
    return next((name for name, is_refused in refused.items() if is_refused), "")


def aspect_of(width: int, height: int) -> str:
    """Name of the nearest aspect ratio, by the ratio of the two."""
    return min(ASPECTS, key=lambda name: abs(math.log(width / height / ASPECTS[name])))


def unfit(config: CurationConfig, width: int, height: int, seconds: float) -> str:
    """Why a whole video is refused; empty when it is not.

    Args:
        width: pixels, upright, before it is cropped.
        height: pixels.
        seconds: its length.
    """
    if seconds < config.min_seconds:
        return f"{seconds:.2f} s, data.curation.min_seconds is {config.min_seconds:g}"
    aspect = aspect_of(width, height)
    if config.aspects and aspect not in config.aspects:
        return f"{width}x{height} is {aspect}, data.curation.aspects are {', '.join(config.aspects)}"
    return ""


def check(config: CurationConfig) -> None:
    """Refuse settings that no video can satisfy, or that mean nothing.

    Raises:
        ConfigError: the first fault.
    """
    for name in ("min_brightness", "min_sharpness", "max_flash"):
        if not 0 <= getattr(config, name) <= 1:
            _refuse(name, config, "Set it to 0 ... 1")
    for name in ("min_motion", "min_seconds"):
        if not 0 <= getattr(config, name) < math.inf:
            _refuse(name, config, "Set it to 0 or more")
    if config.max_motion is not None and not config.max_motion > config.min_motion:
        _refuse("max_motion", config, "Set it above data.curation.min_motion, or to null")
    if not config.cut_threshold > 1:
        _refuse("cut_threshold", config, "Set it above 1; 4.5 is usual")
    if set(config.aspects) - set(ASPECTS):
        _refuse("aspects", config, f"Choose among {', '.join(ASPECTS)}")
    if config.duplicate_distance is not None and not 0 <= config.duplicate_distance <= MOST_DISTANCE:
        _refuse("duplicate_distance", config, f"Set it to 0 ... {MOST_DISTANCE} bits, or to null")
    needs_scores = [name for name in SCORED if getattr(config, name) != getattr(CurationConfig(), name)]
    if needs_scores and not config.scores:
        _refuse(needs_scores[0], config, "Set data.curation.scores to true, which it needs")
    if config.duplicates_across and config.duplicate_distance is None:
        _refuse("duplicates_across", config, "Set data.curation.duplicate_distance too, such as 6")


def _refuse(name: str, config: CurationConfig, remedy: str) -> None:
    raise ConfigError(f"data.curation.{name} = {getattr(config, name)}", remedy)
