"""What is in a corpus: its videos, their captions, and who they are (sha256 of their bytes).

A corpus is a folder with everything below it, a tar, or a manifest; on a disk or in a store. Videos lie in
it as files or as members of WebDataset tars (tars.py). Captions come from metadata (metadata.py); a video
without one is captioned by the words of its name. Nothing outside the corpus folder is ever read.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from models.errors import DataError
from pipelines.data.source.captions import Caption, is_text, metadata_files, read_captions
from pipelines.data.source.containers import VIDEO_SUFFIXES
from pipelines.data.source.corpus import MISSING, REMEDY, TAR_SUFFIX, Corpus, Walk, locate, unreadable, why
from pipelines.data.source.tars import Member, list_tar
from pipelines.data.types import SAME_BYTES, Reject

READERS = 4
"""Threads that list tars and hash videos."""

Known = Mapping[tuple[str, int, str], str]
"""(path, bytes, stamp) of a video -> its sha256."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One video of a corpus."""

    id: str
    """sha256 of its bytes."""
    path: str
    """Relative to the corpus folder, with /; of a member, the tar's path with the member's name."""
    caption: str
    num_bytes: int
    stamp: str = ""
    """Changes when the file (or the tar) does: modification time, or the store's ETag."""
    tar: str = ""
    """Path of the tar that holds it; empty for a file."""
    offset: int = 0
    """Of its first byte in the tar."""

    @property
    def key(self) -> tuple[str, int, str]:
        """By which its sha256 is known again."""
        return self.path, self.num_bytes, self.stamp


class Listing(NamedTuple):
    """A corpus: what is to be read, and what is refused before a byte is decoded."""

    sources: list[Source]
    """In the order of their paths; no two with the same bytes."""
    rejects: list[tuple[str, Reject]]
    """(path, why), in order."""
    root: str
    """Folder or URI that the paths are relative to (fetch.py)."""
    known: dict[tuple[str, int, str], str]
    """The sha256 of everything hashed: given to the next listing, it reads only what has changed."""
    metadata: dict[str, str]
    """Path -> what its metadata says beside the caption, as JSON; nothing where that is nothing."""


def sources(location: str | Path, known: Known | None = None) -> Listing:
    """List a corpus.

    Args:
        location: path or fsspec URI of a folder, a tar or a manifest (`.parquet`, `.csv`, `.jsonl`).
        known: of an earlier listing; what it holds is not read again. A file without a stamp always is.

    Raises:
        DataError: there is no such corpus, it cannot be reached, it holds no video, its metadata is malformed
            or names no file that exists.
    """
    corpus, single = locate(location)
    files, refused = _files(corpus, single)
    candidates = _Candidates(corpus, refused)
    candidates.add_tars([path for path in files if path.lower().endswith(TAR_SUFFIX)])
    metadata = metadata_files(files)
    if single and not single.lower().endswith(TAR_SUFFIX):
        metadata = [single]
    captions = read_captions(corpus, metadata)
    videos = {path for path in files if PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES}
    candidates.add_files(sorted({*videos, *captions}), captions)
    if not candidates.sources and not candidates.rejects:
        raise DataError(
            f"{corpus.at(single) if single else corpus.root} holds no video",
            f"Put files there that end in one of {' '.join(sorted(VIDEO_SUFFIXES))}",
        )
    if not candidates.sources and all(reject == MISSING for _, reject in candidates.rejects):
        raise DataError(
            f"{corpus.root}: the metadata names {len(captions)} videos, and none of them is there",
            "Put the videos beside their metadata file, or correct its file_name column",
        )
    return _identify(candidates, known or {})


def _files(corpus: Corpus, single: str) -> Walk:
    """Everything below a folder, or the one file. What a manifest names in a store is listed at once; a disk
    is asked file by file."""
    if single and (corpus.is_local or single.lower().endswith(TAR_SUFFIX)):
        return Walk([single], [])
    try:
        walk = corpus.walk()
    except OSError as error:
        raise DataError(f"{corpus.root} cannot be read: {why(error)}", REMEDY) from error
    return Walk([single], []) if single else walk


class _Candidates:
    """Everything that may be a video, by its path; not yet identified."""

    def __init__(self, corpus: Corpus, refused: list[tuple[str, Reject]]) -> None:
        self.corpus = corpus
        self.sources: dict[str, Source] = {}
        self.rejects: list[tuple[str, Reject]] = []
        self.metadata: dict[str, dict[str, Any]] = {}
        for path, reject in refused:
            self.refuse(path, reject)

    def refuse(self, path: str, reject: Reject) -> None:
        """Note why a path is no source."""
        self.rejects.append((path.encode("utf-8", "backslashreplace").decode(), reject))

    def add_tars(self, paths: list[str]) -> None:
        """The members of tars."""
        looked = {path: self.corpus.look(path) for path in paths}
        good = {path: file for path, file in looked.items() if not isinstance(file, Reject)}
        with ThreadPoolExecutor(READERS) as pool:
            listings = list(pool.map(lambda one: list_tar(self.corpus, *one), good.items()))
        for path, file in looked.items():
            if isinstance(file, Reject):
                self.refuse(path, file)
        for (tar, file), listing in zip(good.items(), listings, strict=True):
            for name, reject in listing.rejects:
                self.refuse(f"{tar}/{name}".rstrip("/"), reject)
            for name, member in listing.members.items():
                self._add_member(tar, name, member, file.stamp)

    def _add_member(self, tar: str, name: str, member: Member, stamp: str) -> None:
        path = f"{tar}/{name}"
        found = Source(
            id="",
            path=path,
            caption="",
            num_bytes=member.num_bytes,
            stamp=stamp,
            tar=tar,
            offset=member.offset,
        )
        self._caption(found, member.caption)

    def add_files(self, paths: list[str], captions: Mapping[str, Caption | Reject]) -> None:
        """Files, and what metadata names: it may also caption members of tars."""
        for path in paths:
            caption = captions.get(path, Caption("", {}))
            member = self.sources.pop(path, None)
            if member is not None:
                self._caption(member, caption)
                continue
            file = self.corpus.look(path)
            if isinstance(file, Reject):
                self.refuse(path, file)
            elif PurePosixPath(path).suffix.lower() not in VIDEO_SUFFIXES:
                self.refuse(path, Reject("manifest", "its name does not end as a video's does"))
            else:
                found = Source(id="", path=path, caption="", num_bytes=file.num_bytes, stamp=file.stamp)
                self._caption(found, caption)

    def _caption(self, source: Source, caption: Caption | Reject) -> None:
        """Take a source with its caption, or refuse it."""
        if isinstance(caption, Reject):
            self.refuse(source.path, caption)
        elif not is_text(source.path):
            self.refuse(source.path, Reject("manifest", "its name is not UTF-8"))
        else:
            text = caption.text or source.caption or _words(source.path)
            self.sources[source.path] = replace(source, caption=text)
            self.metadata.setdefault(source.path, {}).update(caption.extra)


def _identify(candidates: _Candidates, known: Known) -> Listing:
    found = [source for _, source in sorted(candidates.sources.items())]
    with ThreadPoolExecutor(READERS) as pool:
        hashes = list(pool.map(lambda source: _sha256(candidates.corpus, source, known), found))
    kept: dict[str, Source] = {}
    hashed: dict[tuple[str, int, str], str] = {}
    for source, sha256 in zip(found, hashes, strict=True):
        if isinstance(sha256, Reject):
            candidates.refuse(source.path, sha256)
            continue
        hashed[source.key] = sha256
        first = kept.setdefault(sha256, replace(source, id=sha256))
        if first.path != source.path:
            candidates.refuse(source.path, Reject("manifest", f"{SAME_BYTES}{first.path}"))
    rejects = sorted(candidates.rejects, key=lambda one: (one[0], one[1].reason))
    metadata = {path: json.dumps(said, default=str) for path, said in candidates.metadata.items() if said}
    return Listing(list(kept.values()), rejects, candidates.corpus.root, hashed, metadata)


def _sha256(corpus: Corpus, source: Source, known: Known) -> str | Reject:
    if source.stamp and source.key in known:
        return known[source.key]
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


def _words(path: str) -> str:
    """The words of a file's name."""
    return " ".join(re.findall(r"[^\W_]+", PurePosixPath(path).stem))
