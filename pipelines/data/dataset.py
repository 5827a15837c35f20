"""Reading a corpus of a dataset by row number, in bounded memory, every page's checksum verified."""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.errors import DataError
from pipelines.data.info import is_holdout, read_info
from pipelines.data.shards import ShardFile, explained, open_parquet, open_shard
from pipelines.storage import Storage

MEMORY_BYTES = 1 << 30
Floats = NDArray[np.float32]

CorpusName: TypeAlias = Literal["short", "long"]
"""The two corpora."""


class Rows(NamedTuple):
    """Windows as they were asked for."""

    latents: Tensor
    """float32 [n, T, C, h, w], normalised."""
    captions: list[str]
    ids: list[str]


class _Place(NamedTuple):
    """Where a row lies."""

    window_id: str
    caption: str
    file: str
    group: int
    row: int


class ShardDataset:
    """The windows of one corpus, ordered by id, whatever files they lie in.

    Args:
        folder: folder or URI of a finished dataset.
        corpus: which corpus.
        split: training windows, or those held out.
        memory_bytes: below this size the whole corpus is held decoded; above it, row groups that were read
            last.

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
        """[T, C, h, w] of a window."""
        self._whole = described.latent_bytes <= memory_bytes
        self._memory_bytes = memory_bytes
        self._groups: OrderedDict[tuple[str, int], Floats] = OrderedDict()
        self._held_bytes = 0
        places = sorted(place for file in described.files for place in self._index(file))
        held_out = split == "holdout"
        share = self.info.holdout
        self._places = [p for p in places if is_holdout(p.window_id, share) == held_out]
        self.captions = [place.caption for place in self._places]
        """Of every row."""
        self.ids = [place.window_id for place in self._places]
        """Of every row, rising."""

    def __len__(self) -> int:
        return len(self._places)

    def read(self, indices: Sequence[int]) -> Rows:
        """The rows of these numbers, in this order, copied.

        Raises:
            IndexError: there is no such row.
        """
        places = [self._places[i] for i in indices]
        latents = np.empty((len(places), *self.latent_shape), np.float32)
        for target, place in zip(latents, places, strict=True):
            target[...] = self._group(place.file, place.group)[place.row]
        return Rows(torch.from_numpy(latents), [p.caption for p in places], [p.window_id for p in places])

    def _index(self, file: ShardFile) -> Iterator[_Place]:
        """Places of a file's rows; a corpus that fits into memory is read and checked here once and for
        all."""
        if self._whole:
            data = self._storage.read_bytes(file.file)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise DataError(
                    f"{self._storage}/{file.file} is damaged: its sha256 differs",
                    "Delete the dataset and ingest again",
                )
            with explained(self._storage, file.file):
                yield from self._read_index(open_parquet(io.BytesIO(data)), file)
            return
        with open_shard(self._storage, file.file) as shard:
            yield from self._read_index(shard, file)

    def _read_index(self, shard: pq.ParquetFile, file: ShardFile) -> Iterator[_Place]:
        if shard.metadata.num_rows != file.rows:
            raise DataError(
                f"{self._storage}/{file.file} has {shard.metadata.num_rows} rows, not {file.rows}",
                "Delete the dataset and ingest again",
            )
        names = ["window_id", "caption", *(["latents"] if self._whole else [])]
        for group in range(shard.num_row_groups):
            table = shard.read_row_group(group, columns=names)
            if self._whole:
                self._groups[file.file, group] = _latents(table)
            ids, captions = table["window_id"].to_pylist(), table["caption"].to_pylist()
            for row, (window_id, caption) in enumerate(zip(ids, captions, strict=True)):
                yield _Place(window_id, caption, file.file, group, row)

    def _group(self, file: str, group: int) -> Floats:
        """Latents of a row group; in the large case the ones used last are kept, up to the bound."""
        key = (file, group)
        if key in self._groups:
            self._groups.move_to_end(key)
            return self._groups[key]
        with open_shard(self._storage, file) as shard:
            latents = _latents(shard.read_row_group(group, columns=["latents"]))
        self._groups[key] = latents
        self._held_bytes += latents.nbytes
        while self._held_bytes > self._memory_bytes and len(self._groups) > 1:
            self._held_bytes -= self._groups.popitem(last=False)[1].nbytes
        return latents


def _latents(table: pa.Table) -> Floats:
    """The tensor column [rows, T, C, h, w]."""
    array: Floats = table["latents"].combine_chunks().to_numpy_ndarray()
    return array
