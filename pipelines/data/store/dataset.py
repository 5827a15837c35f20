"""Reading a corpus of a dataset by row number, in bounded memory, every file checked before it is used."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import DataError
from pipelines.data.store.index import read_index
from pipelines.data.store.info import read_info
from pipelines.data.store.shards import open_shard
from pipelines.data.tables import REMEDY, open_parquet, parquet_errors, sort
from pipelines.data.types import CorpusName
from pipelines.storage import Storage

MEMORY_BYTES = 1 << 30
Floats = NDArray[np.float32]
Shape: TypeAlias = tuple[int, int, int, int]


class Rows(NamedTuple):
    """Windows as they were asked for."""

    latents: Tensor
    """float32 [n, T, C, h, w], normalised."""
    captions: list[str]
    ids: list[str]


class ShardDataset:
    """The windows of one corpus, ordered by id, whatever files they lie in.

    Args:
        folder: folder or URI of a finished dataset.
        corpus: which corpus.
        split: training windows, or those held out.
        memory_bytes: a corpus whose files hold up to this is held, file by file as they are first read; of a
            larger one, the row groups that were read last.

    Raises:
        DataError: there is no finished dataset, or a file of it is missing or damaged; also when reading.
    """

    def __init__(
        self,
        folder: str | Storage,
        corpus: CorpusName,
        split: Literal["train", "holdout"] = "train",
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._storage = folder if isinstance(folder, Storage) else Storage(folder)
        self.info = read_info(self._storage)
        described = self.info.corpus(corpus)
        self.latent_shape = described.latent_shape
        """[T, C, h, w] of a window of the main bucket."""
        self._memory_bytes = memory_bytes
        self._groups: OrderedDict[tuple[str, int], Floats] = OrderedDict()
        self._held_bytes = 0
        self._verified: set[str] = set()
        self._files = {file.file: file for file in described.files}
        rows = _rows(read_index(self._storage, self.info.index_sha256, _COLUMNS), corpus, split)
        self.captions: list[str] = rows["caption"].to_pylist()
        """Of every row."""
        self.ids: list[str] = rows["window_id"].to_pylist()
        """Of every row, rising."""
        self._file: list[str] = rows["file"].to_pylist()
        self._group_of = rows["row_group"].to_numpy()
        self._row = rows["row"].to_numpy()
        self._whole = described.latent_bytes <= memory_bytes
        self._shape_of = {file.file: described.shape_of(file) for file in described.files}
        self.buckets = self._buckets([bucket.latent_shape for bucket in described.buckets])
        """Numbers of the rows of each shape that has any, rising; the main one's first, if it has."""

    def _buckets(self, shapes: Sequence[Shape]) -> list[NDArray[np.int64]]:
        """Lengths that an autoencoder pads to one are one bucket."""
        if len(shapes) < 2:
            return [np.arange(len(self))] if len(self) else []
        number = {shape: place for place, shape in enumerate(dict.fromkeys(shapes))}
        places = np.array([number[self._shape_of[file]] for file in self._file], np.int64)
        found = (np.flatnonzero(places == place) for place in range(len(number)))
        return [rows for rows in found if len(rows)]

    @property
    def main(self) -> list[int]:
        """Numbers of the rows of the main bucket, rising."""
        return [row for row, file in enumerate(self._file) if self._shape_of[file] == self.latent_shape]

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, indices: Sequence[int]) -> Rows:
        """The rows of these numbers, all of one bucket, in this order, copied.

        Raises:
            IndexError: there is no such row.
            ValueError: they have several shapes.
        """
        captions, ids = [self.captions[i] for i in indices], [self.ids[i] for i in indices]
        shapes = {self._shape_of[self._file[i]] for i in indices} or {self.latent_shape}
        if len(shapes) > 1:
            raise ValueError(f"rows of the shapes {sorted(shapes)} are read together")
        latents = np.empty((len(ids), *shapes.pop()), np.float32)
        for target, i in zip(latents, indices, strict=True):
            target[...] = self._group(self._file[i], int(self._group_of[i]))[self._row[i]]
        return Rows(torch.from_numpy(latents), captions, ids)

    def _group(self, file: str, group: int) -> Floats:
        """Latents of a row group."""
        key = (file, group)
        if key not in self._groups:
            if self._whole:
                self._hold(file)
            else:
                self._read_group(file, group)
        self._groups.move_to_end(key)
        return self._groups[key]

    def _hold(self, file: str) -> None:
        """Read and check a whole file, once and for all."""
        data = self._storage.read_bytes(file)
        self._require(file, hashlib.sha256(data).hexdigest())
        with parquet_errors(self._storage, file):
            shard = open_parquet(data)
            for group in range(shard.num_row_groups):
                self._groups[file, group] = _latents(shard, group)

    def _read_group(self, file: str, group: int) -> None:
        """Read a row group and forget the ones used longest ago, down to the bound."""
        if file not in self._verified:
            self._require(file, self._storage.sha256(file))
        with open_shard(self._storage, file) as shard:
            latents = _latents(shard, group)
        self._groups[file, group] = latents
        self._held_bytes += latents.nbytes
        while self._held_bytes > self._memory_bytes and len(self._groups) > 1:
            self._held_bytes -= self._groups.popitem(last=False)[1].nbytes

    def _require(self, file: str, sha256: str) -> None:
        """Page checksums cover neither headers nor footers, so that a file is checked whole, once."""
        if sha256 != self._files[file].sha256:
            raise DataError(f"{self._storage}/{file} is damaged: its sha256 differs", REMEDY)
        self._verified.add(file)


_COLUMNS = ["corpus", "split", "kept", "window_id", "caption", "file", "row_group", "row"]


def _rows(index: pa.Table, corpus: str, split: str) -> pa.Table:
    """The index's rows of a split, ordered by id."""
    wanted = pc.and_(pc.equal(index["corpus"], corpus), pc.equal(index["split"], split))
    return sort(index.filter(pc.and_(wanted, index["kept"])), "window_id")


def _latents(shard: pq.ParquetFile, group: int) -> Floats:
    """The tensor column [rows, T, C, h, w] of a row group."""
    column = shard.read_row_group(group, columns=["latents"], use_threads=False)["latents"]
    array: Floats = column.combine_chunks().to_numpy_ndarray()
    return array
