"""Opening and reading one video in order. Runs only inside the decoding process (worker.py).

PyAV looks at every packet before a frame is decoded. decord then reads the frames if its account of the file
agrees with the packets; else PyAV does. decord alone repeats frames where a file has an edit list,
invents frames and times in some AVI files, hangs at the end of MPEG-TS, and gives garbage for some widths,
all without an error; of a long video it holds as many frames as its thread has fallen behind.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import av
import decord
import numpy as np
from av.video.reformatter import VideoReformatter

from pipelines.data.config import LimitsConfig
from pipelines.data.decode.picture import Picture, picture_of, shown
from pipelines.data.decode.protocol import Probe
from pipelines.data.decode.transforms import Timed
from pipelines.data.types import Rejected
from pipelines.media.color import Frames as Frame

LOST_SHARE = 0.1
"""Share of the frames or of the time a file claims that may be missing before it counts as damaged."""
AHEAD_BYTES = 256 << 20
"""Largest video, as pixels, that decord reads: on a busy machine it decodes ahead without a bound."""
DEFAULT_RATE = 25.0
"""Frames per second of a file without a frame rate."""
MOV_ATOMS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"})
HEAD_BYTES = 188 * 3 + 5

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(None)


@dataclass(frozen=True, kw_only=True)
class Header:
    """A video by its packets; sizes are those of a frame as it is stored."""

    container: str
    stream: int
    width: int
    height: int
    rate: float
    """Frames per second."""
    picture: Picture
    times: list[float] = field(repr=False)
    """Seconds from the first visible frame, rising; frames that an edit list hides are left out."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A video that can be read."""

    header: Header
    probe: Probe
    frames: Iterator[Timed]
    """(seconds, rgb [height, width, 3]) in order, upright; pixels have the aspect of header.picture."""


def open_video(path: str, limits: LimitsConfig) -> Opened:
    """Inspect a video, choose its reader and decode the first frame.

    Raises:
        Rejected: it is no video, is damaged, asks for more than `limits`, or neither reader takes it.
    """
    header = inspect(path, limits)
    frames, why = _by_decord(path, header)
    frames = frames if frames is not None else _by_pyav(path, header, limits)
    first = next(frames, None)
    if first is None:
        raise Rejected("decode", "not one frame could be decoded")
    height, width = first[1].shape[:2]
    probe = Probe(
        reader="pyav" if why else "decord",
        reader_reason=why,
        applied=header.picture.applied,
        width=max(1, round(width * header.picture.pixel_aspect)),
        height=height,
        fps=header.rate,
        seconds=header.times[-1] + 1 / header.rate,
    )
    return Opened(header=header, probe=probe, frames=chain([first], frames))


def inspect(path: str, limits: LimitsConfig) -> Header:
    """Read a file's first bytes, then all its packets.

    Raises:
        Rejected: it is no video, is damaged, or asks for more than `limits`.
    """
    size = os.stat(path).st_size
    if size == 0:
        raise Rejected("bytes", "the file is empty")
    if size > limits.max_bytes:
        raise Rejected("limits", f"{size} bytes, more than data.limits.max_bytes = {limits.max_bytes}")
    with open(path, "rb") as file:
        container = container_of(file.read(HEAD_BYTES))
    if container is None:
        raise Rejected("bytes", "the first bytes are of no known video container")
    try:
        with _open(path, container) as video:
            return _inspect_packets(video, container, limits)
    except av.FFmpegError as error:
        raise Rejected("open", _plain(error)) from error


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container that starts with `head` (HEAD_BYTES of it, or the whole of a smaller
    file).

    Playlists, concat scripts and every other text can name further files, local or remote, and a decoder that
    guesses by content follows them. Each container here is binary and holds its own frames.

    Returns: `mov`, `matroska`, `avi`, `ogg`, `mpegts`, `mpeg`, or None for everything else.
    """
    if head[4:8] in MOV_ATOMS:
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"\x00\x00\x01\xba":
        return "mpeg"
    # three sync bytes, 188 bytes apart, or 192 with time codes before each packet
    plain, timed = head[0 : 188 * 3 : 188], head[4 : 192 * 3 : 192]
    return "mpegts" if b"GGG" in (plain, timed) else None


def _open(path: str, container: str) -> "av.container.InputContainer":
    options = {"protocol_whitelist": "file"}
    return av.open(path, format=container, metadata_errors="ignore", options=options)


def _inspect_packets(file: "av.container.InputContainer", container: str, limits: LimitsConfig) -> Header:
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in file.streams.video if not s.disposition & cover and s.width and s.height]
    if not streams:
        raise Rejected("open", "no video stream")
    stream = max(streams, key=lambda s: s.width * s.height)
    if stream.width * stream.height > limits.max_pixels:
        size = f"{stream.width}x{stream.height} pixels"
        raise Rejected("limits", f"{size}, more than data.limits.max_pixels = {limits.max_pixels}")
    times, hidden = _packet_times(file, stream, limits.max_frames)
    if not times:
        raise Rejected("open", "the video stream is empty")
    if container == "mov" and stream.frames > len(times) + hidden:
        raise Rejected("open", f"truncated: {len(times) + hidden} of {stream.frames} frames are there")
    rate = float(stream.average_rate or stream.guessed_rate or 0) or DEFAULT_RATE
    dated = sorted(t for t in times if t is not None)
    if len(dated) < len(times):
        dated = [i / rate for i in range(len(times))]
    seconds = dated[-1] - dated[0]
    claimed = file.duration / av.time_base if container == "matroska" and file.duration else 0.0
    if claimed and claimed - dated[-1] > max(1.0, LOST_SHARE * claimed):
        raise Rejected("open", f"truncated: the pictures end at {dated[-1]:.1f} s of {claimed:.1f} s")
    if seconds > limits.max_seconds:
        raise Rejected(
            "limits", f"{seconds:.0f} s, longer than data.limits.max_seconds = {limits.max_seconds:.0f}"
        )
    return Header(
        container=container,
        stream=stream.index,
        width=stream.width,
        height=stream.height,
        rate=rate,
        picture=picture_of(file, stream),
        times=[t - dated[0] for t in dated],
    )


def _packet_times(
    file: "av.container.InputContainer", stream: "av.VideoStream", max_frames: int
) -> tuple[list[float | None], int]:
    """The time of each visible packet (None: undated), in storage order, and how many are hidden."""
    times: list[float | None] = []
    hidden = 0
    for packet in file.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_discard:
            hidden += 1
        else:
            times.append(None if packet.pts is None else float(packet.pts * packet.time_base))
        if len(times) + hidden > max_frames:
            raise Rejected("limits", f"more than data.limits.max_frames = {max_frames} frames")
    return times, hidden


def _by_decord(path: str, header: Header) -> tuple[Iterator[Timed] | None, str]:
    """A reader by decord, or None and why not."""
    if header.container in ("mpegts", "mpeg"):
        return None, f"decord does not end on {header.container}"
    if header.picture.changes:
        return None, f"decord gives frames as they are stored: {header.picture.changes}"
    pixels = 3 * len(header.times) * header.width * header.height
    if pixels > AHEAD_BYTES:
        return None, f"decord could hold all of its {pixels >> 20} MiB"
    try:
        reader = decord.VideoReader(path, num_threads=1)
        count = len(reader)
        starts = reader.get_frame_timestamp(range(count))[:, 0] if count else np.zeros(0)
    except (decord.DECORDError, RuntimeError, ValueError) as error:
        return None, f"decord cannot open it: {_plain(error)}"
    if count != len(header.times):
        return None, f"decord counts {count} frames, the packets {len(header.times)}"
    drift = np.abs(starts - np.asarray(header.times)).max()
    if not drift < 1.5 / header.rate:
        return None, f"decord's times are off by {drift:.3g} s"
    try:
        first = reader.next().asnumpy()
    except (decord.DECORDError, StopIteration) as error:
        return None, f"decord cannot read the first frame: {_plain(error)}"
    if first.ndim != 3 or first.shape[2] != 3:
        return None, f"decord gives frames of shape {tuple(first.shape)}"
    if first.shape[:2] != (header.height, header.width):
        return None, f"decord reads another stream, of {first.shape[1]}x{first.shape[0]} pixels"
    return _decord_frames(reader, first, header.times), ""


def _decord_frames(reader: "decord.VideoReader", first: Frame, times: list[float]) -> Iterator[Timed]:
    yield times[0], first
    for index in range(1, len(times)):
        try:
            yield times[index], reader.next().asnumpy()
        except (decord.DECORDError, StopIteration) as error:
            raise Rejected("decode", f"damaged among its {len(times)} frames: {_plain(error)}") from error


def _by_pyav(path: str, header: Header, limits: LimitsConfig) -> Iterator[Timed]:
    """Frames in order by PyAV, upright, with times that rise even where the file's do not."""
    count, now, origin = 0, 0.0, None
    to_rgb = VideoReformatter()
    try:
        with _open(path, header.container) as file:
            for frame in shown(_pyav_frames(file, header.stream), header.picture):
                if frame.width * frame.height > limits.max_pixels:
                    raise Rejected("limits", f"a frame of {frame.width}x{frame.height} pixels")
                if count >= limits.max_frames:
                    raise Rejected("limits", f"more than data.limits.max_frames = {limits.max_frames} frames")
                stamp = frame.time if frame.time is not None else now
                origin = stamp if origin is None else origin
                now = stamp - origin if count == 0 or stamp - origin > now else now + 1 / header.rate
                count += 1
                pixels: Frame = to_rgb.reformat(frame, format="rgb24").to_ndarray().view(np.uint8)
                yield now, header.picture.upright(pixels)
    except av.FFmpegError as error:
        raise Rejected("decode", f"damaged among its {len(header.times)} frames: {_plain(error)}") from error
    if count < (1 - LOST_SHARE) * len(header.times):
        raise Rejected("decode", f"only {count} of {len(header.times)} frames could be decoded")


def _pyav_frames(file: "av.container.InputContainer", stream_index: int) -> Iterator["av.VideoFrame"]:
    stream = file.streams[stream_index]
    stream.thread_type = "NONE"
    for packet in file.demux(stream):
        if packet.size or packet.dts is None:
            yield from packet.decode()


def _plain(error: BaseException) -> str:
    """A library's message in one line that is the same on every run: without times, folders and addresses."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"^\[[\d:]+\] +\S+: ", "", text)
    text = re.sub(r".*: Check failed: |^Check failed: ", "", text)
    text = re.sub(r"^.*\(-?\d+ vs\. -?\d+\) +(?=\S)", "", text)
    return re.sub(r"/\S*/", "", text)[:200]
