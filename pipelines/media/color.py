"""Luma: the brightness of RGB pixels by the weights of ITU-R BT.601, which our MP4 files use too."""

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Frames = NDArray[np.uint8]
"""RGB, [..., height, width, 3]; of a video [F, H, W, 3]."""
Luma = NDArray[np.int16]

BT601 = (0.299, 0.587, 0.114)
"""Weights of red, green and blue."""


@overload
def luma(rgb: Frames) -> Luma: ...
@overload
def luma(rgb: "Tensor") -> "Tensor": ...
def luma(rgb: Any) -> Any:
    """Luma [...] of pixels [..., 3], on their scale.

    The type decides how it is computed. Float tensors give 0.299 R + 0.587 G + 0.114 B. uint8 arrays give
    (77 R + 150 G + 29 B) / 256 rounded down, as int16: whole numbers have the same sum in any order.
    """
    if isinstance(rgb, np.ndarray):
        wide = rgb.astype(np.uint16)
        return ((wide[..., 0] * 77 + wide[..., 1] * 150 + wide[..., 2] * 29) >> 8).astype(np.int16)
    red, green, blue = BT601
    return red * rgb[..., 0] + green * rgb[..., 1] + blue * rgb[..., 2]
