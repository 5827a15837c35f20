"""Hard cuts of a video that arrives in chunks, by PySceneDetect's adaptive detector. It opens no file.

The adaptive detector asks whether a frame changed far more than its neighbours did. So a pan or a fade is no
cut, and it looks only LOOK_AHEAD pictures ahead: the other detectors hold cuts apart by a least length of a
shot, which hides cuts, or merge them over a time without end.
"""

import importlib.util
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError

LOOK_AHEAD = 2
"""Pictures after a frame that decide whether a shot starts with it."""
LEAST_CHANGE = 15.0
"""Mean change of hue, saturation and value, of 255, below which nothing is a cut."""


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


class CutDetector:
    """Finds the frames with which shots start.

    Args:
        threshold: see CurationConfig.cut_threshold.
        repeats: how often in a row a frame may only repeat the one before, as it does when a slow video was
            brought to a higher rate. Such repeats are passed over, or each change would stand out as a cut.

    Raises:
        ConfigError: the library is missing.
    """

    def __init__(self, threshold: float, repeats: int = 0) -> None:
        self.cuts: list[int] = []
        """First frame of every shot after the first, rising; complete below `decided`."""
        self.seen = 0
        """Frames seen."""
        self._process = _detector(threshold)
        self._repeats = repeats
        self._passed_over = 0
        self._last: NDArray[np.uint8] | None = None
        self._waiting: deque[int] = deque(maxlen=LOOK_AHEAD)

    @property
    def decided(self) -> int:
        """Frames of which is known whether a shot starts with them."""
        return self._waiting[0] if self._waiting else self.seen

    def see(self, pictures: NDArray[np.uint8]) -> None:
        """Take the next frames, small: [n, h, w, 3] RGB."""
        for picture in np.ascontiguousarray(pictures[..., ::-1]):
            if self._last is None:
                self._feed(0, picture, times=LOOK_AHEAD)
            if self._is_repeat(picture):
                self._passed_over += 1
            else:
                self._feed(self.seen, picture)
            self.seen += 1

    def finish(self) -> None:
        """There are no more frames: decide the last ones."""
        if self._last is not None:
            self._feed(self.seen, self._last, times=LOOK_AHEAD)
        self._waiting.clear()

    def _is_repeat(self, picture: NDArray[np.uint8]) -> bool:
        if self._last is None or self.seen == 0 or self._passed_over == self._repeats:
            return False
        return np.array_equal(picture, self._last)

    def _feed(self, number: int, picture: NDArray[np.uint8], times: int = 1) -> None:
        for _ in range(times):
            self.cuts += self._process(number, picture)
            self._waiting.append(number)
        self._last, self._passed_over = picture, 0


def _detector(threshold: float) -> Any:
    """(number, BGR picture) -> numbers of the cuts found now."""
    require_detector()
    import cv2
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    cv2.setNumThreads(1)
    detector = AdaptiveDetector(
        adaptive_threshold=threshold,
        min_scene_len=0,
        window_width=LOOK_AHEAD,
        min_content_val=LEAST_CHANGE,
    )
    rate = 25.0  # the detector counts frames; a timecode must have some rate

    def process(number: int, picture: NDArray[np.uint8]) -> list[int]:
        found = detector.process_frame(FrameTimecode(number, fps=rate), picture)
        return [cut.frame_num for cut in found]

    return process
