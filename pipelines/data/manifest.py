"""What is in a corpus: the video files of a folder, their captions, and who they are (sha256 of their bytes).

Captions come from `metadata.jsonl` or `metadata.csv` (columns `file_name` and `caption`, or `text`), which
may stand in any folder of the corpus and speak of files relative to it; a file without one is captioned by
the words of its name. Nothing outside the corpus folder is ever read.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from models.errors import DataError
from pipelines.data.containers import VIDEO_SUFFIXES
from pipelines.data.rejects import Reject

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
HASH_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class Source:
    """One video file of a corpus."""

    id: str
    """sha256 of its bytes."""
    path: str
    """Relative to the corpus folder, with /."""
    caption: str
    num_bytes: int
    extra: dict[str, Any] = field(default_factory=dict)
    """What else its metadata says."""


class Listing(NamedTuple):
    """A corpus folder: what is to be read, and what is refused before a byte is decoded."""

    sources: list[Source]
    """In the order of their paths; no two with the same bytes."""
    rejects: list[tuple[str, Reject]]
    """(path, why)."""


def sources(folder: str | Path) -> Listing:
    """List a corpus folder with everything below it.

    Raises:
        DataError: there is no such folder, it holds no video, its metadata is malformed or names no file
            that exists.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is no folder", "Set data.short and data.long to two folders of videos")
    found, metadata = _walk(root)
    captions: dict[str, dict[str, Any]] = {}
    for file in metadata:
        captions.update(_read_metadata(root, file))
    named = {path for path in captions if path not in found}
    if not found and not named:
        raise DataError(
            f"{root} holds no video", f"Put files there that end in one of {' '.join(sorted(VIDEO_SUFFIXES))}"
        )
    listing = _identify(root, {p: captions.get(p, {}) for p in sorted({*found, *named})})
    if metadata and named and not found:
        raise DataError(
            f"{root}: the metadata names {len(named)} videos, and none of them is there",
            "Put the videos beside their metadata file, or correct its file_name column",
        )
    return listing


def _walk(root: Path) -> tuple[set[str], list[Path]]:
    """Relative paths of the videos (links included), and the metadata files. Hidden names are passed over."""
    videos: set[str] = set()
    metadata: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if name in METADATA_FILES:
                metadata.append(path)
            elif path.suffix.lower() in VIDEO_SUFFIXES and not name.startswith("."):
                videos.add(path.relative_to(root).as_posix())
        linked = [n for n in folders if Path(folder, n).is_symlink()]
        videos.update(Path(folder, n).relative_to(root).as_posix() for n in linked)
    return videos, metadata


def _read_metadata(root: Path, file: Path) -> dict[str, dict[str, Any]]:
    """Path relative to the root -> the rest of its row."""
    base = file.parent.relative_to(root)
    rows: dict[str, dict[str, Any]] = {}
    for number, row in _rows(file):
        name = row.pop("file_name", None)
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{file}, line {number}: no file_name", 'Each line needs "file_name" and "caption"'
            )
        path = name if os.path.isabs(name) else (base / name).as_posix()
        rows[path] = row
    return rows


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with file.open(encoding="utf-8", newline="") as text:
            if file.suffix == ".csv":
                yield from ((i, dict(row)) for i, row in enumerate(csv.DictReader(text), start=2))
                return
            for number, line in enumerate(text, start=1):
                if line.strip():
                    yield number, _object(file, number, line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}", "Save it as UTF-8 text") from error


def _object(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{file}, line {number}: {error}", "Each line is one JSON object") from error
    if not isinstance(row, dict):
        raise DataError(f"{file}, line {number}: not an object", "Each line is one JSON object")
    return row


def _identify(root: Path, rows: dict[str, dict[str, Any]]) -> Listing:
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        judged = list(pool.map(lambda path: _judge(root, path), rows))
    kept: dict[str, Source] = {}
    rejects: list[tuple[str, Reject]] = []
    for (path, row), verdict in zip(rows.items(), judged, strict=True):
        if isinstance(verdict, Reject):
            rejects.append((path, verdict))
        elif verdict[0] in kept:
            rejects.append((path, Reject("manifest", f"the same bytes as {kept[verdict[0]].path}")))
        else:
            extra = {k: v for k, v in row.items() if k not in ("caption", "text")}
            caption = _caption(path, row)
            kept[verdict[0]] = Source(
                id=verdict[0], path=path, caption=caption, num_bytes=verdict[1], extra=extra
            )
    return Listing(list(kept.values()), rejects)


def _judge(root: Path, path: str) -> tuple[str, int] | Reject:
    """The sha256 and size of a file inside the root, or why it is refused."""
    if os.path.isabs(path) or ".." in Path(path).parts:
        return Reject("manifest", "its path leaves the corpus folder")
    full = root / path
    if not full.resolve().is_relative_to(root.resolve()):
        return Reject("manifest", "it is a link out of the corpus folder")
    if full.is_dir() and full.is_symlink():
        return Reject("manifest", "it is a link to a folder, which is not followed")
    if not full.is_file():
        return Reject("manifest", "its metadata names it, but there is no such file")
    try:
        with full.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), full.stat().st_size
    except OSError as error:
        return Reject("manifest", f"it cannot be read: {error.strerror}")


def _caption(path: str, row: dict[str, Any]) -> str:
    given = row.get("caption") or row.get("text")
    if isinstance(given, str) and given.strip():
        return given.strip()
    return " ".join(re.findall(r"[^\W_]+", Path(path).stem))
