"""WebDataset tars: which videos a tar holds, where their bytes lie in it, and their captions.

Members of one key (the name up to its first dot) belong together: `a/0001.mp4` is captioned by `a/0001.txt`,
`a/0001.caption` or a column of `a/0001.json`. Only headers and captions are read here; nothing is ever
extracted.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, NamedTuple, cast

from pipelines.data.source.captions import (
    SIDECARS,
    WORDY,
    Caption,
    read_sidecar,
    sidecars_of,
    too_large,
)
from pipelines.data.source.corpus import OUTSIDE, Corpus, File, escapes, is_hidden, is_video, unreadable
from pipelines.data.types import Reject
from pipelines.storage import os_errors

MAX_HEADER_BYTES = 1 << 20
"""A header that claims more is damage."""
END = bytes(tarfile.BLOCKSIZE)


class Member(NamedTuple):
    """A video in a tar; `offset` is that of its first byte."""

    offset: int
    num_bytes: int


@dataclass(frozen=True)
class TarListing:
    """A tar's videos and rejects, by member name, cleaned of `./`."""

    members: dict[str, Member] = field(default_factory=dict)
    rejects: list[tuple[str, Reject]] = field(default_factory=list)
    """(name of a member, or empty for the tar itself; why)."""
    captions: list[tuple[str, str, Caption | Reject]] = field(default_factory=list)
    """(name of a video, name of the member that speaks of it, what that says)."""
    wordy: list[str] = field(default_factory=list)
    """Names of the members that may hold captions."""


class _Damaged(Exception):
    """The headers end before the tar does; members before that point stand."""


class _Headers:
    """A tar as tarfile sees it: no header may claim more memory than headers need."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        with os_errors():
            return self._file.read(size)

    def seek(self, place: int) -> int:
        with os_errors():
            return self._file.seek(place)


def list_tar(corpus: Corpus, path: str, tar: File) -> TarListing:
    """Read the headers and the captions of a tar.

    Where the tar is damaged, the members before the damage are listed and the tar itself is refused.
    """
    listing = TarListing()
    said: dict[str, Caption | Reject] = {}
    try:
        with corpus.open(path) as opened:
            headers = _Headers(opened)
            for name, member in _members(headers, tar.num_bytes):
                reject = _refusal(name, member)
                if reject is None and (name in listing.members or name in said):
                    reject = Reject("manifest", "the tar has two members of this name")
                if reject is not None:
                    listing.rejects.append((name, reject))
                elif is_hidden(name):
                    continue
                elif is_video(name):
                    listing.members[name] = Member(member.offset_data, member.size)
                elif name.lower().endswith(WORDY):
                    listing.wordy.append(name)
                    if name.lower().endswith(SIDECARS):
                        said[name] = too_large(name, member.size) or _read(headers, name, member)
    except _Damaged as error:
        listing.rejects.append(("", Reject("manifest", f"the tar is damaged: {error}")))
    except OSError as error:
        listing.rejects.append(("", unreadable(error)))
    own = sidecars_of(listing.members, said, by_key=True)
    listing.captions.extend((video, name, said[name]) for video, name in own)
    return listing


def _read(headers: _Headers, name: str, member: tarfile.TarInfo) -> Caption | Reject:
    headers.seek(member.offset_data)
    return read_sidecar(name, headers.read(member.size))


def _members(headers: _Headers, num_bytes: int) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """All members but folders, with their cleaned names.

    Raises:
        _Damaged: bytes that are no header, a member that is cut short, or no end mark.
        OSError: the tar cannot be read.
    """
    place = 0
    try:
        archive = tarfile.open(fileobj=cast(IO[bytes], headers), mode="r:", encoding="utf-8")  # noqa: SIM115
        while (member := archive.next()) is not None:
            if member.size < 0 or archive.offset <= place:
                raise _Damaged(f"the header at byte {place} leads backwards")
            if member.offset_data + member.size > num_bytes:
                raise _Damaged(f"it ends within {member.name}")
            place = archive.offset
            if escapes(member.name):
                yield member.name, member
            elif not member.isdir():
                yield str(PurePosixPath(member.name)), member
        headers.seek(archive.offset)
        if headers.read(tarfile.BLOCKSIZE) != END:
            raise _Damaged(f"no header and no end at byte {archive.offset}")
    except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
        raise _Damaged(f"{error or type(error).__name__} (after byte {place})") from error


def _refusal(name: str, member: tarfile.TarInfo) -> Reject | None:
    if escapes(name):
        return OUTSIDE
    if member.issym() or member.islnk():
        return Reject("manifest", "it is a link in a tar, which is not followed")
    if not member.isreg() or member.issparse():
        return Reject("manifest", "it is no plain file")
    return None
