"""Ledgers: what became of each video of a group, and of each of its windows.

A ledger (32 bytes of sha256, then parquet) is the last thing a task writes. Files that no ledger names belong
to a writer that was killed; a video that no ledger names is still to be done.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pyarrow as pa

from models.errors import DataError
from pipelines.data.store.files import ShardFile, plain_values, tuples
from pipelines.data.tables import open_parquet, table_of, to_parquet
from pipelines.storage import Storage, one_line

SUFFIX = ".ledger"
_CONTENT = b"sostenuto.ledger"
_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window, kept or dropped; a row of index.parquet."""

    window_id: str
    source_id: str
    start_frame: int
    num_frames: int
    reader: str
    shot: int = 0
    """Number of its shot in the video, from 0."""
    brightness: float = 0.0
    """Mean luma, 0 to 1."""
    motion: float = 0.0
    """Mean change of a pixel's luma per second, without the change of the whole picture."""
    flash: float = 0.0
    """Largest flash, 0 to 1."""
    sharpness: float = 0.0
    """Of its luma; 0 is flat."""
    fingerprint: bytes = b""
    """Perceptual hashes, 64 bits each, of its first, middle and last frame."""
    reason: str = ""
    """Why it was dropped; empty where it was not."""
    file: str = ""
    """Its shard; empty for a window dropped before encoding."""
    row_group: int = -1
    row: int = -1


@dataclass(frozen=True, kw_only=True)
class Status:
    """How a video ended; a row of manifest.parquet."""

    corpus: str
    source_id: str
    source: str
    caption: str
    num_bytes: int
    status: str
    """`written` or `rejected`."""
    stage: str = ""
    """Where it was rejected; empty where it was not."""
    reason: str = ""
    reader: str = ""
    reader_reason: str = ""
    applied: str = ""
    """What was done to show its picture as a player does."""
    width: int = 0
    """Of the video as shown, in square pixels; the dataset has the size of its settings."""
    height: int = 0
    source_fps: float = 0.0
    num_frames: int = 0
    """After resampling."""
    seconds: float = 0.0
    num_windows: int = 0
    """Windows with latents."""
    dropped_windows: int = 0
    tail_frames: int = 0
    """Frames that no window showed."""
    latents_sha256: str = ""
    """Of its windows' latents, in order."""
    metadata: str = ""
    """What the corpus' metadata says of it beside the caption, as JSON; empty in a ledger."""


class Moments(NamedTuple):
    """Sums over every latent of some windows, per channel."""

    positions: int
    """Values per channel."""
    total: list[float]
    squares: list[float]


class Ledger(NamedTuple):
    statuses: list[Status]
    files: list[ShardFile]
    """The shard's parts."""
    moments: Moments | None
    """Of the latents written; None without any."""
    windows: pa.Table
    """Rows of `columns_of(Window)`."""


def merge_moments(one: Moments | None, two: Moments | None) -> Moments | None:
    if one is None or two is None:
        return one or two
    total = [a + b for a, b in zip(one.total, two.total, strict=True)]
    squares = [a + b for a, b in zip(one.squares, two.squares, strict=True)]
    return Moments(one.positions + two.positions, total, squares)


def write_ledger(
    storage: Storage,
    stem: str,
    statuses: Sequence[Status],
    files: Sequence[ShardFile],
    moments: Moments | None,
    windows: Sequence[Window],
) -> None:
    """Record a finished group under `stem`, such as `short/0a1b`; its files must be in place."""
    content = {
        "statuses": [asdict(s) for s in statuses],
        "files": [plain_values(file) for file in files],
        "moments": moments and moments._asdict(),
    }
    table = table_of(Window, windows).replace_schema_metadata({_CONTENT: json.dumps(content)})
    data = to_parquet(table)
    storage.write_bytes(f"{stem}{SUFFIX}", hashlib.sha256(data).digest() + data)


def read_ledger(storage: Storage, file: str) -> Ledger:
    """What `write_ledger` wrote.

    Raises:
        DataError: it is damaged.
    """
    try:
        whole = storage.read_bytes(file)
        digest, data = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("its sha256 differs")
        table = open_parquet(data).read(use_threads=False)
        content = json.loads(table.schema.metadata[_CONTENT])
        moments = content["moments"] and Moments(**content["moments"])
        files = [ShardFile(**tuples(file)) for file in content["files"]]
        return Ledger([Status(**s) for s in content["statuses"]], files, moments, table)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        remedy = f"Delete {storage}/{file} and ingest again: its videos are read once more"
        raise DataError(f"{storage}/{file} is damaged: {one_line(error)[:200]}", remedy) from error


def read_ledgers(storage: Storage, corpus: str) -> list[Ledger]:
    """Every group of a corpus that was finished and whose files are all there; what others left is deleted.

    A worker that outlives a failed run may write its ledger after the next run has deleted its shard.
    """
    storage.delete_unfinished(corpus)
    names = {f"{corpus}/{name}" for name in storage.list(corpus)}
    ledgers = {name: read_ledger(storage, name) for name in sorted(names) if name.endswith(SUFFIX)}
    files = {name: {file.file for file in ledger.files} for name, ledger in ledgers.items()}
    whole = [name for name in ledgers if files[name] <= names]
    for name in names.difference(whole, *(files[name] for name in whole)):
        storage.delete(name)
    return [ledgers[name] for name in whole]
