"""Where the shots of a video begin, frame by frame as it arrives, by PySceneDetect's adaptive detector.

The adaptive detector asks whether a frame changed far more than its neighbours did. So a pan or a fade is no
cut, and it looks only LOOK_AHEAD frames ahead: the library's other detectors hold cuts apart by a least
length of a shot, which hides cuts, or merge them over an unlimited time. No file is opened.
"""

import importlib.util
from collections import deque
from typing import Any

import numpy as np

from models.errors import ConfigError
from pipelines.media.color import Frames

LOOK_AHEAD = 2
"""Frames after a frame that decide whether a shot starts with it."""
LEAST_CHANGE = 15.0
"""Mean change of hue, saturation and value, of 255, below which nothing is a cut."""
_RATE = 25.0
"""The detector counts frames, but its timecodes must have some rate."""


def require_detector() -> None:
    """See that the detector is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if any(importlib.util.find_spec(name) is None for name in ("cv2", "scenedetect")):
        raise ConfigError(
            "data.curation.cuts needs PySceneDetect and OpenCV, which are not installed",
            "pip install -e '.[curate]', or set data.curation.cuts=false",
        )


class ShotDetector:
    """Finds the frames with which shots start.

    Args:
        threshold: see CurationConfig.cut_threshold.
        repeats: how often in a row a frame may merely repeat the one before, as happens when a slow video is
            brought to a higher rate. Such repeats are skipped, or every change would stand out as a cut.

    Raises:
        ConfigError: the library is not installed.
    """

    def __init__(self, threshold: float, repeats: int = 0) -> None:
        require_detector()
        import cv2
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector

        cv2.setNumThreads(1)
        self._detector = AdaptiveDetector(
            adaptive_threshold=threshold,
            min_scene_len=0,
            window_width=LOOK_AHEAD,
            min_content_val=LEAST_CHANGE,
        )
        self._timecode: Any = FrameTimecode
        self.starts: list[int] = []
        """First frame of every shot but the first, rising; complete below `decided`."""
        self._count = 0
        self._repeats = repeats
        self._skipped = 0
        self._last: Frames | None = None
        self._waiting: deque[int] = deque(maxlen=LOOK_AHEAD)

    @property
    def decided(self) -> int:
        """Number of frames of which it is known whether a shot starts with them."""
        return self._waiting[0] if self._waiting else self._count

    def add(self, thumbnails: Frames) -> None:
        """Add the next frames as thumbnails [n, h, w, 3] RGB."""
        for picture in np.ascontiguousarray(thumbnails[..., ::-1]):
            if self._last is None:
                self._feed(0, picture, times=LOOK_AHEAD)
            elif self._skipped < self._repeats and np.array_equal(picture, self._last):
                self._skipped += 1
                self._count += 1
                continue
            self._feed(self._count, picture)
            self._count += 1

    def finalize(self) -> None:
        """Decide the last frames: no more follow."""
        if self._last is not None:
            self._feed(self._count, self._last, times=LOOK_AHEAD)
        self._waiting.clear()

    def _feed(self, number: int, picture: Frames, times: int = 1) -> None:
        for _ in range(times):
            cuts = self._detector.process_frame(self._timecode(number, fps=_RATE), picture)
            self.starts += [cut.frame_num for cut in cuts]
            self._waiting.append(number)
        self._last, self._skipped = picture, 0
