"""Only binary containers that hold their own frames reach a decoder, and each tells where it is cut off."""

from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.decode.containers import HEAD_BYTES, container_of, is_cut_off, picture_in
from tests.pipelines.data.videos import stamped, write_video


@pytest.mark.parametrize(
    ("name", "codec", "muxer", "container"),
    [
        ("a.mp4", "libx264", "mp4", "mov"),
        ("a.mov", "libx264", "mov", "mov"),
        ("a.3gp", "libx264", "3gp", "mov"),
        ("a.mkv", "libx264", "matroska", "matroska"),
        ("a.webm", "libvpx", "webm", "matroska"),
        ("a.avi", "mpeg4", "avi", "avi"),
        ("a.ts", "libx264", "mpegts", "mpegts"),
        ("a.mpg", "mpeg1video", "mpeg", "mpeg"),
        ("a.flv", "flv", "flv", "flv"),
        ("a.wmv", "wmv2", "asf", "asf"),
        ("a.mxf", "mpeg2video", "mxf", "mxf"),
        ("a.gif", "gif", "gif", "gif"),
    ],
)
def test_real_files_are_known(name: str, codec: str, muxer: str, container: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, stamped(12), fps=25, codec=codec, container=muxer)
    assert container_of(path.read_bytes()[:HEAD_BYTES]) == container


@pytest.mark.parametrize(
    ("head", "container"),
    [
        (b"\x00\x00\x00\x08wide" + bytes(16), "mov"),
        (b"\x00\x00\x10\x00moov" + bytes(16), "mov"),
        (b"\x00\x00\x10\x00mdat" + bytes(16), "mov"),
        (b"OggS" + bytes(30), "ogg"),
        (b"".join(b"\x00\x00\x00\x00G" + bytes(187) for _ in range(3)), "mpegts"),
    ],
)
def test_older_heads_are_known(head: bytes, container: str) -> None:
    assert container_of(head) == container


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"G",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"file '/etc/passwd'\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"GIF88a" + bytes(600),
        b"FLV\x02" + bytes(600),
        b"RIFF\x00\x00\x00\x00WEBPVP8X",
        b"G" + b"x" * 600,
        b"\x89PNG\r\n\x1a\n",
        b"ftypisom" + bytes(100),
    ],
)
def test_everything_else_is_unknown(head: bytes) -> None:
    assert container_of(head[:HEAD_BYTES]) is None


WHOLE = [
    ("a.mkv", "libx264", None),
    ("a.webm", "libvpx", None),
    ("a.avi", "mpeg4", None),
    ("a.flv", "flv", None),
    ("a.wmv", "wmv2", None),
    ("a.mxf", "mpeg2video", None),
    ("a.gif", "gif", None),
    ("a.ogv", "libvpx", "ogg"),
]


@pytest.mark.parametrize(("name", "codec", "muxer"), WHOLE)
def test_a_file_knows_where_it_ends(name: str, codec: str, muxer: str | None, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, stamped(24), fps=25, codec=codec, container=muxer)
    container, whole = container_of(path.read_bytes()[:HEAD_BYTES]), path.read_bytes()
    assert container is not None
    assert not is_cut_off(str(path), container)
    for lost in (len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:-lost])
        assert is_cut_off(str(path), container), lost


@given(st.sampled_from(["mov", "matroska", "avi", "asf", "mxf", "flv", "gif", "ogg"]), st.binary(max_size=80))
def test_no_bytes_make_the_search_for_an_end_fail(container: str, data: bytes) -> None:
    with NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        assert is_cut_off(file.name, container) in (True, False)


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_recording_that_was_never_closed_has_no_end(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, stamped(24), codec="mpeg4")
    data = bytearray(path.read_bytes())
    if name == "a.avi":
        data[4:8] = bytes(4)
    else:
        segment = data.index(b"\x18\x53\x80\x67") + 4
        data[segment : segment + 8] = b"\x01" + b"\xff" * 7
    path.write_bytes(data[: len(data) // 2])
    assert not is_cut_off(str(path), "avi" if name == "a.avi" else "matroska")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x02" + bytes(9), "an animated WebP"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10" + bytes(9), "not a video: a still picture"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "not a video: a still picture"),
        (b"\xff\xd8\xff\xe0", "not a video: a still picture"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", ""),
        (b"", ""),
    ],
)
def test_pictures_are_told_from_videos(head: bytes, words: str) -> None:
    assert picture_in(head).startswith(words)
    assert bool(picture_in(head)) == bool(words)
