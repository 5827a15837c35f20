"""Video files from frames and frames from video files. Frames are uint8 RGB [F, H, W, 3].

H.264 in yuv420p by BT.601, which every browser plays. RGB goes in through the accurate conversion, which
has no bias; frames come out through the default one, as every reader based on FFmpeg gives them (about one
code value too dark), so that what is measured here is what training reads.
"""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from models.errors import ConfigError, DataError
from pipelines.media.color import Frames
from pipelines.storage import Storage, temporary_folder

ACCURATE = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
REPEATABLE = {"x264-params": "mbtree=0"}
"""Without it libx264 decides on memory it never wrote, and most frame sizes give other bytes in every run."""
BT601, LIMITED_RANGE = 6, 1
"""H.264's codes for the colour space and for luma of 16 ... 235."""


def encode(
    target: str | BinaryIO,
    frames: Iterable[Frames],
    fps: float,
    *,
    crf: int = 18,
    gop: int = 16,
    preset: str = "veryfast",
    faststart: bool = True,
) -> None:
    """Write frames as an H.264 MP4; equal frames give equal bytes.

    Args:
        target: path, or a seekable file object (then without faststart).
        crf: quality of libx264; smaller is better and larger.
        gop: frames from one key frame to the next.
        faststart: put the index in front, so that a browser plays while it loads.

    Raises:
        DataError: no frames, or frames of different shapes.
        ConfigError: height or width is odd.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise DataError("a video of no frames cannot be written", "Give at least one frame")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ConfigError(
            f"frames of {height} x {width} pixels cannot be written as yuv420p", "Use even sides"
        )
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if faststart else {})
    with av.open(target, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.options = {"crf": str(crf), "preset": preset, "g": str(gop), "threads": "1"} | REPEATABLE
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = height, width
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT601
        context.color_range = LIMITED_RANGE
        convert = VideoReformatter()
        for frame in itertools.chain([first], frames):
            if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
                odd = f"a frame of shape {frame.shape} and type {frame.dtype}"
                raise DataError(
                    f"{odd} in a video of {height} x {width} pixels", "Give uint8 RGB frames of one shape"
                )
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(convert.reformat(picture, format="yuv420p", interpolation=ACCURATE)))
        container.mux(stream.encode())


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


def write_mp4(path: str | Path, frames: Iterable[Frames], fps: float, crf: int = 18) -> None:
    """Write a browser-playable MP4 aside, then put it in place.

    Raises: as `encode`; then the path is left as it was.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.part")
    try:
        encode(str(aside), frames, fps, crf=crf)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_mp4(path: str | Path) -> Frames:
    """All frames of a file, [F, H, W, 3]."""
    return np.stack(list(decode(str(path))))


def store_mp4(storage: Storage, name: str, frames: Iterable[Frames], fps: float) -> None:
    with temporary_folder() as folder:
        local = folder / "clip.mp4"
        encode(str(local), frames, fps)
        storage.write_bytes(name, local.read_bytes())


def through_mp4(frames: Frames, fps: float, crf: int) -> Frames:
    """What is left of frames [F, H, W, 3] after an MP4 of this quality, without a file."""
    memory = io.BytesIO()
    encode(memory, frames, fps, crf=crf, faststart=False)
    memory.seek(0)
    return np.stack(list(decode(memory)))


def write_gif(path: str | Path, frames: Iterable[Frames], fps: float) -> None:
    """Write an endless GIF of one palette.

    Raises:
        DataError: no frames.
    """
    pictures = [Image.fromarray(frame) for frame in frames]
    if not pictures:
        raise DataError("a GIF of no frames cannot be written", "Give at least one frame")
    sample = pictures[:: max(1, len(pictures) // 12)]
    strip = Image.new("RGB", (sample[0].width * len(sample), sample[0].height))
    for place, picture in enumerate(sample):
        strip.paste(picture, (place * picture.width, 0))
    palette = strip.quantize(256, method=Image.Quantize.MEDIANCUT)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]
    ends = [round(100.0 * (index + 1) / fps) * 10 for index in range(len(indexed))]
    durations = [end - start for start, end in itertools.pairwise([0, *ends])]
    aside = Path(path).with_name(f".{Path(path).name}.part")
    indexed[0].save(aside, "GIF", save_all=True, append_images=indexed[1:], duration=durations, loop=0)
    os.replace(aside, path)
