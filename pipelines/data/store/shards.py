"""Shards: parquet files of latents, written by the task that decodes, with page checksums.

A shard holds what decoding gave and nothing that can change afterwards: captions and paths are in the index.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import DataError
from pipelines.data.store.files import ShardFile
from pipelines.data.store.ledger import Window
from pipelines.data.tables import open_parquet, parquet_errors
from pipelines.data.types import REMEDY
from pipelines.storage import Pending, Storage, file_sha256

ROW_GROUP_BYTES = 4 << 20
SHARD_BYTES = 256 << 20
_LINEAGE = b"sostenuto.lineage"


def schema(shape: Sequence[int]) -> pa.Schema:
    """Columns of a shard whose latents are float32 [T, C, h, w] = `shape`."""
    columns = {"window_id": pa.string(), "source_id": pa.string(), "start_frame": pa.int64()}
    columns |= {"num_frames": pa.int32(), "shot": pa.int32(), "reader": pa.string()}
    return pa.schema(columns | {"latents": pa.fixed_shape_tensor(pa.float32(), list(shape))})


@dataclass
class _Part:
    """The part of one shape that is being filled."""

    pixels: tuple[int, ...]
    number: int
    file: str
    held: list[tuple[Window, NDArray[np.float32]]] = field(default_factory=list)
    """Rows of the next row group."""
    held_bytes: int = 0
    num_bytes: int = 0
    """Of the latents written; likewise `rows` and `groups`."""
    rows: int = 0
    groups: int = 0
    opened: tuple[Pending, pq.ParquetWriter] | None = None


class ShardWriter:
    """Writes windows into parts of bounded size, each of one shape. Nothing counts until a ledger names them.

    Args:
        corpus: `short` or `long`, the folder of the shard.
        name: of the shard, made from its content.
        lineage: version of the dataset and of the libraries that made the rows, kept in every part.
    """

    def __init__(self, storage: Storage, corpus: str, name: str, lineage: dict[str, str]) -> None:
        self._storage = storage
        self._stem = f"{corpus}/{name}"
        self._lineage = json.dumps(lineage, sort_keys=True).encode()
        self._parts: dict[tuple[int, ...], _Part] = {}
        self._done: list[ShardFile] = []

    def add(self, window: Window, latents: NDArray[np.float32], pixels: tuple[int, ...] = ()) -> Window:
        """Write a window, or hold it until a row group is full.

        Args:
            latents: [T, C, h, w].
            pixels: frames, height and width of the window, which its part is named after; empty where all
                windows have one shape.

        Returns: the window with its place in the shard.
        """
        part = self._parts.get(pixels) or self._begin(pixels, 0)
        placed = replace(window, file=part.file, row_group=part.groups, row=len(part.held))
        part.held.append((placed, latents))
        part.held_bytes += latents.nbytes
        if part.held_bytes >= ROW_GROUP_BYTES:
            self._flush(part)
        if part.num_bytes >= SHARD_BYTES:
            self._finalize(part)
            self._begin(pixels, part.number + 1)
        return placed

    def commit(self) -> list[ShardFile]:
        """Finalize the last parts; all parts. Without a window: no file."""
        for part in self._parts.values():
            self._flush(part)
            self._finalize(part)
        return self._done

    def abort(self) -> None:
        for part in self._parts.values():
            if part.opened is not None:
                pending, writer = part.opened
                writer.close()
                pending.abort()
        for file in self._done:
            self._storage.delete(file.file)

    def _begin(self, pixels: tuple[int, ...], number: int) -> _Part:
        shape = f"-{'x'.join(map(str, pixels))}" if pixels else ""
        self._parts[pixels] = _Part(pixels, number, f"{self._stem}{shape}-{number:05d}.parquet")
        return self._parts[pixels]

    def _flush(self, part: _Part) -> None:
        """Write the rows held as a row group."""
        if not part.held:
            return
        windows, rows = zip(*part.held, strict=True)
        latents = np.stack(rows)
        with self._storage.errors_about(part.file):
            if part.opened is None:
                pending = self._storage.pending(part.file)
                writer = pq.ParquetWriter(
                    pending.path,
                    schema(latents.shape[1:]),
                    compression="zstd",
                    use_dictionary=["source_id", "reader"],
                    write_page_checksum=True,
                )
                part.opened = pending, writer
            _, writer = part.opened
            columns = list(writer.schema)[:-1]
            arrays = [pa.array([getattr(w, c.name) for w in windows], c.type) for c in columns]
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(latents))
            writer.write_table(pa.Table.from_arrays(arrays, schema=writer.schema))
        part.num_bytes += latents.nbytes
        part.rows += len(rows)
        part.groups += 1
        part.held.clear()
        part.held_bytes = 0

    def _finalize(self, part: _Part) -> None:
        if part.opened is None:
            return
        pending, writer = part.opened
        with self._storage.errors_about(part.file):
            writer.add_key_value_metadata({_LINEAGE: self._lineage})
            writer.close()
            size, sha256 = os.path.getsize(pending.path), file_sha256(pending.path)
        pending.commit()
        part.opened = None
        done = ShardFile(file=part.file, rows=part.rows, num_bytes=size, sha256=sha256, pixels=part.pixels)
        self._done.append(done)


@contextmanager
def open_shard(storage: Storage, file: str) -> Iterator[pq.ParquetFile]:
    """A stored parquet file that verifies the checksum of every page it reads.

    Raises:
        DataError: it is damaged.
    """
    with storage.open(file) as handle, parquet_errors(storage, file):
        yield open_parquet(handle)


class RowGroups:
    """One column of stored parquet files by row group, those used last held in memory.

    Page checksums cover neither headers nor footers, so each file's sha256 is checked before its first use.

    Args:
        column: which to read.
        max_bytes: the most that is held; one row group at least.
        whole_files: read a file at once and hold all of it, whatever `max_bytes` is.
        remedy: what to do about a damaged file.
    """

    def __init__(
        self,
        storage: Storage,
        column: str,
        max_bytes: int,
        *,
        whole_files: bool = False,
        remedy: str = REMEDY,
    ) -> None:
        self._storage, self._column, self._remedy = storage, column, remedy
        self._max_bytes, self._whole_files = max_bytes, whole_files
        self._verified: set[str] = set()
        self._held: OrderedDict[tuple[str, int], pa.Array] = OrderedDict()
        self.held_bytes = 0

    def read(self, file: str, sha256: str, group: int) -> pa.Array:
        """The column of a row group.

        Raises:
            DataError: the file is damaged.
        """
        if (file, group) not in self._held:
            self._load(file, sha256, group)
        self._held.move_to_end((file, group))
        return self._held[file, group]

    def _load(self, file: str, sha256: str, group: int) -> None:
        if self._whole_files:
            data = self._storage.read_bytes(file)
            self._verify(file, sha256, hashlib.sha256(data).hexdigest())
            with parquet_errors(self._storage, file):
                shard = open_parquet(data)
                for number in range(shard.num_row_groups):
                    self._hold(file, number, shard)
            return
        if file not in self._verified:
            self._verify(file, sha256, self._storage.sha256(file))
        with open_shard(self._storage, file) as shard:
            self._hold(file, group, shard)
        while self.held_bytes > self._max_bytes and len(self._held) > 1:
            self.held_bytes -= self._held.popitem(last=False)[1].nbytes

    def _hold(self, file: str, group: int, shard: pq.ParquetFile) -> None:
        table = shard.read_row_group(group, columns=[self._column], use_threads=False)
        self._held[file, group] = table[self._column].combine_chunks()
        self.held_bytes += self._held[file, group].nbytes

    def _verify(self, file: str, sha256: str, found: str) -> None:
        if found != sha256:
            raise DataError(f"{self._storage}/{file} is damaged: its sha256 differs", self._remedy)
        self._verified.add(file)
