"""Shards: parquet files of latents, written by the task that decodes, with page checksums.

A shard holds what decoding gave and nothing that can change afterwards: captions and paths are in the index.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data.store.ledger import ShardFile, Window
from pipelines.data.tables import open_parquet, parquet_errors
from pipelines.storage import Pending, Storage

ROW_GROUP_BYTES = 4 << 20
SHARD_BYTES = 256 << 20
_LINEAGE = b"sostenuto.lineage"


def schema(shape: Sequence[int]) -> pa.Schema:
    """Columns of a shard whose latents are float32 [T, C, h, w] = `shape`."""
    return pa.schema(
        [
            ("window_id", pa.string()),
            ("source_id", pa.string()),
            ("start_frame", pa.int64()),
            ("num_frames", pa.int32()),
            ("shot", pa.int32()),
            ("reader", pa.string()),
            ("latents", pa.fixed_shape_tensor(pa.float32(), list(shape))),
        ]
    )


class ShardWriter:
    """Writes windows into parts of bounded size. Nothing counts until a ledger names the parts.

    Args:
        storage: the dataset's folder.
        corpus: `short` or `long`, the folder of the shard.
        name: of the shard, made from its content.
        lineage: version of the dataset and of the libraries that made the rows, kept in every part.
        pixels: frames, height and width of its windows, to be recorded with every part.
    """

    def __init__(
        self,
        storage: Storage,
        corpus: str,
        name: str,
        lineage: dict[str, str],
        pixels: tuple[int, ...] = (),
    ) -> None:
        self._storage = storage
        self._stem = f"{corpus}/{name}"
        self._lineage = json.dumps(lineage, sort_keys=True).encode()
        self._pixels = pixels
        self._rows: list[tuple[Window, NDArray[np.float32]]] = []
        self._held_bytes = self._part_bytes = self._part_rows = self._groups = 0
        self._pending: Pending | None = None
        self._writer: pq.ParquetWriter | None = None
        self._done: list[ShardFile] = []

    def add(self, window: Window, latents: NDArray[np.float32]) -> Window:
        """Write a window, or hold it until a row group is full.

        Args:
            latents: [T, C, h, w].

        Returns: the window with its place in the shard.
        """
        placed = replace(window, file=self._file(), row_group=self._groups, row=len(self._rows))
        self._rows.append((placed, latents))
        self._held_bytes += latents.nbytes
        if self._held_bytes >= ROW_GROUP_BYTES:
            self._flush()
        if self._part_bytes >= SHARD_BYTES:
            self._finish_part()
        return placed

    def commit(self) -> list[ShardFile]:
        """Finish the last part; all parts, in order. Without a window: no file."""
        self._flush()
        if self._writer is not None:
            self._finish_part()
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
        latents = np.stack([row for _, row in self._rows])
        with self._storage.errors_about(self._file()):
            writer = self._writer or self._start(latents.shape[1:])
            writer.write_table(_table([window for window, _ in self._rows], latents, writer.schema))
        self._part_bytes += latents.nbytes
        self._part_rows += len(self._rows)
        self._groups += 1
        self._rows.clear()
        self._held_bytes = 0

    def _start(self, shape: Sequence[int]) -> pq.ParquetWriter:
        self._pending = self._storage.pending(self._file())
        self._writer = pq.ParquetWriter(
            self._pending.path,
            schema(shape),
            compression="zstd",
            use_dictionary=["source_id", "reader"],
            write_page_checksum=True,
        )
        return self._writer

    def _finish_part(self) -> None:
        name = self._file()
        assert self._writer is not None
        assert self._pending is not None
        with self._storage.errors_about(name):
            self._writer.add_key_value_metadata({_LINEAGE: self._lineage})
            self._writer.close()
            path = Path(self._pending.path)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = path.stat().st_size
        part = ShardFile(file=name, rows=self._part_rows, num_bytes=size, sha256=sha256, pixels=self._pixels)
        self._pending.commit()
        self._done.append(part)
        self._writer = self._pending = None
        self._part_bytes = self._part_rows = self._groups = 0


class BucketWriter:
    """Writes windows of several shapes, those of each shape into shards of their own.

    Args:
        storage, corpus, name, lineage: as ShardWriter takes them; each shape adds itself to the name.
    """

    def __init__(self, storage: Storage, corpus: str, name: str, lineage: dict[str, str]) -> None:
        self._storage, self._corpus, self._name, self._lineage = storage, corpus, name, lineage
        self._writers: dict[tuple[int, ...], ShardWriter] = {}

    def add(self, window: Window, latents: NDArray[np.float32], pixels: tuple[int, ...]) -> Window:
        """As ShardWriter's.

        Args:
            pixels: frames, height and width of the window; empty where all windows have one shape: its shard
                has the name alone.
        """
        if pixels not in self._writers:
            name = f"{self._name}-{'x'.join(map(str, pixels))}" if pixels else self._name
            self._writers[pixels] = ShardWriter(self._storage, self._corpus, name, self._lineage, pixels)
        return self._writers[pixels].add(window, latents)

    def commit(self) -> list[ShardFile]:
        """Finish the last parts; all parts."""
        return [file for writer in self._writers.values() for file in writer.commit()]

    def abort(self) -> None:
        """Leave nothing behind."""
        for writer in self._writers.values():
            writer.abort()


def _table(windows: Sequence[Window], latents: NDArray[np.float32], columns: pa.Schema) -> pa.Table:
    names = columns.names[:-1]
    arrays = [pa.array([getattr(w, name) for w in windows], columns.field(name).type) for name in names]
    arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(latents))
    return pa.Table.from_arrays(arrays, schema=columns)


@contextmanager
def open_shard(storage: Storage, file: str) -> Iterator[pq.ParquetFile]:
    """A shard as a pyarrow file that verifies the checksum of every page it reads.

    Raises:
        DataError: it is damaged.
    """
    with storage.open(file) as handle, parquet_errors(storage, file):
        yield open_parquet(handle)
