"""What encoders, cameras and cutters do to files that are well: every picture is read, and looks right."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.data.config import LimitsConfig
from pipelines.data.decode.readers import _by_pyav, inspect, open_video
from pipelines.data.decode.transforms import resize
from tests.pipelines.data.videos import numbers, stamped, write_video

LIMITS = LimitsConfig()


def frames_of(path: Path) -> np.ndarray:
    return np.stack([resize(frame, 64, 96) for _, frame in open_video(str(path), LIMITS).frames])


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_pictures_that_only_serve_others_are_not_shown(codec: str, tmp_path: Path) -> None:
    """Packets of VP8 and VP9 that hold a reference no player shows."""
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "arnr-maxframes": "5", "cpu-used": "4"}
    path = write_video(tmp_path / "a.webm", stamped(60), 24, codec, b="100000", **options)
    assert numbers(frames_of(path)) == list(range(60))


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
def test_a_clip_cut_at_an_open_group_loses_only_what_refers_to_before(name: str, tmp_path: Path) -> None:
    """The first pictures after the key picture need one that was cut away; no player shows these."""
    film = write_video(
        tmp_path / "film.mkv",
        stamped(96),
        24,
        **{"x264-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3:scenecut=0:b-adapt=0"},
    )
    path = tmp_path / name
    with av.open(str(film)) as old, av.open(str(path), "w") as new:
        template = old.streams.video[0]
        stream, keys, shift = new.add_stream_from_template(template), 0, None
        for packet in old.demux(template):
            keys += packet.is_keyframe
            if keys < 2 or packet.dts is None:
                continue
            shift = packet.dts if shift is None else shift
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            new.mux(packet)
    found = numbers(frames_of(path))
    assert 20 <= found[0] <= 24
    assert found == list(range(found[0], 96))


@pytest.mark.parametrize(("codec", "muxer"), [("libvpx-vp9", "webm"), ("libx264", "mpegts")])
def test_a_stream_may_change_its_size(codec: str, muxer: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{'ts' if muxer == 'mpegts' else muxer}"
    with av.open(str(path), "w", format=muxer) as new:
        stream = None
        for part, (height, width) in enumerate(((128, 192), (64, 96))):
            frames = stamped(12, height, width, start=12 * part)
            whole = write_video(tmp_path / f"{part}.{muxer}", frames, codec=codec, container=muxer)
            with av.open(str(whole)) as old:
                template = old.streams.video[0]
                stream = stream or new.add_stream_from_template(template)
                packets = [packet for packet in old.demux(template) if packet.dts is not None]
                shift = round(12 * part / 8 / template.time_base) - packets[0].dts
                for packet in packets:
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    new.mux(packet)
    assert numbers(frames_of(path)) == list(range(24))


PATCHES = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (224, 172, 140))
WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}
"""Of red and blue in luma."""
CODES = {"bt709": 1, "bt601": 6}


def yuv_of(rgb: tuple[int, int, int], matrix: str, full: bool) -> tuple[float, float, float]:
    red_weight, blue_weight = WEIGHTS[matrix]
    red, green, blue = (value / 255 for value in rgb)
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    u, v = (blue - luma) / (2 - 2 * blue_weight), (red - luma) / (2 - 2 * red_weight)
    if full:
        return 255 * luma, 255 * u + 128, 255 * v + 128
    return 219 * luma + 16, 224 * u + 128, 224 * v + 128


@pytest.mark.parametrize("matrix", ["bt709", "bt601"])
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_that_the_file_is_tagged_with(matrix: str, full: bool, tmp_path: Path) -> None:
    """Four bars of known colours, by the standards' own numbers, in both readers."""
    bars = np.array([yuv_of(rgb, matrix, full) for rgb in PATCHES]).round().clip(0, 255)
    luma, u, v = (np.repeat(bars[:, plane], 24)[None].repeat(64, 0).astype(np.uint8) for plane in range(3))
    planes = np.concatenate([luma.ravel(), u[::2, ::2].ravel(), v[::2, ::2].ravel()]).reshape(96, 96)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.options = {"crf": "1"}
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = CODES[matrix]
        codec.color_range = 2 if full else 1
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        file.mux(stream.encode(None))
    opened = open_video(str(path), LIMITS)
    assert opened.probe.reader == "decord"
    for frames in (opened.frames, _by_pyav(str(path), inspect(str(path), LIMITS), LIMITS)):
        for _, frame in frames:
            np.testing.assert_allclose(frame[32, 12::24], PATCHES, atol=3)


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(1), Fraction(120)])
def test_rates_are_the_files_own(rate: Fraction, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for pixels in stamped(24):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    opened = open_video(str(path), LIMITS)
    assert opened.probe.fps == pytest.approx(float(rate))
    assert opened.probe.seconds == pytest.approx(24 / float(rate))
    assert numbers(np.stack([frame for _, frame in opened.frames])) == list(range(24))


def test_a_recording_without_a_rate_is_measured(tmp_path: Path) -> None:
    """As a browser records: a clock of milliseconds that jitters, and no rate or length in the header."""
    path = tmp_path / "a.webm"
    jitter = np.random.default_rng(0).integers(0, 30, 40)
    with av.open(str(path), "w", container_options={"live": "1"}) as file:
        stream = file.add_stream("libvpx", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(stamped(40)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), 125 * index + int(jitter[index])
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    opened = open_video(str(path), LIMITS)
    assert opened.probe.fps == pytest.approx(8, rel=0.03)
    assert opened.probe.seconds == pytest.approx(5, abs=0.1)
    assert numbers(np.stack([frame for _, frame in opened.frames])) == list(range(40))


def test_a_clock_may_start_anywhere(tmp_path: Path) -> None:
    times = [3_600_000 + 125 * index for index in range(16)]
    opened = open_video(
        str(write_video(tmp_path / "a.ts", stamped(16), times=times, container="mpegts")), LIMITS
    )
    shown, frames = zip(*opened.frames, strict=True)
    np.testing.assert_allclose(shown, np.arange(16) / 8, atol=1e-3)
    assert numbers(np.stack(frames)) == list(range(16))
