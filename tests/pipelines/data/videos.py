"""Small videos for the tests: each frame carries its number in the picture, so that a wrong frame shows."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 12
Frames = NDArray[np.uint8]


def stamped(count: int, height: int = 64, width: int = 96, start: int = 0) -> Frames:
    """Frames [count, height, width, 3] whose upper half shows their number in black and white blocks."""
    frames = np.full((count, height, width, 3), 96, np.uint8)
    frames[:, height // 2 :, : width // 2] = (200, 60, 30)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for frame, number in zip(frames, range(start, start + count), strict=True):
        for bit in range(BITS):
            frame[: height // 2, edges[bit] : edges[bit + 1]] = 255 * (number >> bit & 1)
    return frames


def numbers(frames: Frames) -> list[int]:
    """What `stamped` wrote, after a codec and a resize."""
    height, width = frames.shape[1:3]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    bits = frames[:, height // 4, centres].mean(axis=-1) > 128
    return [int((row << np.arange(BITS)).sum()) for row in bits]


def write_video(
    path: Path,
    frames: Frames,
    fps: float = 8.0,
    codec: str = "libx264",
    container: str | None = None,
    times: Sequence[int] | None = None,
    movflags: str = "",
    **options: str,
) -> Path:
    """Encode frames; `times` are their timestamps in milliseconds, instead of an even rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", format=container, container_options=layout) as file:
        stream = file.add_stream(codec, rate=round(fps) if times is None else 1000)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.options = options
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else times[index]
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def cut_by_stream_copy(source: Path, path: Path, first: int) -> Path:
    """Copy a video's packets, hiding what is before frame `first` by an edit list."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"use_editlist": "1"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [packet for packet in old.demux(old.streams.video[0]) if packet.dts is not None]
        shift = sorted(packet.pts for packet in packets)[first]
        for packet in packets:
            packet.stream = stream
            packet.pts -= shift
            packet.dts -= shift
            new.mux(packet)
    return path


def low_rank(count: int, rank: int, size: int, seed: int, phase: float = 0.0) -> Frames:
    """Frames that move in `rank` smooth directions of pixel space: what a linear code describes exactly."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(0, np.pi, size)
    waves = np.stack([np.cos(k * axis) for k in range(8)])
    pictures = np.einsum("khwc,hy,wx->kyxc", rng.normal(size=(rank, 8, 8, 3)), waves, waves)
    pictures /= np.sqrt((pictures**2).mean(axis=(1, 2, 3), keepdims=True))
    weights = (
        rng.normal(size=(count, rank))
        if phase == 0
        else np.cos(phase + np.outer(np.arange(count), np.arange(rank)))
    )
    video = 128 + 22 / np.sqrt(rank) * np.einsum("fk,kyxc->fyxc", weights, pictures)
    return np.clip(np.round(video), 0, 255).astype(np.uint8)


def repeat_by_stream_copy(source: Path, path: Path, times: int) -> Path:
    """The packets of a video `times` over, one pass after the other: hours of video in a moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        template = old.streams.video[0]
        stream = new.add_stream_from_template(template)
        packets = [packet for packet in old.demux(template) if packet.dts is not None]
        span = sum(packet.duration for packet in packets)
        for turn in range(times):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base = stream, packet.time_base
                copy.pts, copy.dts = packet.pts + turn * span, packet.dts + turn * span
                copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
                new.mux(copy)
    return path
