"""Whatever a file is made of, its frames come once each, in order, with their times; or it is refused."""

from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.data.config import LimitsConfig
from pipelines.data.decode import readers
from pipelines.data.decode.readers import Opened, _plain, inspect, open_video
from pipelines.data.types import Rejected
from tests.pipelines.data.videos import cut_by_stream_copy, numbers, stamped, write_video

LIMITS = LimitsConfig()


def read(path: Path) -> tuple[Opened, list[float], list[int]]:
    opened = open_video(str(path), LIMITS)
    times, frames = zip(*opened.frames, strict=True)
    return opened, list(times), numbers(np.stack(frames))


@pytest.mark.parametrize(
    ("name", "codec", "muxer"),
    [
        ("a.mp4", "libx264", None),
        ("a.mkv", "libx264", None),
        ("a.avi", "mpeg4", None),
        ("a.webm", "libvpx", None),
        ("a.mov", "mpeg4", None),
    ],
)
def test_decord_reads_common_files(name: str, codec: str, muxer: str | None, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, stamped(40), codec=codec, container=muxer)
    opened, times, found = read(path)
    assert (opened.probe.reader, opened.probe.reader_reason) == ("decord", "")
    assert found == list(range(40))
    np.testing.assert_allclose(times, np.arange(40) / 8, atol=1e-3)
    assert (opened.probe.height, opened.probe.width) == (64, 96)
    assert opened.probe.seconds == pytest.approx(5.0, abs=1e-3)


@pytest.mark.parametrize(
    ("muxer", "codec"),
    [
        ("mpegts", "libx264"),
        ("mpeg", "mpeg1video"),
        ("flv", "flv"),
        ("asf", "wmv2"),
        ("mxf", "mpeg2video"),
        ("gif", "gif"),
    ],
)
def test_containers_that_decord_is_not_given_go_to_pyav(muxer: str, codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", stamped(30), fps=25, codec=codec, container=muxer)
    opened, times, found = read(path)
    assert opened.probe.reader == "pyav"
    assert muxer in opened.probe.reader_reason
    assert found == list(range(30))
    np.testing.assert_allclose(times, np.arange(30) / 25, atol=1e-3)


def test_videos_too_long_for_decord_go_to_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """decord decodes ahead as far as its consumer lags: an hour of 256 x 256 took 600 MiB of it."""
    path = write_video(tmp_path / "a.mp4", stamped(30))
    monkeypatch.setattr(readers, "AHEAD_BYTES", 30 * 64 * 96 * 3)
    assert read(path)[0].probe.reader == "decord"
    monkeypatch.setattr(readers, "AHEAD_BYTES", 30 * 64 * 96 * 3 - 1)
    opened, _, found = read(path)
    assert (opened.probe.reader, opened.probe.reader_reason) == ("pyav", "decord could hold all of its 0 MiB")
    assert found == list(range(30))


@pytest.mark.parametrize("width", [24, 48, 72])
def test_widths_that_decord_garbles_go_to_pyav(width: int, tmp_path: Path) -> None:
    opened, _, found = read(write_video(tmp_path / "a.mp4", stamped(12, 64, width)))
    assert opened.probe.reader == "pyav"
    assert "shape" in opened.probe.reader_reason
    assert found == list(range(12))


@pytest.mark.parametrize("first", [5, 10, 17])
def test_frames_hidden_by_an_edit_list_stay_hidden(first: int, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", stamped(40), bf="2")
    opened, times, found = read(cut_by_stream_copy(whole, tmp_path / "cut.mp4", first))
    assert opened.probe.reader == "pyav"
    assert found == list(range(first, 40))
    np.testing.assert_allclose(times, np.arange(40 - first) / 8, atol=1e-3)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    stamps = [0, 100, 200, 1000, 1100, 1700]
    _, times, found = read(write_video(tmp_path / "a.mp4", stamped(6), times=stamps))
    assert found == list(range(6))
    np.testing.assert_allclose(times, np.asarray(stamps) / 1000, atol=2e-3)


def refusal(path: Path, limits: LimitsConfig = LIMITS) -> tuple[str, str]:
    with pytest.raises(Rejected) as caught:
        list(open_video(str(path), limits).frames)
    return caught.value.reject.stage, caught.value.reject.reason


@pytest.mark.parametrize(
    ("content", "stage", "words"),
    [
        (b"", "bytes", "empty"),
        (b"only words", "bytes", "no known video container"),
        (b"#EXTM3U\n#EXTINF:1,\na.mp4\n", "bytes", "no known video container"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "bytes", "no known video container"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(500), "open", "Invalid data"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "open", ""),
        (b"RIFF\x00\x00\x00\x00AVI " + bytes(500), "open", ""),
        (b"OggS" + bytes(500), "open", ""),
        (b"FLV\x01" + bytes(500), "open", ""),
        (b"GIF89a" + bytes(500), "open", ""),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + bytes(500), "open", ""),
        (bytes.fromhex("060e2b34020501010d01020101020400") + bytes(500), "open", ""),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "bytes", "not a video: a still picture"),
        (b"RIFF\x00\x02\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02" + bytes(500), "bytes", "animated WebP"),
        ((b"G" + bytes(187)) * 20, "open", ""),
    ],
)
def test_what_is_no_video_is_refused(content: bytes, stage: str, words: str, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", stamped(8))
    path = tmp_path / "fake.mp4"
    path.write_bytes(content)
    found, reason = refusal(path)
    assert found == stage
    assert words in reason


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        file.mux(stream.encode(silence))
        file.mux(stream.encode(None))
    assert refusal(path) == ("open", "no video stream")


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (LimitsConfig(max_bytes=100), "data.limits.max_bytes"),
        (LimitsConfig(max_pixels=64 * 95), "data.limits.max_pixels"),
        (LimitsConfig(max_frames=19), "data.limits.max_frames"),
        (LimitsConfig(max_seconds=2.0), "data.limits.max_seconds"),
    ],
)
def test_what_asks_for_too_much_is_refused_by_name(limits: LimitsConfig, words: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", stamped(20))
    stage, reason = refusal(path, limits)
    assert stage == "limits"
    assert words in reason
    assert inspect(str(path), LIMITS).times[-1] == pytest.approx(19 / 8)


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (
            "[14:25:15] /github/src/video.cc:151: Check failed: st_nb >= 0 (-13 vs. 0) ERROR cannot find",
            "ERROR cannot find",
        ),
        ("[14:25:15] /github/x.cc:270: [/home/me/a.webm] Failed to measure", "[a.webm] Failed to measure"),
        ("[Errno 10] Invalid data: '/home/me/a.mp4'", "[Errno 10] Invalid data: 'a.mp4'"),
        ("first\nsecond", "first"),
        ("", "ValueError"),
    ],
)
def test_reasons_are_one_line_without_clock_folder_or_memory(message: str, plain: str) -> None:
    assert _plain(ValueError(message)) == plain
