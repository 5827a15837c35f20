"""Still pictures, inside the fence: a clip may begin with one."""

import os

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.data.config import LimitsConfig
from pipelines.data.decode.protocol import Probe
from pipelines.data.types import Rejected
from pipelines.media.color import Frames

FORMATS = ("PNG", "JPEG", "WEBP")


def open_still(path: str, limits: LimitsConfig) -> tuple[Probe, Frames]:
    """What is known of a picture, and its pixels [H, W, 3] as a viewer shows them, without transparency.

    Raises:
        Rejected: it is no picture of FORMATS, is damaged, or asks for more than `limits`.
    """
    size = os.stat(path).st_size
    if size > limits.max_bytes:
        raise Rejected("limits", f"{size} bytes, more than data.limits.max_bytes = {limits.max_bytes}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > limits.max_pixels:
                pixels = f"{image.width} x {image.height} pixels"
                raise Rejected("limits", f"{pixels}, more than data.limits.max_pixels = {limits.max_pixels}")
            upright = ImageOps.exif_transpose(image)
            frame = np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise Rejected("bytes", f"not a picture: none of {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise Rejected("decode", f"the picture is damaged: {error}") from error
    height, width = frame.shape[:2]
    probe = Probe(
        reader="pillow", reader_reason="", applied="", width=width, height=height, fps=1.0, seconds=1.0
    )
    return probe, frame
