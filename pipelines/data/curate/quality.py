"""What of a video is worth training on: its shots, and which windows are dark, still, flashing or blurred.

Pure: frames in, scores and verdicts out. A few numbers per frame are kept for the whole video, so that any
window can be scored. Whole numbers are summed wherever possible: no score depends on how frames were chunked.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.errors import ConfigError
from pipelines.data.config import CurationConfig
from pipelines.data.curate.dedup import MOST_DISTANCE
from pipelines.data.curate.shots import ShotDetector
from pipelines.media.color import Frames, Luma, luma

ASPECTS = {"16:9": 16 / 9, "4:3": 4 / 3, "1:1": 1.0, "3:4": 3 / 4, "9:16": 9 / 16}
"""Width to height of the aspect ratios that videos are sorted into."""
NEED_SCORES = "min_brightness min_motion max_motion max_flash min_sharpness duplicate_distance".split()
"""Settings that are refused while data.curation.scores is off."""

THUMBNAIL = 32
"""Height and width of the thumbnails that every score but sharpness is read from; they ignore the aspect."""
LINES = 32
"""Sharpness looks at about this many rows and columns of a frame."""
NOISE = 2
"""Differences between neighbouring pixels up to this, of 255, count as none."""
BLUR = 9
"""Pixels of the box blur that sharpness is measured against."""
HASH_SIDE = 8
"""A perceptual hash has one bit for each of the 8 x 8 slowest cosine waves."""

_WAVES = np.rint(
    1024 * np.cos(np.pi * np.outer(np.arange(HASH_SIDE), 2 * np.arange(THUMBNAIL) + 1) / (2 * THUMBNAIL))
)
_FAINT = 0.25 * (THUMBNAIL / 2) ** 2 * 1024**2
"""A wave of a quarter of a grey level: the bits of weaker ones would be codec noise."""


class Scores(NamedTuple):
    """Scores of one window; CurationConfig describes their scales."""

    brightness: float
    """Mean luma, 0 ... 1."""
    motion: float
    """Mean change of a pixel's luma per second without the change of the frame's mean; 0 or more."""
    flash: float
    """Largest step of the mean luma from one frame to the next, 0 ... 1."""
    sharpness: float
    """Mean share of fine detail in its frames, 0 ... 1; a frame of one colour has 0."""
    fingerprint: bytes
    """Perceptual hashes of the first, middle and last frame: three little-endian uint64."""


UNSCORED = Scores(0.0, 0.0, 0.0, 0.0, bytes(24))


class Verdict(NamedTuple):
    shot: int
    """Index of the shot that its first frame belongs to."""
    scores: Scores
    reason: str
    """The first field of CurationConfig that refuses it; empty when the window is kept."""


class Curator:
    """Watches the frames of one video in order and judges windows of them.

    Args:
        config: what is refused.
        fps: frame rate as ingested.
        source_fps: the video's own rate; None if it is not lower. Frames of a slower video come repeated.
        takes: first frame after each pause of the recording, where a shot starts whatever it shows; it grows
            before those frames are watched.

    Raises:
        ConfigError: shots are to be found, but the library is not installed.
    """

    def __init__(
        self,
        config: CurationConfig,
        fps: float,
        source_fps: float | None = None,
        takes: Sequence[int] = (),
    ) -> None:
        self._config = config
        self._scores = FrameScores(fps) if config.scores else None
        repeats = math.ceil(fps / source_fps - 0.01) - 1 if source_fps else 0
        self._detector = ShotDetector(config.cut_threshold, max(0, repeats)) if config.cuts else None
        self._decided = 0
        self._takes = takes
        self.shot_starts: list[int] = []
        """First frame of every shot but the first, rising; complete for the frames that `watch` yielded."""

    def watch(self, chunks: Iterable[Frames]) -> Iterator[Frames]:
        """Pass the frames on, each once its shot is decided: with shot detection that is two frames late.

        Windows of the frames that came out of here can be judged.
        """
        held: Frames | None = None
        for chunk in chunks:
            held = chunk if held is None else np.concatenate([held, chunk])
            if self._scores is not None or self._detector is not None:
                small = thumbnails(chunk)
            if self._scores is not None:
                self._scores.add(chunk, small)
            if self._detector is not None:
                self._detector.add(small)
            passed = self._decided
            self._decided = self._detector.decided if self._detector else passed + len(chunk)
            self._note_shots()
            ready = self._decided - passed
            if ready:
                yield held[:ready]
            held = held[ready:]
        if self._detector is not None:
            self._detector.finalize()
            self._decided = self._detector.decided
            self._note_shots()
        if held is not None and len(held):
            yield held

    def _note_shots(self) -> None:
        found = self._detector.starts if self._detector else []
        if len(found) + len(self._takes) > len(self.shot_starts):
            self.shot_starts[:] = sorted({*found, *self._takes} - {0})

    def judge(self, start: int, length: int) -> Verdict:
        """The verdict on the window of `length` frames from `start`.

        Raises:
            ValueError: not all of them are decided.
        """
        if start < 0 or length < 1 or start + length > self._decided:
            raise ValueError(f"frames {start} ... {start + length} of {self._decided} decided ones")
        shot = bisect_right(self.shot_starts, start)
        if self._scores is None:
            return Verdict(shot, UNSCORED, "")
        config, scores = self._config, self._scores.window(start, length)
        refusals = {
            "min_brightness": scores.brightness < config.min_brightness,
            "min_motion": scores.motion < config.min_motion,
            "max_motion": config.max_motion is not None and scores.motion > config.max_motion,
            "max_flash": scores.flash > config.max_flash,
            "min_sharpness": scores.sharpness < config.min_sharpness,
        }
        return Verdict(shot, scores, next((name for name, refuses in refusals.items() if refuses), ""))


class FrameScores:
    """Keeps 20 bytes per frame and scores any window of the frames added."""

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._brightness = array("f")
        self._motion = array("f")
        self._sharpness = array("f")
        self._hashes = array("Q")
        self._last: Luma | None = None

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, frames: Frames, small: Frames) -> None:
        """Add the next frames [n, H, W, 3] and their thumbnails."""
        gray = luma(small)
        before = gray[:1] if self._last is None else self._last[None]
        means = gray.sum(axis=(1, 2), dtype=np.int64) / (255 * gray[0].size)
        self._brightness.frombytes(means.astype(np.float32).tobytes())
        self._motion.frombytes(motion(np.concatenate([before, gray])).tobytes())
        self._sharpness.frombytes(sharpness(frames).tobytes())
        self._hashes.frombytes(perceptual_hashes(gray).tobytes())
        self._last = gray[-1]

    def window(self, start: int, length: int) -> Scores:
        """Scores of the frames start ... start + length - 1.

        The change into the window's first frame does not count; a window of one frame has no motion.
        """
        stop = start + length
        levels = np.array(self._brightness[start:stop], np.float64)
        steps = np.array(self._motion[start + 1 : stop], np.float64)
        picks = (start, start + length // 2, stop - 1)
        return Scores(
            brightness=float(levels.mean()),
            motion=float(steps.mean() * self._fps) if length > 1 else 0.0,
            flash=float(np.abs(np.diff(levels)).max(initial=0.0)),
            sharpness=float(np.array(self._sharpness[start:stop], np.float64).mean()),
            fingerprint=np.array([self._hashes[i] for i in picks], "<u8").tobytes(),
        )


def thumbnails(frames: Frames) -> Frames:
    """Frames [n, H, W, 3] averaged down to [n, THUMBNAIL, THUMBNAIL, 3]."""
    size, box = (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX
    small = [Image.fromarray(frame).resize(size, box, reducing_gap=2.0) for frame in frames]
    return np.stack([np.asarray(picture) for picture in small])


def motion(gray: Luma) -> NDArray[np.float32]:
    """Mean change [n - 1] of a pixel's luma, 0 ... 1, from each of n pictures [n, h, w] to the next.

    The mean over the picture is taken out of the change, so that a change of the light is no motion.
    """
    size = gray[0].size
    change = np.diff(gray, axis=0).astype(np.int64)
    own = size * change - change.sum(axis=(1, 2), keepdims=True)
    means: NDArray[np.float32] = (np.abs(own).sum(axis=(1, 2)) / (255 * size**2)).astype(np.float32)
    return means


def sharpness(frames: Frames) -> NDArray[np.float32]:
    """Share of fine detail [n] in frames [n, H, W, 3]: what a blur over BLUR pixels would take away.

    The complement of the blur measure of Crete et al. (2007): with D the difference of neighbouring pixels
    and B the same after a box blur, sum(max(D - B, 0)) / sum(D) over rows and columns. An edge of one pixel
    has 8/9, a slope longer than the blur 0, and so has a frame without detail.
    """
    height, width = frames.shape[1:3]
    rows = luma(frames[:, :: -(-height // LINES)])
    columns = luma(frames[:, :, :: -(-width // LINES)]).swapaxes(1, 2)
    fine, whole = (a + b for a, b in zip(_detail(rows), _detail(columns), strict=True))
    shares: NDArray[np.float32] = (fine / np.maximum(whole, 1)).astype(np.float32)
    return shares


def _detail(lines: Luma) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """BLUR times the sums of max(D - B, 0) and of D [n] along lines [n, m, length]."""
    half = BLUR // 2
    if lines.shape[2] <= BLUR:
        return np.zeros(len(lines), np.int64), np.zeros(len(lines), np.int64)
    steps = np.abs(lines[:, :, half + 1 : -half] - lines[:, :, half : -half - 1])
    steps = BLUR * np.maximum(steps - NOISE, 0)
    blurred = np.abs(lines[:, :, BLUR:] - lines[:, :, :-BLUR])
    fine = np.maximum(steps - blurred, 0)
    return fine.sum(axis=(1, 2), dtype=np.int64), steps.sum(axis=(1, 2), dtype=np.int64)


def perceptual_hashes(gray: Luma) -> NDArray[np.uint64]:
    """Hash [n] of the luma of thumbnails [n, 32, 32]: the signs of the slowest cosine waves, one bit each.

    The mean is one of the waves; its bit only says that the picture is not black.
    """
    waves = _WAVES @ gray.astype(np.float64) @ _WAVES.T
    bits = (waves > _FAINT).reshape(len(gray), HASH_SIDE**2)
    return np.packbits(bits, axis=1).view("<u8").astype(np.uint64)[:, 0]


def aspect_of(width: int, height: int) -> str:
    """Name of the nearest aspect ratio on a logarithmic scale."""
    return min(ASPECTS, key=lambda name: abs(math.log(width / height / ASPECTS[name])))


def video_refusal(config: CurationConfig, width: int, height: int, seconds: float) -> str:
    """Why a video of this size (upright, before cropping) is refused; empty when it is not."""
    if seconds < config.min_seconds:
        return f"{seconds:.2f} s, data.curation.min_seconds is {config.min_seconds:g}"
    aspect = aspect_of(width, height)
    if config.aspects and aspect not in config.aspects:
        return f"{width}x{height} is {aspect}, data.curation.aspects are {', '.join(config.aspects)}"
    return ""


def check_curation(config: CurationConfig) -> None:
    """Refuse settings that no video can satisfy, or that mean nothing.

    Raises:
        ConfigError: names the first fault.
    """
    distance = config.duplicate_distance
    low_motion, high_motion = config.min_motion, config.max_motion
    faults = {}
    if high_motion is not None and not high_motion > low_motion:
        faults["max_motion"] = "Set it above data.curation.min_motion, or to null"
    if not config.cut_threshold > 1:
        faults["cut_threshold"] = "Set it above 1; 4.5 is usual"
    if set(config.aspects) - set(ASPECTS):
        faults["aspects"] = f"Choose among {', '.join(ASPECTS)}"
    if distance is not None and not 0 <= distance <= MOST_DISTANCE:
        faults["duplicate_distance"] = f"Set it to 0 ... {MOST_DISTANCE} bits, or to null"
    if not config.scores:
        changed = (name for name in NEED_SCORES if getattr(config, name) != getattr(CurationConfig(), name))
        faults |= dict.fromkeys(changed, "Set data.curation.scores to true, which it needs")
    if config.duplicates_across and distance is None:
        faults["duplicates_across"] = "Set data.curation.duplicate_distance too, such as 6"
    if faults:
        name, remedy = next(iter(faults.items()))
        raise ConfigError(f"data.curation.{name} = {getattr(config, name)}", remedy)
