"""Where a corpus lies: files below one root, on a disk or in any store that fsspec knows.

Nothing outside the root is ever read, but what links to the one further folder that the user names
(`data.links`). A store's own errors arrive as OSError.
"""

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from models.errors import ConfigError, DataError
from pipelines.data.types import Reject
from pipelines.storage import one_line, os_errors

BLOCK_BYTES = 8 << 20
"""Bytes of a video in memory at a time, and of one request to a store."""
HEADER_BLOCK_BYTES = 64 << 10
"""Bytes of one request while the headers of a tar are read."""
VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .qt .3gp .3g2 .mj2 .insv .lrv .mkv .webm .avi .divx .amv .ogv .ogg .ogm .ts .mts .m2ts "
    ".m2t .trp .mod .tod .mpg .mpeg .mpe .m1v .m2v .vob .flv .f4v .wmv .asf .wtv .mxf .gif .webp "
    ".rm .rmvb .dv .y4m .ivf .nut .h264 .264 .h265 .265 .hevc".split()
)
"""Names of videos, read or not: those that are not are refused by their first bytes."""
COMPRESSED_SUFFIXES = tuple(".zip .7z .rar .gz .tgz .bz2 .tbz .tbz2 .xz .txz .zst .tzst .lz4".split())
TAR_SUFFIX = ".tar"
MANIFEST_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
"""What stores call the mark that changes with a file's bytes, the most reliable first."""
NAMED_KINDS = 8
"""Most kinds of files that a message names."""
REMEDY = "Check the path or the address, the credentials, and that this machine may read there"

COMPRESSED = Reject(
    "manifest", "it is compressed, and not looked into: unpack it; a plain .tar is read as it is"
)
OUTSIDE = Reject("manifest", "its path leaves the corpus folder")
UNSIZED = Reject("manifest", "the store does not tell its size")
MISSING = Reject("manifest", "its metadata names it, but there is no such file")


class File(NamedTuple):
    num_bytes: int
    stamp: str
    """Changes when the file does; empty where the store has no such mark."""


class Walk(NamedTuple):
    files: list[str]
    """Relative paths of files, and of links to files, in order; no hidden names."""
    refused: list[tuple[str, Reject]]
    """Folders that are not entered, and why."""


class Corpus:
    """Files below one root.

    Args:
        root: a folder (made absolute) or an fsspec URI. It need not exist.
        links: a folder on this machine's disk where links of a local corpus may end, too.

    Raises:
        DataError: the URI's file system is unknown or not installed.
        ConfigError: `links` is no folder.
    """

    def __init__(self, root: str | Path, links: str | None = None) -> None:
        if "://" in str(root):
            try:
                self._fs, path = fsspec.core.url_to_fs(str(root))
            except (ImportError, ValueError) as error:
                missing = isinstance(error, ImportError)
                package = "Install the store's package, for s3:// sostenuto[s3]"
                remedy = package if missing else "Give a folder or a URI such as s3://bucket/videos"
                raise DataError(f"{root} cannot be reached: {error}", remedy) from error
        else:
            self._fs, path = LocalFileSystem(), os.path.abspath(os.path.expanduser(root))
        self._path = path.rstrip("/") or "/"
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self.root: str = self._path if self.is_local else self._fs.unstrip_protocol(self._path)
        """Absolute path, or URI."""
        if links is not None and not os.path.isdir(links):
            raise ConfigError(f"data.links = {links} is no folder here", "Set it to where the links end")
        self._within = [os.path.realpath(top) for top in (self._path, links) if top and self.is_local]
        self._listed: dict[str, dict[str, Any]] | None = None

    def address(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}"

    def relative(self, path: str) -> str | None:
        """The path below the root of an absolute path or URI, by either name of a root that is a link, in any
        Unicode form; None of any other."""
        for top in (self.root, *self._within[:1]):
            for form in (path, unicodedata.normalize("NFC", path)):
                start = (top if form is path else unicodedata.normalize("NFC", top)).rstrip("/") + "/"
                if form.startswith(start):
                    return form[len(start) :]
        return None

    def is_folder(self) -> bool:
        """Whether the root is one. Raises OSError where the store cannot tell."""
        self._fs.invalidate_cache()
        with os_errors():
            return bool(self._fs.isdir(self._path))

    def walk(self) -> Walk:
        """Everything below the root. Raises OSError where the root cannot be listed."""
        if self.is_local:
            return self._walk_disk()
        self._fs.invalidate_cache()
        with os_errors():
            found = self._fs.find(self._path, detail=True)
        start = self._path.rstrip("/") + "/"
        self._listed = {name[len(start) :]: info for name, info in found.items() if name.startswith(start)}
        return Walk(sorted(path for path in self._listed if not is_hidden(path)), [])

    def _walk_disk(self) -> Walk:
        files: list[str] = []
        refused: list[tuple[str, Reject]] = []
        faults: list[OSError] = []
        for folder, folders, names in os.walk(self._path, onerror=faults.append):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = "" if folder == self._path else os.path.relpath(folder, self._path) + "/"
            files += [below + name for name in names if not name.startswith(".")]
            links = [below + name for name in folders if os.path.islink(os.path.join(folder, name))]
            refused += [(path, cast(Reject, self.stat(path))) for path in links]
        for error in faults:
            if error.filename == self._path:
                raise error
            refused.append((os.path.relpath(error.filename, self._path), unreadable(error)))
        return Walk(sorted(files), sorted(refused, key=lambda one: one[0]))

    def stat(self, path: str) -> File | Reject:
        """The size and the stamp of a file below the root, or why it is refused."""
        if escapes(path):
            return OUTSIDE
        try:
            return self._stat_on_disk(path) if self.is_local else self._stat_in_store(path)
        except FileNotFoundError:
            return MISSING
        except OSError as error:
            return unreadable(error)

    def _stat_on_disk(self, path: str) -> File | Reject:
        full = self._join(path)
        if os.path.isdir(full) and os.path.islink(full):
            return Reject("manifest", "it is a link to a folder, which is not followed")
        real = os.path.realpath(full)
        if not self._holds(real):
            folder = os.path.dirname(real)
            return Reject(
                "manifest",
                f"it is a link out of the corpus folder, into {folder}: data.links={folder} allows those",
            )
        if os.path.isfile(real):
            status = os.stat(real)
            return File(status.st_size, str(status.st_mtime_ns))
        if os.path.islink(full):
            return Reject("manifest", "it is a link to nothing")
        return Reject("manifest", "it is no plain file") if os.path.exists(full) else MISSING

    def _holds(self, real: str) -> bool:
        return any(os.path.commonpath((top, real)) == top for top in self._within)

    def _stat_in_store(self, path: str) -> File | Reject:
        if self._listed is not None and path not in self._listed:
            return MISSING
        info = (self._listed or {}).get(path)
        with os_errors():
            if info is None or info.get("size") is None:
                info = cast(dict[str, Any], self._fs.info(self._join(path)))
            if info["type"] != "file":
                return MISSING
            if info.get("size") is None:
                return UNSIZED
            stamp = next((str(info[name]) for name in STAMPS if info.get(name)), "")
            return File(int(info["size"]), stamp)

    def _join(self, path: str) -> str:
        return f"{self._path.rstrip('/')}/{path}"

    def place(self, path: str) -> str:
        """Where to open a file: on a disk behind all its links, looked at anew each time.

        Raises:
            OSError: its links lead out by now.
        """
        if not self.is_local:
            return self._join(path)
        real = os.path.realpath(self._join(path))
        if not self._holds(real):
            raise OSError(errno.EPERM, "it is a link out of the corpus folder", path)
        return real

    def read(self, path: str) -> bytes:
        """The whole of a small file. Raises OSError."""
        with os_errors():
            return bytes(self._fs.cat_file(self.place(path)))

    def open(self, path: str) -> IO[bytes]:
        """A file to seek in, for small reads here and there. Raises OSError."""
        if self.is_local:
            return open(self.place(path), "rb")
        options: dict[str, Any] = {"block_size": HEADER_BLOCK_BYTES, "cache_type": "readahead"}
        with os_errors():
            return cast(IO[bytes], self._fs.open(self.place(path), "rb", **options))

    def blocks(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """`length` bytes from `offset` on, BLOCK_BYTES at a time; fewer at its end. Raises OSError."""
        for start in range(offset, offset + length, BLOCK_BYTES):
            end = min(start + BLOCK_BYTES, offset + length)
            with os_errors():
                block = bytes(self._fs.cat_file(self.place(path), start=start, end=end))
            yield block
            if len(block) < end - start:
                return


def locate(location: str | Path, links: str | None = None) -> tuple[Corpus, str]:
    """Find a corpus.

    Args:
        location: a folder, or one file, a tar or a manifest; a path or an fsspec URI.
        links: as `Corpus` takes it.

    Returns:
        The corpus and, where the location is one file, its name in it; else an empty name.

    Raises:
        DataError: there is nothing of the kind, or it cannot be reached.
    """
    corpus = Corpus(location, links)
    try:
        if corpus.is_folder():
            return corpus, ""
    except OSError as error:
        raise DataError(f"{corpus.root} cannot be read: {reason_of(error)}", REMEDY) from error
    folder, _, name = corpus.root.rpartition("/")
    if folder and PurePosixPath(name).suffix.lower() in (TAR_SUFFIX, *MANIFEST_SUFFIXES):
        parent = Corpus(folder, links)
        if isinstance(parent.stat(name), File):
            return parent, name
    raise DataError(
        f"{corpus.root} is no folder, and no tar or manifest",
        "Set data.short and data.long to two folders of videos, tars or manifests that this machine can read",
    )


def reason_of(error: OSError) -> str:
    """An error's reason on one line, without its number and path."""
    return " ".join((error.strerror or one_line(error)).split())


def unreadable(error: OSError) -> Reject:
    return Reject("manifest", f"it cannot be read: {reason_of(error)}")


def is_video(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def escapes(path: str) -> bool:
    """Whether a relative path could lead out of its root."""
    return path.startswith("/") or "://" in path or "\0" in path or ".." in path.split("/")


def is_hidden(path: str) -> bool:
    return any(name.startswith(".") for name in path.split("/"))


def others_note(files: Iterable[str]) -> str:
    """How many files of each ending are left alone, for a person; empty where there are none."""
    files = sorted(files)
    kinds = Counter(PurePosixPath(path).suffix.lower() or "without an ending" for path in files)
    counts = [f"{count} {kind}" for kind, count in kinds.most_common(NAMED_KINDS)]
    counts += [f"{len(kinds) - NAMED_KINDS} more kinds"] if len(kinds) > NAMED_KINDS else []
    return f"no videos by their names: {', '.join(counts)}, such as {files[0]}" if files else ""
