"""Shards: parquet files of latents, written by the task that decodes, with page checksums.

A shard holds what decoding gave and nothing that can change afterwards: captions and paths are in the index.
"""

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import DataError
from pipelines.data.store.ledger import ShardFile, Window
from pipelines.data.tables import REMEDY, open_parquet, parquet_errors
from pipelines.storage import Pending, Storage, file_sha256

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
        self._part: tuple[Pending, pq.ParquetWriter] | None = None
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
            self._finalize_part()
        return placed

    def commit(self) -> list[ShardFile]:
        """Finalize the last part; all parts, in order. Without a window: no file."""
        self._flush()
        self._finalize_part()
        return self._done

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._part is not None:
            pending, writer = self._part
            writer.close()
            pending.abort()
        self._part = None
        self._rows.clear()
        for part in self._done:
            self._storage.delete(part.file)
        self._done = []

    def _file(self) -> str:
        return f"{self._stem}-{len(self._done):05d}.parquet"

    def _flush(self) -> None:
        """Write the rows held as a row group."""
        if not self._rows:
            return
        windows, rows = zip(*self._rows, strict=True)
        latents = np.stack(rows)
        with self._storage.errors_about(self._file()):
            if self._part is None:
                pending = self._storage.pending(self._file())
                self._part = (
                    pending,
                    pq.ParquetWriter(
                        pending.path,
                        schema(latents.shape[1:]),
                        compression="zstd",
                        use_dictionary=["source_id", "reader"],
                        write_page_checksum=True,
                    ),
                )
            _, writer = self._part
            columns = list(writer.schema)[:-1]
            arrays = [pa.array([getattr(w, c.name) for w in windows], c.type) for c in columns]
            arrays.append(pa.FixedShapeTensorArray.from_numpy_ndarray(latents))
            writer.write_table(pa.Table.from_arrays(arrays, schema=writer.schema))
        self._part_bytes += latents.nbytes
        self._part_rows += len(rows)
        self._groups += 1
        self._rows.clear()
        self._held_bytes = 0

    def _finalize_part(self) -> None:
        if self._part is None:
            return
        (pending, writer), name = self._part, self._file()
        with self._storage.errors_about(name):
            writer.add_key_value_metadata({_LINEAGE: self._lineage})
            writer.close()
            part = ShardFile(
                file=name,
                rows=self._part_rows,
                num_bytes=os.path.getsize(pending.path),
                sha256=file_sha256(pending.path),
                pixels=self._pixels,
            )
        pending.commit()
        self._done.append(part)
        self._part = None
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
        """Finalize the last parts; all parts."""
        return [file for writer in self._writers.values() for file in writer.commit()]

    def abort(self) -> None:
        """Leave nothing behind."""
        for writer in self._writers.values():
            writer.abort()


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
        self._storage = storage
        self._column = column
        self._max_bytes = max_bytes
        self._whole_files = whole_files
        self._remedy = remedy
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
