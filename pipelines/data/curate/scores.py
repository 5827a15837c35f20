"""Figures of a window's pictures, from a few numbers a frame that are kept for the whole video.

Whole numbers are summed wherever frames are, so that no figure depends on how the frames arrived.
"""

from array import array
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Pixels of the small picture from which all but sharpness is read; its aspect ratio is not kept."""
LINES = 32
"""About so many rows and columns of a frame are looked at for sharpness."""
NOISE = 2
"""Differences between neighbouring pixels up to this, of 255, count as none."""
BLUR = 9
"""Pixels of the blur that a sharp picture would not stand."""
HASH_SIDE = 8
"""A perceptual hash holds a bit for each of the 8x8 slowest waves."""

Frames = NDArray[np.uint8]
Luma = NDArray[np.int16]
Floats = NDArray[np.float32]

_WAVES = np.rint(1024 * np.cos(np.pi * np.outer(np.arange(HASH_SIDE), 2 * np.arange(SIDE) + 1) / (2 * SIDE)))
_FAINT = 0.25 * (SIDE / 2) ** 2 * 1024**2
"""A wave of a quarter of a grey level: below it a bit would be the codec's."""


class Scores(NamedTuple):
    """Figures of one window; scales as in CurationConfig."""

    brightness: float
    """Mean, 0 ... 1."""
    motion: float
    """Mean change of a pixel's brightness in a second, the whole picture's change taken out; 0 or more."""
    flash: float
    """Largest step of the mean brightness from one frame to the next, 0 ... 1."""
    sharpness: float
    """Mean of the frames' share of fine detail, 0 ... 1; a frame of one colour has 0."""
    fingerprint: bytes
    """Perceptual hashes of the first, the middle and the last frame: 3 numbers of 64 bits, little endian."""


class FrameScores:
    """Keeps 20 bytes a frame and gives the scores of any window of the frames so far.

    Args:
        fps: frames a second.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._brightness = array("f")
        self._motion = array("f")
        self._sharpness = array("f")
        self._hashes = array("Q")
        self._last: Luma | None = None

    def __len__(self) -> int:
        return len(self._hashes)

    def see(self, frames: Frames, pictures: Frames) -> None:
        """Take the next frames [n, H, W, 3] and their small pictures [n, SIDE, SIDE, 3]."""
        gray = luma(pictures)
        before = gray[:1] if self._last is None else self._last[None]
        self._brightness.frombytes(brightness(gray).tobytes())
        self._motion.frombytes(motion(np.concatenate([before, gray])).tobytes())
        self._sharpness.frombytes(sharpness(frames).tobytes())
        self._hashes.frombytes(perceptual_hashes(gray).tobytes())
        self._last = gray[-1]

    def window(self, start: int, length: int) -> Scores:
        """Scores of the frames start ... start + length - 1, all of them seen.

        The change from the frame before the window is no part of it; a window of one frame has no motion.
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


def small_pictures(frames: Frames) -> Frames:
    """[n, SIDE, SIDE, 3]: each pixel the mean of the pixels it stands for."""
    box = Image.Resampling.BOX
    small = [Image.fromarray(frame).resize((SIDE, SIDE), box, reducing_gap=2.0) for frame in frames]
    return np.stack([np.asarray(picture) for picture in small])


def luma(rgb: Frames) -> Luma:
    """Brightness of pixels [..., 3], 0 ... 255, by the weights of BT.601."""
    wide = rgb.astype(np.uint16)
    weighted = wide[..., 0] * 77 + wide[..., 1] * 150 + wide[..., 2] * 29
    return (weighted >> 8).astype(np.int16)


def brightness(gray: Luma) -> Floats:
    """Mean luma [n] of pictures [n, h, w], 0 ... 1."""
    sums = gray.sum(axis=(1, 2), dtype=np.int64)
    means: Floats = (sums / (255 * gray[0].size)).astype(np.float32)
    return means


def motion(gray: Luma) -> Floats:
    """Mean change [n - 1] of a pixel's luma, 0 ... 1, from each of n pictures [n, h, w] to the next.

    The mean over the picture is taken out of the change, so that a light that changes is no motion.
    """
    size = gray[0].size
    change = np.diff(gray, axis=0).astype(np.int64)
    own = size * change - change.sum(axis=(1, 2), keepdims=True)
    means: Floats = (np.abs(own).sum(axis=(1, 2)) / (255 * size**2)).astype(np.float32)
    return means


def sharpness(frames: Frames) -> Floats:
    """Share of fine detail [n] of frames [n, H, W, 3]: what one more blur over BLUR pixels would take.

    The measure of blur of Crete et al. (2007), turned round: D is the difference of neighbouring pixels, B
    the same after a box blur, and the figure is sum(max(D - B, 0)) / sum(D) over rows and columns. An edge of
    one pixel has 8/9, a slope longer than the blur 0. It is 0 where there is no detail at all.
    """
    height, width = frames.shape[1:3]
    rows = luma(frames[:, :: -(-height // LINES)])
    columns = luma(frames[:, :, :: -(-width // LINES)]).swapaxes(1, 2)
    fine, whole = (a + b for a, b in zip(_detail(rows), _detail(columns), strict=True))
    shares: Floats = (fine / np.maximum(whole, 1)).astype(np.float32)
    return shares


def _detail(lines: Luma) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """BLUR times the sums (fine, whole) [n] of the differences along lines [n, m, length]."""
    half = BLUR // 2
    if lines.shape[2] <= BLUR:
        return np.zeros(len(lines), np.int64), np.zeros(len(lines), np.int64)
    steps = np.abs(lines[:, :, half + 1 : -half] - lines[:, :, half : -half - 1])
    steps = BLUR * np.maximum(steps - NOISE, 0)
    blurred = np.abs(lines[:, :, BLUR:] - lines[:, :, :-BLUR])
    fine = np.maximum(steps - blurred, 0)
    return fine.sum(axis=(1, 2), dtype=np.int64), steps.sum(axis=(1, 2), dtype=np.int64)


def perceptual_hashes(gray: Luma) -> NDArray[np.uint64]:
    """Hash [n] of pictures [n, SIDE, SIDE]: which of the slowest cosine waves add light, one bit each.

    The mean is one of the waves; its bit says only that the picture is not black.
    """
    waves = _WAVES @ gray.astype(np.float64) @ _WAVES.T
    bits = (waves > _FAINT).reshape(len(gray), HASH_SIDE**2)
    return np.packbits(bits, axis=1).view("<u8").astype(np.uint64)[:, 0]
