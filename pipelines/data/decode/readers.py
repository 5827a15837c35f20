"""Opening and reading one video in order. Runs only inside the decoding process (worker.py).

PyAV looks at every packet before a frame is decoded. decord then reads the frames if its account of the file
agrees with the packets; else PyAV does. decord alone repeats frames where a file has an edit list,
invents frames and times in some AVI files, hangs at the end of MPEG-TS, and gives garbage for some widths,
all without an error; of a long video it holds as many frames as its thread has fallen behind.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import av
import decord
import numpy as np
from av.video.reformatter import VideoReformatter

from pipelines.data.config import LimitsConfig
from pipelines.data.decode.containers import HEAD_BYTES, STILL, container_of, is_cut_off, picture_in
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
LONG_FRAMES = 1.5
"""Usual frames that the last frame may be shown for before it counts as a long one."""
PAUSE_SECONDS, PAUSE_FRAMES = 60.0, 100.0
"""Where no frame follows for so long, and for so many usual frames, the recording paused: that time is left
out."""
LAST_FRAMES = 32
"""More than a codec may shuffle."""
RESTART_SECONDS = 1.0
"""Where times step back by more in one of RESTARTING, the clock has started again."""
RESTARTING = frozenset({"mpegts", "mpeg", "flv"})
"""Containers whose files may be joined by laying one behind the other."""
DECORD_READS = frozenset({"mov", "matroska", "avi", "ogg"})
"""It does not end on MPEG streams; on the others it is not tried."""
TRACK_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
"""What Matroska says of one track."""

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
    last: float
    """Seconds that the last frame is shown, where that is long; else 0."""
    pause: float
    """Seconds without a frame that count as a pause."""
    seconds: float
    """From the first frame to the end of the last, without pauses."""
    left_out: str
    """Which pauses are left out, for a person; empty for none."""
    has_double: bool
    """Whether another stream has pictures of this size."""


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
        applied=", ".join(filter(None, (header.picture.applied, header.left_out))),
        width=max(1, round(width * header.picture.pixel_aspect)),
        height=height,
        fps=header.rate,
        seconds=header.seconds,
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
        head = file.read(HEAD_BYTES)
    container = container_of(head)
    if container is None:
        raise Rejected("bytes", picture_in(head) or "the first bytes are of no known video container")
    try:
        with _open(path, container) as video:
            return _inspect_packets(video, path, container, limits)
    except av.FFmpegError as error:
        raise Rejected("open", _plain(error)) from error


def _open(path: str, container: str) -> "av.container.InputContainer":
    options = {"protocol_whitelist": "file"}
    return av.open(path, format=container, metadata_errors="ignore", options=options)


def _inspect_packets(
    file: "av.container.InputContainer", path: str, container: str, limits: LimitsConfig
) -> Header:
    film, others = _film(file, limits.max_frames)
    stream = film.stream
    if stream.width * stream.height > limits.max_pixels:
        size = f"{stream.width}x{stream.height} pixels"
        raise Rejected("limits", f"{size}, more than data.limits.max_pixels = {limits.max_pixels}")
    rate = film.rate
    times, end = film.clock
    if not times:
        raise Rejected("open", "the video stream is empty")
    if container == "gif" and len(times) == 1:
        raise Rejected("bytes", STILL)
    _require_whole(file, path, container, film)
    gaps = np.diff(times)
    pause = max(PAUSE_SECONDS, PAUSE_FRAMES * float(np.median(gaps))) if len(gaps) else PAUSE_SECONDS
    steps, pauses = gaps[gaps <= pause], gaps[gaps > pause]
    usual = float(steps.mean()) if steps.any() else 1 / rate
    last = end - times[-1]
    if len(pauses) or last > LONG_FRAMES * usual:
        rate = 1 / usual
    left_out = [*pauses, *([last] if last > pause else [])]
    last = last if LONG_FRAMES * usual < last <= pause else 0.0
    seconds = float(steps.sum()) + len(pauses) / rate + max(last, 1 / rate)
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
        times=[t - times[0] for t in times],
        last=last,
        pause=pause,
        seconds=seconds,
        left_out=f"pauses of {sum(left_out):.0f} s in all left out" if left_out else "",
        has_double=any((s.width, s.height) == (stream.width, stream.height) for s in others),
    )


class _Track:
    """The packets of one video stream, in storage order."""

    def __init__(self, stream: "av.VideoStream") -> None:
        self.stream = stream
        self.rate = float(stream.average_rate or stream.guessed_rate or 0) or DEFAULT_RATE
        self.frames = 0
        """Visible ones."""
        self._stamps: list[tuple[int | None, int | None, int, bool]] = []
        """(dts, pts, duration, whether it holds a picture); one without a picture prolongs that before it."""

    def add(self, packet: "av.Packet") -> None:
        if packet.is_discard:
            return
        self.frames += packet.size > 0
        self._stamps.append((packet.dts, packet.pts, packet.duration or 0, packet.size > 0))

    @cached_property
    def clock(self) -> tuple[list[float], float]:
        """Seconds at which each picture is first shown, rising, and at which the last is shown no more.

        Where the file's clock starts again, as in joined recordings, it goes on here.
        """
        ticks, per = self.stream.time_base.as_integer_ratio()
        frame = 1 / self.rate
        times: list[float] = []
        end = latest = before = -math.inf
        shift = 0.0
        may_restart = self.stream.container.format.name in RESTARTING
        for dts, pts, duration, has_picture in self._stamps:
            if pts is None:
                return [i / self.rate for i in range(self.frames)], self.frames / self.rate
            time = pts * ticks / per
            decoded = time if dts is None else dts * ticks / per
            if may_restart and decoded < before - RESTART_SECONDS:
                shift = latest + frame - time
            before = decoded
            time += shift
            latest = max(latest, time)
            end = max(end, time + (duration * ticks / per or frame))
            if has_picture:
                times.append(time)
        index, length = self.stream.index_entries, self.stream.duration
        if index and index[-1].size == 0 and length:  # FFmpeg does not give empty samples at the end
            end = max(end, ((self.stream.start_time or 0) + length) * ticks / per)
        return sorted(times), end


def _film(file: "av.container.InputContainer", max_frames: int) -> tuple[_Track, list["av.VideoStream"]]:
    """The stream that a player shows, with its packets, and the other video streams.

    A film before a still, then the default before others, a full stream before one of few frames (such as
    thumbnails), large pictures before small ones.
    """
    no_film = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [s for s in file.streams.video if not s.disposition & no_film]
    if streams and not any(s.codec_context for s in streams):
        raise Rejected("open", "FFmpeg does not know the codec of its pictures")
    streams = [s for s in streams if s.codec_context and s.width and s.height]
    if not streams:
        raise Rejected("open", "no video stream")
    tracks = {stream.index: _Track(stream) for stream in streams}
    for packet in file.demux(streams):
        if packet.size == 0 and packet.pts is None:  # PyAV's mark of an end, of no stream in particular
            continue
        track = tracks[packet.stream_index]
        track.add(packet)
        if track.frames > max_frames:
            raise Rejected("limits", f"more than data.limits.max_frames = {max_frames} frames")
    most = max(track.frames for track in tracks.values())
    default = av.stream.Disposition.default

    def rank(track: _Track) -> tuple[bool, bool, bool, int]:
        stream = track.stream
        is_full = 2 * track.frames > most
        return track.frames > 1, bool(stream.disposition & default), is_full, stream.width * stream.height

    film = max(tracks.values(), key=rank)
    return film, [stream for stream in streams if stream is not film.stream]


def _require_whole(file: "av.container.InputContainer", path: str, container: str, film: _Track) -> None:
    """Raise Rejected if pictures are missing at the file's end: by its index of them, else by what it says of
    the length of this stream, or of all, which only counts where the file breaks off: sound may be longer."""
    stream, (times, end) = film.stream, film.clock
    if container == "mov":
        size = os.stat(path).st_size
        ends = [entry.pos + entry.size for entry in stream.index_entries if entry.size]
        there = sum(one <= size for one in ends)
        if there < len(ends):
            raise Rejected("open", f"truncated: {there} of {len(ends)} frames are there")
        if is_cut_off(path, container):
            raise Rejected("open", f"truncated: the file breaks off after {there} frames")
        return
    own = TRACK_DURATION.fullmatch(stream.metadata.get("DURATION", "")) if container == "matroska" else None
    claimed = float(own[1]) * 3600 + float(own[2]) * 60 + float(own[3]) if own else 0.0
    lost = claimed - end > max(1.0, LOST_SHARE * claimed)
    if not lost and is_cut_off(path, container):
        claims = {
            "matroska": claimed or (file.duration or 0) / av.time_base,
            "flv": (file.duration or 0) / av.time_base,
            "avi": stream.frames and times[0] + stream.frames / film.rate,
            "mxf": stream.duration and times[0] + float(stream.duration * stream.time_base),
        }
        claimed = claims.get(container) or 0.0
        # pictures are stored in the order of decoding: not only the last to be shown may be missing
        holes = np.diff(times[-LAST_FRAMES:]) > LONG_FRAMES / film.rate
        lost = not claimed or claimed - end > 0.5 / film.rate or bool(holes.any())
    if lost:
        of = f" of {claimed:.1f} s" if claimed - end > 0.05 else ""
        raise Rejected("open", f"truncated: the file breaks off, and its pictures at {end:.1f} s{of}")


def _by_decord(path: str, header: Header) -> tuple[Iterator[Timed] | None, str]:
    """A reader by decord, or None and why not."""
    if header.container not in DECORD_READS:
        return None, f"decord is not used for {header.container}"
    if header.has_double:
        return None, "decord cannot be told which of two streams of this size to read"
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
    count, now, origin, before = 0, 0.0, None, -math.inf
    to_rgb = VideoReformatter()
    try:
        with _open(path, header.container) as file:
            for frame in shown(_pyav_frames(file, header.stream), header.picture):
                if frame.width * frame.height > limits.max_pixels:
                    raise Rejected("limits", f"a frame of {frame.width}x{frame.height} pixels")
                if count >= limits.max_frames:
                    raise Rejected("limits", f"more than data.limits.max_frames = {limits.max_frames} frames")
                stamp = frame.time if frame.time is not None else now
                restarts = header.container in RESTARTING and stamp < before - RESTART_SECONDS
                origin = stamp if origin is None else stamp - now - 1 / header.rate if restarts else origin
                before = stamp
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
