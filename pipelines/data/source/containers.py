"""Which container a file is, by its first bytes: no decoder sees a file that is none of these.

Playlists, concat scripts and every other text can name further files, local or remote; a decoder that
guesses by content follows them. Each container here is binary and holds its own frames.
"""

from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .qt .3gp .3g2 .mkv .webm .avi .ogv .ogg .ogm .ts .mts .m2ts .mpg .mpeg .vob".split()
)
MOV_ATOMS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"})
HEAD_BYTES = 188 * 3 + 5


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container that starts with `head` (HEAD_BYTES of it, or the whole of a smaller
    file).

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
    return "mpegts" if _is_transport_stream(head) else None


def _is_transport_stream(head: bytes) -> bool:
    """Three sync bytes, 188 bytes apart (192 with time codes before each packet)."""
    plain = [head[i : i + 1] for i in (0, 188, 376)]
    timed = [head[i : i + 1] for i in (4, 196, 388)]
    return plain == [b"G"] * 3 or timed == [b"G"] * 3


def read_head(path: Path | str) -> bytes:
    """The first HEAD_BYTES of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)
