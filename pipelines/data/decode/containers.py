"""What a file's bytes say before a decoder sees them: its container, and whether it was cut off.

Playlists, concat scripts and every other text can name further files, local or remote, and a decoder that
guesses by content follows them. Each container here is binary and holds its own frames.
"""

import os
from typing import BinaryIO

from pipelines.data.types import NOT_A_VIDEO

MOV_ATOMS = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"})
MAGIC = {
    b"\x1a\x45\xdf\xa3": "matroska",
    b"OggS": "ogg",
    b"\x00\x00\x01\xba": "mpeg",
    b"FLV\x01": "flv",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"): "asf",
    bytes.fromhex("060e2b34020501010d0102"): "mxf",
}
STILL = f"{NOT_A_VIDEO}a still picture"
HEAD_BYTES = 188 * 3 + 5
OGG_PAGE_BYTES = 27 + 255 + 255 * 255
"""Largest page."""
LARGEST_PLACE = 1 << 40
"""Beyond any file; systems differ in how far they seek."""
RIFF_PARTS = 64
"""Most parts of an AVI file that are looked at; each holds a gigabyte or so."""


def container_of(head: bytes) -> str | None:
    """FFmpeg's name of the container that starts with `head` (HEAD_BYTES of it, or the whole of a smaller
    file): `mov`, `matroska`, `avi`, `ogg`, `mpegts`, `mpeg`, `flv`, `asf`, `mxf`, `gif`; None for everything
    else."""
    if head[4:8] in MOV_ATOMS:
        return "mov"
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    # three sync bytes, 188 bytes apart, or 192 with time codes before each packet
    plain, timed = head[0 : 188 * 3 : 188], head[4 : 192 * 3 : 192]
    return "mpegts" if b"GGG" in (plain, timed) else None


def picture_in(head: bytes) -> str:
    """Why a picture that starts with `head` is not read; empty for anything else."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        animated = head[12:16] == b"VP8X" and len(head) > 20 and head[20] & 2
        return "an animated WebP, which FFmpeg does not decode: convert it" if animated else STILL
    stills = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
    return STILL if head.startswith(stills) else ""


def is_cut_off(path: str, container: str) -> bool:
    """Whether a file ends before the place where its own structure says it does.

    False where the structure does not tell: MPEG streams, and recordings that were never closed. Of `mov`
    only the index of a fragment is looked for: those that are there say more (readers.py).
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if container == "mov":
            return _breaks_off_in_fragment(file, size)
        if container == "matroska":
            return _matroska_end(file) > size
        if container == "avi":
            return _riff_end(file) > size
        if container == "asf":
            header = _little(file, 16, 8)
            return header + _little(file, header + 16, 8) > size
        if container == "mxf":
            return _mxf_footer(file) >= size
        if container == "flv":
            return not _ends_with_flv_tag(file, size)
        if container == "gif":
            return not _bytes(file, max(0, size - 64), 64).rstrip(b"\0").endswith(b";")
        return container == "ogg" and _ogg_end(file, size) > size


def _bytes(file: BinaryIO, place: int, count: int) -> bytes:
    """`count` bytes from `place`; zeros where the file has none."""
    file.seek(min(place, LARGEST_PLACE))
    return file.read(count).ljust(count, b"\0")


def _little(file: BinaryIO, place: int, count: int) -> int:
    return int.from_bytes(_bytes(file, place, count), "little")


def _breaks_off_in_fragment(file: BinaryIO, size: int) -> bool:
    """Whether the last box of an MP4 is an index of a fragment that goes on behind the end."""
    place, kind, length = 0, b"", 8
    while place < size and length >= 8:
        head = _bytes(file, place, 16)
        kind, length = head[4:8], int.from_bytes(head[:4])
        length = int.from_bytes(head[8:]) if length == 1 else length
        place += length
    return place > size and kind == b"moof"


def _matroska_end(file: BinaryIO) -> int:
    """End of the segment, which follows the header; 0 where it has no size yet."""
    end = 0
    for _ in ("header", "segment"):
        head = _bytes(file, end, 12)
        size = head[9 - head[0].bit_length() :]
        digits = 9 - size[0].bit_length() if size else 9
        unknown = (1 << 7 * digits) - 1
        value = int.from_bytes(size[:digits]) & unknown
        if value == unknown:
            return 0
        end += len(head) - len(size) + digits + value
    return end


def _riff_end(file: BinaryIO) -> int:
    """End of the last RIFF part; 0 where one has no size yet."""
    end = 0
    for _ in range(RIFF_PARTS):
        start = end + end % 2
        if _bytes(file, start, 4) != b"RIFF":
            break
        size = _little(file, start + 4, 4)
        if size == 0:
            return 0
        end = start + 8 + size
    return end


def _mxf_footer(file: BinaryIO) -> int:
    """Where the header says that the footer is; 0 where it does not."""
    length = _bytes(file, 16, 1)[0]
    fields = 17 + (length & 0x7F if length & 0x80 else 0)
    return int.from_bytes(_bytes(file, fields + 24, 8))


def _ends_with_flv_tag(file: BinaryIO, size: int) -> bool:
    """Whether the last tag is whole: its length is repeated behind it."""
    length = int.from_bytes(_bytes(file, max(0, size - 4), 4))
    tag = size - 4 - length
    return tag > 0 and int.from_bytes(_bytes(file, tag + 1, 3)) == length - 11


def _ogg_end(file: BinaryIO, size: int) -> int:
    """End of the last page, as its header says."""
    start = max(0, size - OGG_PAGE_BYTES)
    tail = _bytes(file, start, OGG_PAGE_BYTES)
    page = tail.rfind(b"OggS\0")
    segments = tail[page + 26]
    return start + page + 27 + segments + sum(tail[page + 27 : page + 27 + segments])
