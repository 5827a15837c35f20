"""Shards: parquet files of windows, written by the task that decodes, with page checksums.

A shard's last part carries in its footer the status of each video in it and the names of all its parts, and
appears last; parts that no footer names belong to a writer that was killed.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import DataError
from pipelines.storage import Pending, Storage

ROW_GROUP_BYTES = 4 << 20
SHARD_BYTES = 256 << 20
CORPORA = ("short", "long")
_FOOTER = b"longtake.done"
_REMEDY = "Delete the dataset and ingest again"


@dataclass(frozen=True, kw_only=True)
class Window:
    """One row of a shard."""

    window_id: str
    source_id: str
    source: str
    start_frame: int
    num_frames: int
    caption: str
    reader: str
    latents: NDArray[np.float32]
    """[T, C, h, w]"""


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
    width: int = 0
    """Pixels before resizing."""
    height: int = 0
    """Pixels before resizing."""
    source_fps: float = 0.0
    num_frames: int = 0
    """Frames after resampling."""
    seconds: float = 0.0
    """Of those frames."""
    num_windows: int = 0
    tail_frames: int = 0
    """Frames after the last window, too few for another."""
    latents_sha256: str = ""
    """Of its windows' latents, in order."""


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A file of the dataset and what it must be."""

    file: str
    rows: int
    num_bytes: int
    sha256: str


def schema(shape: Sequence[int]) -> pa.Schema:
    """Columns of a shard whose latents are float32 [T, C, h, w] = `shape`."""
    return pa.schema(
        [
            ("window_id", pa.string()),
            ("source_id", pa.string()),
            ("source", pa.string()),
            ("start_frame", pa.int64()),
            ("num_frames", pa.int32()),
            ("caption", pa.string()),
            ("reader", pa.string()),
            ("latents", pa.fixed_shape_tensor(pa.float32(), list(shape))),
        ]
    )


class ShardWriter:
    """Writes windows into parts of bounded size. Nothing counts until `commit`.

    Args:
        storage: the dataset's folder.
        corpus: `short` or `long`, the folder of the shard.
        name: of the shard, made from its content.
    """

    def __init__(self, storage: Storage, corpus: str, name: str) -> None:
        self._storage = storage
        self._stem = f"{corpus}/{name}"
        self._rows: list[Window] = []
        self._held_bytes = self._part_bytes = self._part_rows = 0
        self._pending: Pending | None = None
        self._writer: pq.ParquetWriter | None = None
        self._done: list[ShardFile] = []

    def add(self, window: Window) -> None:
        """Write a window, or hold it until a row group is full."""
        self._rows.append(window)
        self._held_bytes += window.latents.nbytes
        if self._held_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if self._part_bytes >= SHARD_BYTES:
            self._finish_part(None)

    def commit(self, statuses: Sequence[Status]) -> list[ShardFile]:
        """Finish the last part, which carries the statuses; the parts, in order. Without a window: no file.
        Finish the last part, which carries the statuses; the parts, in order. Without a window: no file."""
        self._flush()
        if self._writer is not None or self._done:
            self._finish_part([asdict(status) for status in statuses])
        return self._done

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None and self._pending is not None:
            self._writer.close()
            self._pending.abort()
        self._writer = self._pending = None
        self._rows.clear()
        for part in self._done:
            self._storage.delete(part.file)
        self._done = []

    def _file(self) -> str:
        return f"{self._stem}-{len(self._done):05d}.parquet"

    def _flush(self) -> None:
        if not self._rows:
            return
        latents = np.stack([row.latents for row in self._rows])
        with self._storage.explained(self._file()):
            writer = self._writer or self._start(latents.shape[1:])
            writer.write_table(_table(self._rows, latents, writer.schema))
        self._part_bytes += latents.nbytes
        self._part_rows += len(self._rows)
        self._rows.clear()
        self._held_bytes = 0

    def _start(self, shape: Sequence[int]) -> pq.ParquetWriter:
        self._pending = self._storage.pending(self._file())
        self._shape = tuple(shape)
        self._writer = pq.ParquetWriter(
            self._pending.path,
            schema(shape),
            compression="zstd",
            use_dictionary=["source_id", "source", "caption", "reader"],
            write_page_checksum=True,
        )
        return self._writer

    def _finish_part(self, statuses: list[dict[str, Any]] | None) -> None:
        """Close the part; with `statuses` it is the last and names them all."""
        name = self._file()
        with self._storage.explained(name):
            writer = self._writer or self._start(self._shape)
            if statuses is not None:
                parts = [part.file for part in self._done] + [name]
                footer = {"statuses": statuses, "parts": parts}
                writer.add_key_value_metadata({_FOOTER: json.dumps(footer).encode()})
            writer.close()
            assert self._pending is not None
            path = Path(self._pending.path)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            part = ShardFile(file=name, rows=self._part_rows, num_bytes=path.stat().st_size, sha256=digest)
        self._pending.commit()
        self._done.append(part)
        self._writer = self._pending = None
        self._part_bytes = self._part_rows = 0


def _table(rows: Sequence[Window], latents: NDArray[np.float32], columns: pa.Schema) -> pa.Table:
    names = columns.names[:-1]
    arrays = [pa.array([getattr(row, name) for row in rows], columns.field(name).type) for name in names]
    arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(latents))
    return pa.Table.from_arrays(arrays, schema=columns)


@contextmanager
def open_shard(storage: Storage, file: str) -> Iterator[pq.ParquetFile]:
    """A shard as a pyarrow file that verifies the checksum of every page it reads.

    Raises:
        DataError: it is damaged.
    """
    with storage.open(file) as handle, explained(storage, file):
        yield open_parquet(handle)


def open_parquet(handle: IO[bytes] | pa.NativeFile) -> pq.ParquetFile:
    """A pyarrow file that verifies page checksums."""
    return pq.ParquetFile(handle, page_checksum_verification=True)


@contextmanager
def explained(storage: Storage, file: str) -> Iterator[None]:
    """Turn what pyarrow raises about a damaged file into a DataError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(f"{storage}/{file} is damaged: {reason}", _REMEDY) from error


def digest(storage: Storage, file: str) -> str:
    """sha256 of a stored file."""
    found = hashlib.sha256()
    with storage.open(file) as handle:
        while block := handle.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def finished(storage: Storage, corpus: str) -> tuple[list[Status], list[ShardFile]]:
    """What earlier runs completed in a corpus; parts that no footer names, and unfinished files, are
    deleted."""
    storage.delete_unfinished(corpus)
    statuses: list[Status] = []
    kept: list[ShardFile] = []
    files = [f"{corpus}/{name}" for name in storage.list(corpus) if name.endswith(".parquet")]
    rows: dict[str, int] = {}
    named: set[str] = set()
    for file in files:
        with open_shard(storage, file) as shard:
            rows[file] = shard.metadata.num_rows
            footer = (shard.metadata.metadata or {}).get(_FOOTER)
        if footer is not None:
            content = json.loads(footer)
            named.update(content["parts"])
            statuses += [Status(**status) for status in content["statuses"]]
    for file in files:
        if file not in named:
            storage.delete(file)
            continue
        sha256 = digest(storage, file)
        kept.append(ShardFile(file=file, rows=rows[file], num_bytes=storage.size(file), sha256=sha256))
    return statuses, kept
