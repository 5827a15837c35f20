"""Only binary containers that hold their own frames reach a decoder."""

from pathlib import Path

import pytest

from pipelines.data.decode.readers import HEAD_BYTES, container_of
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
        b"GIF89a" + bytes(600),
        b"G" + b"x" * 600,
        b"\x89PNG\r\n\x1a\n",
        b"ftypisom" + bytes(100),
    ],
)
def test_everything_else_is_unknown(head: bytes) -> None:
    assert container_of(head[:HEAD_BYTES]) is None
