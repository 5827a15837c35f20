"""Video files and pictures out of frames, and frames out of files. Frames are uint8 RGB [H, W, 3].

H.264 in yuv420p by BT.601, which every browser plays. RGB goes in through the accurate conversion, which
has no bias; frames come out through the default one, as every reader based on FFmpeg gives them (about one
code value too dark), so that what is measured here is what training reads.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from models.errors import ConfigError, DataError

Frames = NDArray[np.uint8]

ACCURATE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
REPEATABLE = {"x264-params": "mbtree=0"}
"""Without it libx264 decides on memory it never wrote, and most frame sizes give other bytes in every run."""
BT601, LIMITED_RANGE = 6, 1
PAPER, INK, FAINT = (17, 18, 24), (232, 232, 240), (140, 142, 156)


def encode(
    target: str | BinaryIO,
    frames: Iterable[Frames],
    fps: float,
    *,
    crf: int = 18,
    gop: int = 16,
    preset: str = "veryfast",
    faststart: bool = True,
) -> int:
    """Write frames as an H.264 MP4 and count them; the same frames give the same bytes.

    Args:
        target: path, or a seekable file object (then without faststart).
        crf: quality of libx264; smaller is better and larger.
        gop: frames from one key frame to the next.
        faststart: put the index in front, so that a browser plays while it loads.

    Raises:
        DataError: no frames, or frames of different shapes.
        ConfigError: height or width is odd.
    """
    count = 0
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if faststart else {})
    with av.open(target, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.options = {"crf": str(crf), "preset": preset, "g": str(gop), "threads": "1"} | REPEATABLE
        stream.pix_fmt = "yuv420p"
        convert = VideoReformatter()
        for frame in frames:
            if count == 0:
                stream.height, stream.width = _even(frame)
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = BT601
                context.color_range = LIMITED_RANGE
            picture = _picture(frame, stream.height, stream.width)
            container.mux(stream.encode(convert.reformat(picture, format="yuv420p", interpolation=ACCURATE)))
            count += 1
        if count == 0:
            raise DataError("a video of no frames cannot be written", "Give at least one frame")
        container.mux(stream.encode())
    return count


def decode(source: str | BinaryIO) -> Iterator[Frames]:
    """Frames of a video in order, as readers based on FFmpeg convert them.

    Raises:
        DataError: not a video that can be read.
    """
    try:
        with av.open(source) as container:
            convert = VideoReformatter()
            for frame in container.decode(video=0):
                yield np.asarray(convert.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(
            f"{source} cannot be read as a video: {error}", "Check that the file is whole"
        ) from error


def write_mp4(path: str | Path, frames: Iterable[Frames], fps: float, crf: int = 18) -> int:
    """Write a browser-playable MP4 aside, then put it in place; return the number of frames.

    Raises: as `encode`; then the path is left as it was.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    try:
        count = encode(str(aside), frames, fps, crf=crf)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return count


def read_back(path: str | Path) -> Frames:
    """All frames of a file, [F, H, W, 3]."""
    return np.stack(list(decode(str(path))))


def through_mp4(frames: Frames, fps: float, crf: int) -> Frames:
    """What is left of frames [F, H, W, 3] after an MP4 of this quality, without a file."""
    memory = io.BytesIO()
    encode(memory, frames, fps, crf=crf, faststart=False)
    memory.seek(0)
    return np.stack(list(decode(memory)))


def write_gif(path: str | Path, frames: Iterable[Frames], fps: float, scale: int = 1) -> int:
    """Write an endless GIF of one palette, enlarged `scale` times; return the number of frames.

    Raises:
        DataError: no frames.
    """
    pictures = [_enlarged(Image.fromarray(frame), scale) for frame in frames]
    if not pictures:
        raise DataError("a GIF of no frames cannot be written", "Give at least one frame")
    palette = _palette(pictures)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    ends = [round(100.0 * (index + 1) / fps) * 10 for index in range(len(indexed))]
    durations = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    aside = Path(path).with_name(f".{Path(path).name}.part")
    indexed[0].save(aside, "GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0)
    os.replace(aside, path)
    return len(indexed)


def contact_sheet(
    rows: Sequence[tuple[str, Frames]], columns: Sequence[int], scale: int = 1, gap: int = 3
) -> Image.Image:
    """Chosen frames of several videos in rows, with a label in front and frame numbers above.

    Args:
        rows: (label, frames [F, H, W, 3]); frames of one shape. A label may have several lines.
        columns: indices of frames; a cell whose video is shorter stays empty.
        scale: how many times the frames are enlarged.

    Raises:
        DataError: no rows or no columns.
    """
    if not rows or not columns:
        raise DataError(
            "a contact sheet needs rows and columns", "Give at least one video and one frame index"
        )
    height, width = (scale * side for side in rows[0][1].shape[1:3])
    large, little = max(12, height // 9), max(10, height // 12)
    font, small = ImageFont.load_default(large), ImageFont.load_default(little)
    sketch = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    margin = int(max(sketch.multiline_textbbox((0, 0), label, font=font)[2] for label, _ in rows)) + 6 * gap
    top = little + 4 * gap
    sheet = Image.new("RGB", (margin + len(columns) * (width + gap), top + len(rows) * (height + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(columns):
        middle = margin + place * (width + gap) + width // 2
        draw.text((middle, top // 2), str(index), fill=FAINT, font=small, anchor="mm")
    for line, (label, frames) in enumerate(rows):
        y = top + line * (height + gap)
        draw.multiline_text((2 * gap, y + height // 2), label, fill=INK, font=font, anchor="lm")
        for place, index in enumerate(columns):
            if index < len(frames):
                sheet.paste(
                    _enlarged(Image.fromarray(frames[index]), scale), (margin + place * (width + gap), y)
                )
    return sheet


def _even(frame: Frames) -> tuple[int, int]:
    """Height and width of a frame that 4:2:0 can hold."""
    height, width = int(frame.shape[0]), int(frame.shape[1])
    if height % 2 or width % 2:
        raise ConfigError(
            f"frames of {height} x {width} pixels cannot be written as yuv420p", "Use even sides"
        )
    return height, width


def _picture(frame: Frames, height: int, width: int) -> av.VideoFrame:
    """A frame as PyAV wants it."""
    if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
        raise DataError(
            f"a frame of shape {frame.shape} and type {frame.dtype} in a video of {height} x {width} pixels",
            "Give uint8 RGB frames of one shape",
        )
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")


def _enlarged(picture: Image.Image, scale: int) -> Image.Image:
    """The picture `scale` times as large."""
    if scale == 1:
        return picture
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)


def _palette(pictures: list[Image.Image]) -> Image.Image:
    """256 colours for up to 12 pictures spread over all."""
    chosen = pictures[:: max(1, len(pictures) // 12)]
    strip = Image.new("RGB", (chosen[0].width * len(chosen), chosen[0].height))
    for place, picture in enumerate(chosen):
        strip.paste(picture, (place * picture.width, 0))
    return strip.quantize(256, method=Image.Quantize.MEDIANCUT)
