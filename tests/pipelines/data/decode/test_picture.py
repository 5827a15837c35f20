"""What comes out is what a player shows: square pixels, upright, without combs, HDR as SDR."""

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.data.config import CurationConfig, LimitsConfig
from pipelines.data.curate.quality import video_refusal
from pipelines.data.decode.decoder import Decoder
from pipelines.data.decode.picture import Picture, shown, to_bt709
from pipelines.data.decode.readers import Opened, _by_pyav, inspect, open_video
from pipelines.data.decode.transforms import resize
from pipelines.data.types import Rejected
from tests.pipelines.data.videos import Frames, numbers, stamped, write_video

LIMITS = LimitsConfig()
CORNERS = np.array([[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]], np.uint8)
"""Red and green above blue and white."""


def quarters(count: int = 3, height: int = 48, width: int = 96) -> Frames:
    frame = CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)
    return np.stack([frame] * count)


def disc(height: int, width: int, pixel_aspect: float) -> Frames:
    """A white disc that is round where a pixel is `pixel_aspect` times as wide as high."""
    y, x = np.ogrid[:height, :width]
    inside = ((x - width / 2 + 0.5) * pixel_aspect) ** 2 + (y - height / 2 + 0.5) ** 2 < (0.25 * height) ** 2
    return np.stack([np.repeat(255 * inside[..., None].astype(np.uint8), 3, axis=2)] * 3)


def made(
    path: Path, frames: Any, prepare: Callable[[Any], None], codec: str = "libx264", **options: str
) -> Path:
    """A video of RGB arrays or of ready frames; `prepare` sets up its stream."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=8, options=options)
        first = frames[0]
        stream.height, stream.width = (
            first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        )
        stream.pix_fmt = "yuv420p" if isinstance(first, np.ndarray) else first.format.name
        prepare(stream)
        for index, frame in enumerate(frames):
            frame = (
                av.VideoFrame.from_ndarray(frame, format="rgb24") if isinstance(frame, np.ndarray) else frame
            )
            frame.pts = index
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[Opened, Frames]:
    opened = open_video(str(path), LIMITS)
    frames = np.stack([frame for _, frame in opened.frames])
    return opened, frames


def corners(frame: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four quarters, each channel 0 or 255."""
    height, width = frame.shape[:2]
    middles = frame[height // 4 :: height // 2, width // 4 :: width // 2]
    return np.where(middles[:2, :2] > 128, 255, 0).astype(np.uint8)


def has_matrix(*matrix: int) -> Callable[[Any], None]:
    a, b, c, d = (value << 16 for value in matrix)
    return lambda stream: stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])


TURNS = [(a, 0, 0, d) for a, d in product((1, -1), (1, -1))] + [
    (0, b, c, 0) for b, c in product((1, -1), (1, -1))
]


@pytest.mark.parametrize("matrix", TURNS)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_each_quarter_lies_where_the_display_matrix_puts_it(
    matrix: tuple[int, int, int, int], name: str, tmp_path: Path
) -> None:
    opened, frames = read(made(tmp_path / name, quarters(), has_matrix(*matrix)))
    a, b, c, d = matrix
    expected = np.zeros_like(CORNERS)
    for y, x in product((-1, 1), (-1, 1)):
        right, down = a * x + c * y, b * x + d * y
        expected[int(down > 0), int(right > 0)] = CORNERS[int(y > 0), int(x > 0)]
    np.testing.assert_array_equal(corners(frames[0]), expected)
    assert frames.shape == ((3, 96, 48, 3) if a == 0 else (3, 48, 96, 3))
    assert (opened.probe.height, opened.probe.width) == frames.shape[1:3]
    assert (opened.probe.applied == "") == (matrix == (1, 0, 0, 1))
    assert opened.probe.reader == "pyav" or not opened.probe.applied


def test_a_turn_by_no_right_angle_is_refused(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", quarters(), lambda stream: stream.set_display_rotation(37))
    with pytest.raises(Rejected, match="no right angle: encode it upright"):
        open_video(str(path), LIMITS)


def has_aspect(numerator: int, denominator: int) -> Callable[[Any], None]:
    def prepare(stream: Any) -> None:
        stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = Fraction(
            numerator, denominator
        )

    return prepare


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize(
    ("aspect", "height", "width", "shape"),
    [((64, 45), 144, 180, "16:9"), ((8, 9), 120, 180, "4:3"), ((1, 2), 128, 144, "9:16")],
)
def test_a_disc_is_round(
    name: str, aspect: tuple[int, int], height: int, width: int, shape: str, tmp_path: Path
) -> None:
    path = made(tmp_path / name, disc(height, width, aspect[0] / aspect[1]), has_aspect(*aspect))
    sizes = [(90, 160), (90, 120), (160, 90)]
    with Decoder(LIMITS) as decoder:
        clip = decoder.open(path, sizes)
        white = np.concatenate(list(clip.frames))[0, ..., 0] > 128
    assert white.any(axis=0).sum() == pytest.approx(white.any(axis=1).sum(), abs=2)
    probe = clip.probe
    assert (probe.width, probe.height) == (round(width * aspect[0] / aspect[1]), height)
    assert clip.size == sizes[["16:9", "4:3", "9:16"].index(shape)]
    assert video_refusal(CurationConfig(aspects=(shape,)), probe.width, probe.height, 1.0) == ""
    assert "made square" in probe.applied


def test_the_container_alone_may_know_the_aspect(tmp_path: Path) -> None:
    opened, _ = read(add_box(made(tmp_path / "a.mp4", disc(64, 80, 1.5), lambda _: None), b"pasp", 3, 2))
    assert (opened.probe.width, opened.probe.applied) == (120, "pixels of aspect 1.5 made square")


@pytest.mark.parametrize("aspect", [(1, 65535), (65535, 1)])
def test_an_absurd_aspect_ends_in_frames_or_a_reason(aspect: tuple[int, int], tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", disc(64, 96, 1), has_aspect(*aspect))
    with Decoder(LIMITS) as decoder:
        clip = decoder.open(path, [(32, 32)])
        assert np.concatenate(list(clip.frames)).shape == (3, 32, 32, 3)


def test_both_readers_give_the_same_oblong_pixels(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", disc(64, 96, 1.5), has_aspect(3, 2))
    opened, frames = read(path)
    assert opened.probe.reader == "decord"
    by_pyav = np.stack([frame for _, frame in _by_pyav(str(path), opened.header, LIMITS)])
    np.testing.assert_array_equal(frames, by_pyav)


def test_an_aspect_of_less_than_a_pixel_changes_nothing(tmp_path: Path) -> None:
    plain, plain_frames = read(write_video(tmp_path / "plain.mp4", stamped(6)))
    opened, frames = read(made(tmp_path / "a.mp4", stamped(6), has_aspect(201, 200)))
    assert opened.probe == plain.probe
    assert opened.header.picture == Picture()
    np.testing.assert_array_equal(frames, plain_frames)


def add_box(path: Path, kind: bytes, *values: int) -> Path:
    """Give the pictures of an MP4 of H.264 a box of 32-bit numbers."""
    data = bytearray(path.read_bytes())
    box = struct.pack(f">I4s{len(values)}I", 8 + 4 * len(values), kind, *values)
    at, parents = 0, []
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        while data[at + 4 : at + 8] != name:
            at += int.from_bytes(data[at : at + 4])
        parents.append(at)
        at += 16 if name == b"stsd" else 8
    end = parents[-1] + int.from_bytes(data[parents[-1] : parents[-1] + 4])
    for parent in parents:
        size = int.from_bytes(data[parent : parent + 4]) + len(box)
        data[parent : parent + 4] = size.to_bytes(4)
    path.write_bytes(data[:end] + box + data[end:])
    return path


def add_aperture(path: Path, width: int, height: int, right: int = 0, down: int = 0) -> Path:
    """A clean aperture, `right` and `down` of the centre."""
    return add_box(path, b"clap", width, 1, height, 1, right, 1, down, 1)


def test_only_the_clean_aperture_is_shown(tmp_path: Path) -> None:
    whole, frames = read(made(tmp_path / "a.mp4", stamped(6, 64, 128), lambda _: None))
    cut, inside = read(add_aperture(tmp_path / "a.mp4", 96, 48, right=8, down=2))
    np.testing.assert_array_equal(inside, frames[:, 10:58, 24:120])
    assert (cut.probe.width, cut.probe.height) == (96, 48)
    assert (whole.probe.applied, cut.probe.applied) == ("", "cropped to its aperture")


def test_aperture_turn_and_aspect_apply_together(tmp_path: Path) -> None:
    def prepare(stream: Any) -> None:
        has_aspect(2, 1)(stream)
        has_matrix(0, 1, -1, 0)(stream)

    path = add_aperture(made(tmp_path / "a.mp4", quarters(), prepare), 80, 40)
    opened, frames = read(path)
    assert frames.shape == (3, 80, 40, 3)
    np.testing.assert_array_equal(corners(frames[0]), np.rot90(CORNERS, -1))
    assert (opened.probe.height, opened.probe.width) == (80, 20)
    assert resize(frames[0], 80, 20, opened.header.picture.pixel_aspect).shape == (80, 20, 3)


def woven(count: int, bottom_first: bool = False) -> Frames:
    """A white bar moves 4 pixels a field; a frame holds two fields."""
    fields = np.zeros((2 * count, 64, 128, 3), np.uint8)
    for index, field in enumerate(fields):
        field[:, 4 * index : 4 * index + 48] = 255
    frames = fields[::2].copy()
    frames[:, int(not bottom_first) :: 2] = fields[1::2, int(not bottom_first) :: 2]
    return frames


def comb(frame: np.ndarray) -> float:
    """How much rows differ more from their neighbours than from the next but one, on the steepest column."""
    rows = frame[8:-8, :, 0].astype(int)
    return float((np.abs(np.diff(rows, axis=0))[:-1] - np.abs(rows[2:] - rows[:-2])).mean(axis=0).max())


INTERLACED = [
    ("a.mp4", "libx264", {"x264-params": "interlaced=1:tff=1", "crf": "10"}, False),
    ("a.mkv", "libx264", {"x264-params": "interlaced=1:bff=1", "crf": "10"}, True),
    ("a.ts", "mpeg2video", {"flags": "+ildct+ilme", "qscale": "2"}, True),
]


@pytest.mark.parametrize(("name", "codec", "options", "bottom_first"), INTERLACED)
def test_interlaced_frames_lose_their_combs_and_none_is_lost(
    name: str, codec: str, options: dict[str, str], bottom_first: bool, tmp_path: Path
) -> None:
    stored = woven(10, bottom_first)
    path = made(tmp_path / name, stored, lambda _: None, codec, **options)
    opened, frames = read(path)
    assert comb(stored[4]) > 200
    assert max(comb(frame) for frame in frames[1:-1]) < 40
    assert (opened.probe.reader, opened.probe.applied) == ("pyav", "deinterlaced")
    times = [time for time, _ in open_video(str(path), LIMITS).frames]
    np.testing.assert_allclose(times, inspect(str(path), LIMITS).times, atol=1e-3)
    assert len(frames) == len(stored)


def decoded(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as file:
        yield from file.decode(video=0)


def test_frames_that_turn_interlaced_or_change_their_size_later_on_come_once_each(tmp_path: Path) -> None:
    plain = write_video(tmp_path / "plain.mp4", stamped(6, 64, 128))
    name, codec, options, _ = INTERLACED[0]
    combed = made(tmp_path / name, woven(6), lambda _: None, codec, **options)
    small = write_video(tmp_path / "small.mp4", stamped(4, 48, 96, start=6))
    found = [
        frame.to_ndarray(format="rgb24")
        for frame in shown(chain(decoded(plain), decoded(combed), decoded(small)), Picture())
    ]
    assert numbers(np.stack(found[:6])) == list(range(6))
    assert max(comb(frame) for frame in found[7:11]) < 40
    assert numbers(np.stack(found[12:])) == list(range(6, 10))


PQ, HLG, BT709, BT2020 = 16, 18, 1, 9


def pq_signal(nits: np.ndarray | float) -> np.ndarray:
    """The inverse EOTF of SMPTE ST 2084."""
    power = (np.asarray(nits) / 10000) ** (2610 / 16384)
    return ((3424 + 2413 * 32 * power) / (4096 + 2392 * 32 * power)) ** (2523 / 32)


def hlg_signal(scene: np.ndarray | float) -> np.ndarray:
    """The OETF of BT.2100's HLG."""
    a, b = 0.17883277, 1 - 4 * 0.17883277
    scene = np.asarray(scene)
    return np.where(
        scene <= 1 / 12,
        np.sqrt(3 * scene),
        a * np.log(np.maximum(12 * scene - b, 1e-9)) + 0.5 - a * np.log(4 * a),
    )


def xyz(red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float]) -> np.ndarray:
    """RGB of these primaries and D65 to XYZ."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in (red, green, blue)]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


IN_709 = xyz((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
GAMUTS = {
    "BT.2020": xyz((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "Display P3": xyz((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def signals_of(light: np.ndarray, kind: str, gamut: str) -> np.ndarray:
    """R'G'B' [n, 3] in a gamut of the light of BT.709, in parts of diffuse white."""
    wide = light @ (np.linalg.inv(GAMUTS[gamut]) @ IN_709).T
    return {"PQ": pq_signal(203 * wide), "HLG": hlg_signal(0.26496256 * wide), "": wide ** (1 / 2.4)}[kind]


def bars(signals: np.ndarray, full: bool = False) -> list[av.VideoFrame]:
    """Frames of 10 bits in BT.2020's matrix, whose bars, 32 pixels wide, have these R'G'B' signals [n, 3]."""
    luma = signals @ (0.2627, 0.6780, 0.0593)
    chroma = [(signals[:, 2] - luma) / 1.8814, (signals[:, 0] - luma) / 1.4746]
    gains = (1023, 0, 1023) if full else (876, 64, 896)
    planes = [gains[0] * luma + gains[1], *(gains[2] * part + 512 for part in chroma)]
    wide = [np.repeat(p.round().clip(0, 1023), w) for p, w in zip(planes, (32, 16, 16), strict=True)]
    rows = [np.tile(wide[0], (64, 1)), *(np.tile(row, (32, 1)) for row in wide[1:])]
    packed = np.concatenate([part.ravel() for part in rows]).astype(np.uint16).reshape(96, -1)
    return [av.VideoFrame.from_ndarray(packed, format="yuv420p10le") for _ in range(3)]


def has_colours(
    transfer: int, primaries: int, full: bool = False, matrix: int = BT2020
) -> Callable[[Any], None]:
    def prepare(stream: Any) -> None:
        codec = stream.codec_context
        codec.color_trc, codec.color_primaries = transfer, primaries
        codec.colorspace, codec.color_range = matrix, 2 if full else 1

    return prepare


def seen(path: Path) -> tuple[Opened, np.ndarray]:
    """The mean colour of each bar of the second frame."""
    opened, frames = read(path)
    inner = frames[1, 16:48].reshape(32, -1, 32, 3)[:, :, 8:24]
    return opened, inner.mean(axis=(0, 2))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx265", {"x265-params": "log-level=none", "crf": "4", "preset": "ultrafast"}),
        ("a.mkv", "libx264", {"crf": "4", "preset": "ultrafast"}),
    ],
)
@pytest.mark.parametrize("kind", ["PQ", "HLG"])
def test_diffuse_white_is_white_and_grey_is_grey(
    kind: str, name: str, codec: str, options: dict[str, str], full: bool, tmp_path: Path
) -> None:
    light = np.array([0.0, 0.18, 1.0, 3.0])
    signals = pq_signal(203 * light) if kind == "PQ" else hlg_signal(light * 0.26496256)
    transfer = {"PQ": PQ, "HLG": HLG}[kind]
    frames = bars(np.repeat(signals[:, None], 3, axis=1), full)
    opened, colours = seen(
        made(tmp_path / name, frames, has_colours(transfer, BT2020, full), codec, **options)
    )
    black, grey, white, lamp = colours
    assert black.max() < 2
    np.testing.assert_allclose(grey, 118, atol=2)
    assert 248 <= white.min() <= white.max() <= lamp.min()
    assert opened.probe.reader == "pyav"
    assert opened.probe.applied == f"BT.2020 {kind} to BT.709"


SAMPLES = np.array([(0.8, 0.1, 0.1), (0.1, 0.7, 0.2), (0.05, 0.1, 0.6), (0.7, 0.42, 0.3), (0.5, 0.5, 0.5)])
"""Linear light in BT.709, in parts of diffuse white."""


@pytest.mark.parametrize(("kind", "transfer"), [("PQ", PQ), ("HLG", HLG), ("", 14)])
@pytest.mark.parametrize("gamut", ["BT.2020", "Display P3"])
def test_colours_of_a_wide_gamut_come_out_as_they_were(
    kind: str, transfer: int, gamut: str, tmp_path: Path
) -> None:
    signals = signals_of(SAMPLES, kind, gamut)
    primaries = {"BT.2020": BT2020, "Display P3": 12}[gamut]
    path = made(tmp_path / "a.mkv", bars(signals), has_colours(transfer, primaries), "ffv1")
    opened, colours = seen(path)
    srgb = np.where(SAMPLES < 0.0031308, 12.92 * SAMPLES, 1.055 * SAMPLES ** (1 / 2.4) - 0.055)
    expected = 255 * (srgb if kind else SAMPLES ** (1 / 2.4))
    np.testing.assert_allclose(colours, expected, atol=4)
    assert opened.probe.applied == f"{gamut} {kind}".strip() + " to BT.709"


@given(
    st.sampled_from(["PQ", "HLG", ""]), st.lists(st.tuples(*[st.floats(0.02, 1)] * 3), min_size=1, max_size=8)
)
@settings(max_examples=15, deadline=None)
def test_the_table_of_colours_is_the_curve(kind: str, colours: list[tuple[float, float, float]]) -> None:
    """For what BT.709 can show; what lies outside is cut off at its edge."""
    codes = np.round(65535 * signals_of(np.array(colours), kind, "BT.2020")).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(np.tile(codes, (4, 1, 1)), format="rgb48le")
    frame.pts, frame.time_base = 0, Fraction(1, 8)
    (found,) = shown([frame], Picture(transfer=kind, gamut="BT.2020"))
    np.testing.assert_allclose(found.to_ndarray()[0], 255 * to_bt709(codes / 65535, kind, "BT.2020"), atol=4)


@pytest.mark.parametrize("kind", ["PQ", "HLG"])
def test_more_light_is_never_darker_and_nothing_leaves_the_range(kind: str) -> None:
    grey = np.repeat(np.linspace(0, 1, 500)[:, None], 3, axis=1)
    out = to_bt709(grey, kind, "BT.2020")
    assert (np.diff(out, axis=0) >= 0).all()
    assert out.min() == pytest.approx(0, abs=1e-3)
    assert 0.99 < out.max() <= 1


def test_colours_that_nothing_here_reads_are_refused_with_what_to_do(tmp_path: Path) -> None:
    frames = bars(np.full((2, 3), 0.5))
    path = made(tmp_path / "a.mkv", frames, has_colours(PQ, BT2020, matrix=14), "ffv1")
    with pytest.raises(Rejected, match="ICtCp: convert it to SDR"):
        open_video(str(path), LIMITS)


@pytest.mark.parametrize(("matrix", "full"), [(1, False), (1, True), (6, False), (6, True)])
def test_ordinary_colours_stay_with_decord(matrix: int, full: bool, tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", stamped(4), has_colours(matrix, matrix, full, matrix))
    opened, frames = read(path)
    assert (opened.probe.reader, opened.probe.applied) == ("decord", "")
    by_pyav = np.stack([frame for _, frame in _by_pyav(str(path), opened.header, LIMITS)])
    np.testing.assert_array_equal(frames, by_pyav)
