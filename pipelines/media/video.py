"""Video files from frames and frames from video files. Frames are uint8 RGB [F, H, W, 3].

H.264 in yuv420p by BT.601, which every browser plays. RGB goes in through the accurate conversion, which
has no bias; frames come out through the default one, as every reader based on FFmpeg gives them (about one
code value too dark), so that what is measured here is what training reads.
"""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

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


class Encoder:
    """An H.264 MP4 that frames are added to; equal frames give equal bytes. Close it.

    Args:
        target: path, or a seekable file object (then without `faststart`).
        fps: frames per second.
        crf: quality of libx264; smaller is better and larger.
        gop: frames from one key frame to the next.
        faststart: put the index in front, so that a browser plays while it loads.
        streamed: in place of one index write one with each group of frames, and every frame at once, so that
            what is there plays while the rest is made.
    """

    def __init__(
        self,
        target: str | BinaryIO,
        fps: float,
        *,
        crf: int = 18,
        gop: int = 16,
        preset: str = "veryfast",
        faststart: bool = True,
        streamed: bool = False,
    ) -> None:
        flags = {"movflags": "+faststart"} if faststart else {}
        if streamed:
            flags = {"movflags": "+frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(target, "w", format="mp4", options={"fflags": "+bitexact"} | flags)
        stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.options = {"crf": str(crf), "preset": preset, "g": str(gop), "threads": "1"} | REPEATABLE
        stream.options |= {"tune": "zerolatency"} if streamed else {}
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT601
        context.color_range = LIMITED_RANGE
        self._stream, self._convert = stream, VideoReformatter()
        self._size: tuple[int, ...] = ()

    def add(self, frames: Iterable[Frames]) -> None:
        """Write frames [H, W, 3] after those before.

        Raises:
            DataError: frames of different shapes.
            ConfigError: height or width is odd.
        """
        for frame in frames:
            if not self._size:
                height, width = frame.shape[:2]
                if height % 2 or width % 2:
                    raise ConfigError(
                        f"frames of {height} x {width} pixels cannot be written as yuv420p", "Use even sides"
                    )
                self._stream.height, self._stream.width = height, width
                self._size = height, width, 3
            if frame.shape != self._size or frame.dtype != np.uint8:
                odd = f"a frame of shape {frame.shape} and type {frame.dtype}"
                raise DataError(
                    f"{odd} in a video of {self._size[0]} x {self._size[1]} pixels",
                    "Give uint8 RGB frames of one shape",
                )
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            shown = self._convert.reformat(picture, format="yuv420p", interpolation=ACCURATE)
            self._container.mux(self._stream.encode(shown))

    def finish(self) -> None:
        """Write what is held back, and the index.

        Raises:
            DataError: no frames.
        """
        if not self._size:
            raise DataError("a video of no frames cannot be written", "Give at least one frame")
        self._container.mux(self._stream.encode())

    def close(self) -> None:
        """Let go of the target."""
        self._container.close()


def encode(target: str | BinaryIO, frames: Iterable[Frames], fps: float, **options: Any) -> None:
    """Write frames [H, W, 3] as an H.264 MP4, with the options of `Encoder`.

    Raises:
        DataError: no frames, or frames of different shapes.
        ConfigError: height or width is odd.
    """
    with closing(Encoder(target, fps, **options)) as encoder:
        encoder.add(frames)
        encoder.finish()


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


class StreamedMp4:
    """A browser-playable MP4 whose beginning plays while its end is still being made. Finish it.

    At the end it is written anew with one index in front, frames as they are, and put in the place of the
    first, as players like it best.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self._path = Path(path)
        self._encoder = Encoder(str(self._path), fps, gop=max(1, round(fps)), streamed=True)

    def add(self, frames: Iterable[Frames]) -> None:
        """Write frames [H, W, 3], which can be played from now on; raises as `Encoder.add`."""
        self._encoder.add(frames)

    def finish(self) -> None:
        """Raises as `Encoder.finish`."""
        with closing(self._encoder):
            self._encoder.finish()
        copy_mp4(self._path, self._path)


def copy_mp4(source: str | Path, target: str | Path, frames: int | None = None) -> None:
    """Write an MP4 of ours anew, its frames as they are and its index in front; aside, then in place.

    Args:
        source: as `Encoder` writes them.
        target: may be the source.
        frames: the first so many; None is all.
    """
    aside = Path(target).with_name(f".{Path(target).name}.part")
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    try:
        with (
            av.open(str(source)) as made,
            av.open(str(aside), "w", format="mp4", options=options) as whole,
        ):
            stream = whole.add_stream_from_template(made.streams.video[0])
            packets = (packet for packet in made.demux(video=0) if packet.dts is not None)
            for packet in itertools.islice(packets, frames):
                packet.stream = stream
                whole.mux(packet)
        os.replace(aside, target)
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
