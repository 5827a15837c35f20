"""What is in a corpus: its videos, their captions, and their ids (sha256 of their bytes).

A corpus is a folder with everything below it, a tar, or a manifest; on a disk or in a store. Videos lie in
it as files or as members of WebDataset tars (tars.py). Captions come from tables and sidecars (captions.py);
a video without one is captioned by the words of its name. Nothing outside the corpus folder is ever read.

sources.parquet in the dataset keeps the hashes, so that the next listing reads only what is new. While a
video is decoded it is a local file (`local_copy`).
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import pyarrow as pa

from models.errors import ClusterError, DataError
from pipelines.data.source.captions import (
    WORDY,
    Caption,
    Captions,
    Names,
    caption_note,
    is_text,
    read_sidecar,
    sidecars_of,
    too_large,
    words_of,
)
from pipelines.data.source.corpus import (
    COMPRESSED,
    COMPRESSED_SUFFIXES,
    MISSING,
    OUTSIDE,
    REMEDY,
    TAR_SUFFIX,
    VIDEO_SUFFIXES,
    Corpus,
    File,
    Walk,
    escapes,
    is_video,
    locate,
    others_note,
    reason_of,
    unreadable,
)
from pipelines.data.source.metadata import Table, tables_among
from pipelines.data.source.tars import list_tar
from pipelines.data.tables import read_table, write_table
from pipelines.data.types import SAME_BYTES, Reject, Rejected
from pipelines.storage import Storage, temporary_file

SOURCES_FILE = "sources.parquet"
READERS = 4
"""Threads that list tars, hash videos and read sidecars."""

Identity = tuple[str, int, str]
"""(path, bytes, stamp) of a video: while they stay, so do its bytes."""
_COLUMNS = pa.schema(
    {"corpus": pa.string(), "path": pa.string(), "num_bytes": pa.int64()}
    | {"stamp": pa.string(), "sha256": pa.string()}
)


@dataclass(frozen=True, kw_only=True)
class Source:
    id: str = ""
    """sha256 of its bytes; empty before they are read."""
    path: str
    """Relative to the corpus folder, with /; of a member, the tar's path with the member's name."""
    caption: str = ""
    num_bytes: int
    stamp: str = ""
    """Changes when the file (or the tar) does: modification time, or the store's ETag."""
    tar: str = ""
    """Path of the tar that holds it; empty for a file."""
    offset: int = 0
    """Of its first byte in the tar."""

    @property
    def identity(self) -> Identity:
        return self.path, self.num_bytes, self.stamp


class Listing(NamedTuple):
    """A corpus: what is to be read, and what is refused before a byte is decoded."""

    sources: list[Source]
    """In the order of their paths; no two with the same bytes."""
    rejects: list[tuple[str, Reject]]
    """(path, why), in order."""
    root: str
    """Folder or URI that the paths are relative to."""
    hashes: dict[Identity, str]
    """The sha256 of every video."""
    metadata: dict[str, str]
    """Path -> what its metadata says beside the caption, as JSON; nothing where that is nothing."""
    note: str
    """How many videos are captioned by their names, what was not used, and which files are no videos; empty
    where there is nothing to tell."""


def list_corpora(
    storage: Storage, locations: Mapping[str, str], links: str | None = None, *, rehash: bool = False
) -> dict[str, Listing]:
    """List each corpus. Files unchanged since the dataset's last listing are read only to `rehash`.

    Raises:
        DataError: a corpus is missing, empty or unreadable; the earlier list is damaged.
        ConfigError: `links` is no folder.
    """
    hashes = {} if rehash else _read_hashes(storage)
    return {name: list_corpus(location, hashes.get(name), links) for name, location in locations.items()}


def save_hashes(storage: Storage, listings: Mapping[str, Listing]) -> None:
    """Store what was hashed, for the next listing; if nothing has changed, the file is left as it is."""
    hashes = {corpus: listing.hashes for corpus, listing in listings.items()}
    if storage.exists(SOURCES_FILE) and _read_hashes(storage) == hashes:
        return
    rows = [
        dict(zip(_COLUMNS.names, (corpus, *identity, sha256), strict=True))
        for corpus, entries in hashes.items()
        for identity, sha256 in sorted(entries.items())
    ]
    write_table(storage, SOURCES_FILE, pa.Table.from_pylist(rows, _COLUMNS))


def _read_hashes(storage: Storage) -> dict[str, dict[Identity, str]]:
    hashes: dict[str, dict[Identity, str]] = {}
    if storage.exists(SOURCES_FILE):
        for row in read_table(storage, SOURCES_FILE).to_pylist():
            identity = row["path"], row["num_bytes"], row["stamp"]
            hashes.setdefault(row["corpus"], {})[identity] = row["sha256"]
    return hashes


def list_corpus(
    location: str | Path, hashes: Mapping[Identity, str] | None = None, links: str | None = None
) -> Listing:
    """List a corpus.

    Args:
        location: path or fsspec URI of a folder, a tar or a manifest (a table).
        hashes: of an earlier listing; those videos are not read again. A file without a stamp always is.
        links: the folder where links may end, besides the corpus.

    Raises:
        DataError: there is no such corpus, it cannot be reached, it holds no video, two files give a video
            different captions, or a table is malformed or names no file that exists.
        ConfigError: `links` is no folder.
    """
    corpus, single = locate(location, links)
    is_tar = single.lower().endswith(TAR_SUFFIX)
    walk, below = Walk([single], []), None
    if not single or not (corpus.is_local or is_tar):
        # of the files that a manifest names, a store is asked at once, a disk one by one
        try:
            below = corpus.walk()
        except OSError as error:
            raise DataError(f"{corpus.root} cannot be read: {reason_of(error)}", REMEDY) from error
        walk = walk if single else below
    files = walk.files
    candidates = _Candidates(corpus)
    for path, reject in walk.refused:
        candidates.refuse(path, reject)
    for path in files:
        if path.lower().endswith(COMPRESSED_SUFFIXES):
            candidates.refuse(path, COMPRESSED)
    candidates.add_tars([path for path in files if path.lower().endswith(TAR_SUFFIX)])
    videos = list(filter(is_video, files))
    sidecars = list(sidecars_of(videos, files))
    others = sorted(set(files).difference(file for _, file in sidecars))
    names = Names(corpus, below and {*filter(is_video, below.files), *candidates.found})
    for table in [Table(single)] if single and not is_tar else tables_among(others):
        candidates.captions.read_table(corpus, table, names)
    candidates.add_sidecars(sidecars)
    candidates.captions.check(corpus.root)
    candidates.add_files(sorted({*videos, *candidates.captions.of}))
    candidates.wordy.update(path for path in files if path.lower().endswith(WORDY))
    known = (TAR_SUFFIX, *COMPRESSED_SUFFIXES, *WORDY)
    candidates.others = [p for p in files if not is_video(p) and not p.lower().endswith(known)]
    if not candidates.found and not candidates.rejects:
        raise DataError(
            f"{corpus.address(single) if single else corpus.root} holds no video",
            f"Put files there that end in one of {' '.join(sorted(VIDEO_SUFFIXES))}",
        )
    if not candidates.found and all(reject == MISSING for _, reject in candidates.rejects):
        raise DataError(
            f"{corpus.root}: the metadata names {len(candidates.captions.of)} videos, and none of them is "
            "there",
            "Put the videos beside their metadata file, or correct its file_name column",
        )
    return _identify(candidates, hashes or {})


class _Candidates:
    """Everything that may be a video, by its path; not yet identified."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.captions = Captions()
        self.found: dict[str, Source] = {}
        self.rejects: list[tuple[str, Reject]] = []
        self.others: list[str] = []
        """Files of no use here, such as thumbnails."""
        self.wordy: set[str] = set()
        """Files and members of tars that may hold captions."""

    def refuse(self, path: str, reject: Reject) -> None:
        self.rejects.append((path.encode("utf-8", "backslashreplace").decode(), reject))

    def add_tars(self, tars: list[str]) -> None:
        files: dict[str, File] = {}
        for tar in tars:
            file = self.corpus.stat(tar)
            if isinstance(file, Reject):
                self.refuse(tar, file)
            else:
                files[tar] = file
        with ThreadPoolExecutor(READERS) as pool:
            listings = pool.map(lambda tar: list_tar(self.corpus, tar, files[tar]), files)
            for (tar, file), listing in zip(files.items(), listings, strict=True):
                for name, reject in listing.rejects:
                    self.refuse(f"{tar}/{name}".rstrip("/"), reject)
                for name, member in listing.members.items():
                    source = Source(path=f"{tar}/{name}", num_bytes=member.num_bytes, stamp=file.stamp)
                    self.found[source.path] = replace(source, tar=tar, offset=member.offset)
                for name, sidecar, caption in listing.captions:
                    self.captions.add(f"{tar}/{name}", caption, f"{tar}/{sidecar}")
                self.wordy.update(f"{tar}/{name}" for name in listing.wordy)

    def add_sidecars(self, sidecars: list[tuple[str, str]]) -> None:
        """Read the files that caption the video beside them, each once."""
        files = sorted({file for _, file in sidecars})
        with ThreadPoolExecutor(READERS) as pool:
            said = dict(zip(files, pool.map(self._read_sidecar, files), strict=True))
        for video, file in sidecars:
            self.captions.add(video, said[file], file)

    def _read_sidecar(self, name: str) -> Caption | Reject:
        file = self.corpus.stat(name)
        try:
            if isinstance(file, File):
                return too_large(name, file.num_bytes) or read_sidecar(name, self.corpus.read(name))
        except OSError as error:
            file = unreadable(error)
        return Reject("manifest", f"its caption {PurePosixPath(name).name}: {file.reason}")

    def add_files(self, paths: list[str]) -> None:
        """Add files, of which tables may name what is not there."""
        for path in paths:
            if path in self.found:
                continue
            file = self.corpus.stat(path)
            if isinstance(file, Reject):
                self.refuse(path, file)
            elif not is_video(path):
                self.refuse(path, Reject("manifest", "its name does not end as a video's does"))
            else:
                self.found[path] = Source(path=path, num_bytes=file.num_bytes, stamp=file.stamp)

    def captioned(self) -> Iterator[tuple[Source, Caption]]:
        """Each video with what is said of it, in the order of their paths; refuses those that cannot be."""
        for path, source in sorted(self.found.items()):
            caption = self.captions.of.get(path, Caption("", {}))
            if isinstance(caption, Reject):
                self.refuse(path, caption)
            elif not is_text(path):
                self.refuse(path, Reject("manifest", "its name is not UTF-8"))
            else:
                yield replace(source, caption=caption.text or words_of(path)), caption


def _identify(candidates: _Candidates, known: Mapping[Identity, str]) -> Listing:
    """Hash the videos not hashed before, and keep the first of any with the same bytes."""
    found = list(candidates.captioned())
    with ThreadPoolExecutor(READERS) as pool:
        hashes = list(pool.map(lambda one: _sha256(candidates.corpus, one[0], known), found))
    kept: dict[str, tuple[Source, Caption]] = {}
    hashed: dict[Identity, str] = {}
    for (source, caption), sha256 in zip(found, hashes, strict=True):
        if isinstance(sha256, Reject):
            candidates.refuse(source.path, sha256)
            continue
        hashed[source.identity] = sha256
        first, _ = kept.setdefault(sha256, (replace(source, id=sha256), caption))
        if first.path != source.path:
            candidates.refuse(source.path, Reject("manifest", f"{SAME_BYTES}{first.path}"))
    about_captions = caption_note(
        by_name=sum(not caption.text for _, caption in kept.values()),
        videos=len(kept),
        extra=(caption.extra for _, caption in kept.values()),
        files=candidates.wordy - candidates.captions.used,
    )
    return Listing(
        sources=[source for source, _ in kept.values()],
        rejects=sorted(candidates.rejects, key=lambda one: (one[0], one[1].reason)),
        root=candidates.corpus.root,
        hashes=hashed,
        metadata={source.path: json.dumps(c.extra, default=str) for source, c in found if c.extra},
        note="; ".join(filter(None, (about_captions, others_note(candidates.others)))),
    )


def _sha256(corpus: Corpus, source: Source, known: Mapping[Identity, str]) -> str | Reject:
    if source.stamp and source.identity in known:
        return known[source.identity]
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        for block in corpus.blocks(source.tar or source.path, source.offset, source.num_bytes):
            digest.update(block)
            num_bytes += len(block)
    except OSError as error:
        return unreadable(error)
    if num_bytes != source.num_bytes:
        return Reject("manifest", "it changed while it was read")
    return digest.hexdigest()


@contextmanager
def local_copy(root: str, source: Source, links: str | None = None) -> Iterator[str]:
    """The local path of a video.

    A file on a local disk is its own copy. Anything else is streamed into a private temporary file, deleted
    when the context ends or, if the process is killed, when another makes the next. Passing failures are
    retried by the store's own client.

    Args:
        root: of the listing that the source is from.
        links: as the listing was given.

    Raises:
        Rejected: at stage `fetch`: it cannot be read, or has changed since it was listed.
        ClusterError: the disk for temporary files cannot take it.
    """
    corpus = Corpus(root, links)
    if escapes(source.path):
        raise Rejected("fetch", OUTSIDE.reason)
    if corpus.is_local:
        file = corpus.stat(source.tar or source.path)
        if isinstance(file, Reject):
            raise Rejected("fetch", file.reason)
        if not source.tar:
            _check_size(source, file.num_bytes)
            if source.stamp not in ("", file.stamp):
                raise Rejected("fetch", "it was written to since it was listed")
            try:
                place = corpus.place(source.path)
            except OSError as error:
                raise Rejected("fetch", reason_of(error)) from error
            yield place
            return
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(temporary_file(PurePosixPath(source.path).suffix))
            _fill(corpus, source, copy)
        except OSError as error:
            raise ClusterError(
                f"No temporary copy of a video in {tempfile.gettempdir()}: {reason_of(error)}",
                "Free space there, or set TMPDIR to a folder with more",
            ) from error
        yield copy.name


def _fill(corpus: Corpus, source: Source, copy: IO[bytes]) -> None:
    digest = hashlib.sha256()
    blocks = corpus.blocks(source.tar or source.path, source.offset, source.num_bytes)
    while True:
        try:
            block = next(blocks, b"")
        except OSError as error:
            raise Rejected("fetch", f"it cannot be read: {reason_of(error)}") from error
        if not block:
            break
        digest.update(block)
        copy.write(block)
    copy.flush()
    _check_size(source, copy.tell())
    if digest.hexdigest() != source.id:
        raise Rejected("fetch", "its bytes have changed since it was listed")


def _check_size(source: Source, num_bytes: int) -> None:
    if num_bytes != source.num_bytes:
        raise Rejected("fetch", f"it has {num_bytes} bytes, and had {source.num_bytes} when it was listed")
