"""The picture that a player shows, from frames as they are stored. Runs only inside the decoding process.

Frames are deinterlaced, colours of HDR or a wide gamut become BT.709's, what is outside the aperture is cut
off and the display matrix applied, in this order. Pixels that are not square stay so until `resize`
(transforms.py), which resizes once.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorTrc
from numpy.typing import NDArray

from pipelines.data.types import Rejected
from pipelines.media.color import Frames as Frame

Signal = NDArray[np.float64]
"""R'G'B' of a video, 0 to 1 [..., 3]."""

UNREADABLE = {14: "ICtCp", 15: "IPT, as in Dolby Vision"}
"""Colour matrices, by their number in ITU-T H.273, that FFmpeg's scaler does not turn into RGB."""
BT2020_MATRIX = 9
UNSPECIFIED = 2
INTERLACED = (2, 3, 4, 5)
"""FFmpeg's field orders of frames that hold two instants."""
TRANSFERS = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
GAMUTS = {ColorPrimaries.BT2020: "BT.2020", ColorPrimaries.SMPTE432: "Display P3"}
TO_BT709: dict[str, Sequence[Sequence[float]]] = {
    "BT.2020": ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    "Display P3": ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
    "": ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
"""From the linear light of a gamut to that of BT.709."""
KNEE = 0.9
"""Linear light, in parts of diffuse white, above which highlights are rolled off."""
LEVEL = 9
"""Of the table of colours as haldclut reads it: it has LEVEL**2 nodes along red, green and blue."""
TURNS = {
    (False, False, True): "mirrored",
    (False, True, False): "flipped",
    (False, True, True): "turned by 180 degrees",
    (True, False, False): "transposed",
    (True, False, True): "turned clockwise",
    (True, True, False): "turned anticlockwise",
    (True, True, True): "transposed, turned by 180 degrees",
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """How what is shown differs from what is stored."""

    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels outside the aperture: at the top, at the bottom, left and right."""
    turn: tuple[bool, bool, bool] = (False, False, False)
    """Transposed, then flipped top to bottom, then mirrored."""
    pixel_aspect: float = 1.0
    """Width by height of a pixel, once upright."""
    interlaced: bool = False
    transfer: str = ""
    """`PQ` or `HLG`; empty for SDR."""
    gamut: str = ""
    """`BT.2020` or `Display P3`; empty for narrower ones."""

    @property
    def changes(self) -> str:
        """What is done to the frames before they are resized, for a person."""
        done = {
            "deinterlaced": self.interlaced,
            f"{self.gamut} {self.transfer}".strip() + " to BT.709": self.gamut or self.transfer,
            "cropped to its aperture": any(self.crop),
            TURNS.get(self.turn, ""): any(self.turn),
        }
        return ", ".join(words for words, applies in done.items() if applies)

    @property
    def applied(self) -> str:
        """All that is done, for a person; empty where frames are shown as stored."""
        square = f"pixels of aspect {self.pixel_aspect:.4g} made square" if self.pixel_aspect != 1 else ""
        return ", ".join(filter(None, (self.changes, square)))

    def upright(self, rgb: Frame) -> Frame:
        """A stored frame [H, W, 3], cropped and turned."""
        top, bottom, left, right = self.crop
        transposed, flipped, mirrored = self.turn
        rgb = rgb[top : rgb.shape[0] - bottom, left : rgb.shape[1] - right]
        rgb = rgb.swapaxes(0, 1) if transposed else rgb
        return np.ascontiguousarray(rgb[:: -1 if flipped else 1, :: -1 if mirrored else 1])


def picture_of(file: "av.container.InputContainer", stream: "av.VideoStream") -> Picture:
    """What a stream's header says, and its first frame where the header leaves it open. Seeks.

    Raises:
        Rejected: its colours or its display matrix are none that we can show.
    """
    codec = stream.codec_context
    if codec.colorspace in UNREADABLE:
        remedy = "convert it to SDR, with FFmpeg's filter libplacebo"
        raise Rejected("open", f"its colours are {UNREADABLE[codec.colorspace]}: {remedy}")
    told = _header_text(file, stream.index)
    crop, turn, interlaced = Picture.crop, Picture.turn, codec.field_order in INTERLACED
    if aperture := re.search(r"Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)", told):
        left, right, top, bottom = map(int, aperture.groups())
        if top + bottom < stream.height and left + right < stream.width:
            crop = top, bottom, left, right
    if "Display Matrix" in told or codec.field_order == 0:
        stream.thread_type = "NONE"
        with suppress(av.FFmpegError, StopIteration):
            file.seek(0)
            frame = next(file.decode(stream))
            interlaced = interlaced or frame.interlaced_frame
            turn = _turn(frame)
    aspect = float(stream.sample_aspect_ratio or 1)
    if round(stream.width * aspect) == stream.width:
        aspect = 1.0
    transfer = TRANSFERS.get(codec.color_trc, "")
    wide_by_default = "BT.2020" if transfer and codec.color_primaries == UNSPECIFIED else ""
    return Picture(
        crop=crop,
        turn=turn,
        pixel_aspect=1 / aspect if turn[0] else aspect,
        interlaced=interlaced,
        transfer=transfer,
        gamut=GAMUTS.get(codec.color_primaries, wide_by_default),
    )


def _header_text(file: "av.container.InputContainer", index: int) -> str:
    """What FFmpeg prints of a stream: PyAV gives the aperture nowhere else, the matrix only with frames."""
    av.logging.set_level(av.logging.INFO)
    try:
        whole = file.dumps_format()
    finally:
        av.logging.set_level(None)
    part = re.search(rf"\n *Stream #0:{index}\b.*?(?=\n *Stream #|\Z)", whole, re.DOTALL)
    return part[0] if part else ""


def _turn(frame: "av.VideoFrame") -> tuple[bool, bool, bool]:
    """Picture.turn of a frame's display matrix.

    Raises:
        Rejected: it turns the picture by no right angle.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Picture.turn
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    straight, across = abs(a) + abs(d), abs(b) + abs(c)
    if 0.05 * max(straight, across) < min(straight, across):
        raise Rejected("open", "its display matrix turns it by no right angle: encode it upright")
    return (False, d < 0, a < 0) if straight > across else (True, b < 0, c < 0)


def shown(frames: Iterable["av.VideoFrame"], picture: Picture) -> Iterator["av.VideoFrame"]:
    """The frames, deinterlaced and with BT.709's colours where they are not so; one for one, in order.

    Frames are deinterlaced from the first one on that says it is interlaced, though the header did not.
    """
    graph, made_for, interlaced = None, None, picture.interlaced
    for frame in frames:
        interlaced = interlaced or frame.interlaced_frame
        if not (interlaced or picture.transfer or picture.gamut):
            yield frame
            continue
        if frame.colorspace == UNSPECIFIED and picture.gamut == "BT.2020":
            frame.colorspace = BT2020_MATRIX
        kind = frame.width, frame.height, frame.format.name, interlaced
        if kind != made_for:
            yield from _through(graph, None)
            graph, made_for = _graph(frame, picture, interlaced), kind
        yield from _through(graph, frame)
    yield from _through(graph, None)


def _through(graph: Graph | None, frame: "av.VideoFrame | None") -> Iterator["av.VideoFrame"]:
    """Push a frame, or the end, and pull what is ready."""
    if graph is not None:
        graph.vpush(frame, at=0)
        with suppress(av.BlockingIOError, av.EOFError):
            while True:
                yield graph.vpull()


def _graph(frame: "av.VideoFrame", picture: Picture, interlaced: bool) -> Graph:
    graph = Graph()
    graph.threads = 1
    base = frame.time_base or Fraction(1, 1000)
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
    nodes = [source]
    if interlaced:
        nodes.append(graph.add("bwdif", "mode=send_frame:deint=interlaced"))
    table = None
    if picture.transfer or picture.gamut:
        table = av.VideoFrame.from_ndarray(color_table(picture.transfer, picture.gamut), format="rgb48le")
        table.pts, table.time_base = 0, base
        colours = graph.add_buffer(
            width=table.width, height=table.height, format=table.format, time_base=base, name="table"
        )
        look_up = graph.add("haldclut", "interp=tetrahedral")
        nodes += [graph.add("format", "rgb48le"), look_up, graph.add("format", "rgb24")]
        colours.link_to(look_up, 0, 1)
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    if table is not None:
        graph.vpush(table, at=1)
        colours.push(None)
    return graph


@lru_cache
def color_table(transfer: str, gamut: str) -> NDArray[np.uint16]:
    """The colours of BT.709 for each of LEVEL**6 signals, as the picture that FFmpeg's haldclut reads: RGB of
    16 bits, [LEVEL**3, LEVEL**3, 3], red rising first."""
    axis = np.linspace(0, 1, LEVEL**2)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")
    rgb = to_bt709(np.stack([red, green, blue], axis=-1), transfer, gamut)
    return np.round(65535 * rgb).astype(np.uint16).reshape(LEVEL**3, LEVEL**3, 3)


def to_bt709(signal: Signal, transfer: str, gamut: str) -> Signal:
    """Signals R'G'B' [..., 3] of 0 to 1 as those of an SDR picture.

    HDR (ITU-R BT.2100) becomes light in parts of diffuse white, which is 203 cd/m2 in PQ and 75 % of the
    signal in HLG (BT.2408); of HLG it is the scene's light, as in an SDR camera. Above KNEE it nears 1
    exponentially. The result is sRGB: diffuse white is 251, 18 % grey 118.
    """
    if transfer == "PQ":
        root = signal ** (32 / 2523)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (16384 / 2610)
        light *= 10000 / 203
    elif transfer == "HLG":
        light = _hlg_scene(signal) / _hlg_scene(np.array(0.75))
    else:
        light = signal**2.4
    light = np.maximum(light @ np.transpose(TO_BT709[gamut]), 0)
    if not transfer:
        return cast(Signal, np.minimum(light, 1) ** (1 / 2.4))
    light = np.where(light < KNEE, light, 1 - (1 - KNEE) * np.exp((KNEE - light) / (1 - KNEE)))
    return cast(Signal, np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def _hlg_scene(signal: Signal) -> Signal:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
