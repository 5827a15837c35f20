"""Reading a corpus of a dataset by row number, in bounded memory, every file checked before it is used."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipelines.data.store.index import read_index
from pipelines.data.store.info import read_info
from pipelines.data.store.shards import RowGroups
from pipelines.data.tables import sort
from pipelines.data.types import CorpusName, Split
from pipelines.storage import Storage

MEMORY_BYTES = 1 << 30
_COLUMNS = ["corpus", "split", "kept", "window_id", "caption", "file", "row_group", "row"]


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
        only: ids of the windows that a run began with, kept or not; None is all that are kept.

    Raises:
        DataError: there is no finished dataset, or a file of it is missing or damaged; also when reading.
    """

    def __init__(
        self,
        folder: str | Storage,
        corpus: CorpusName,
        split: Split = "train",
        memory_bytes: int = MEMORY_BYTES,
        only: Collection[str] | None = None,
    ) -> None:
        storage = Storage(folder)
        self.info = read_info(storage)
        described = self.info.corpus(corpus)
        self.latent_shape = described.latent_shape
        """[T, C, h, w] of a window of the main bucket."""
        index = read_index(storage, self.info.index_sha256, _COLUMNS)
        wanted = pc.and_(pc.equal(index["corpus"], corpus), pc.equal(index["split"], split))
        chosen = (
            index["kept"]
            if only is None
            else pc.is_in(index["window_id"], pa.array(sorted(only), pa.string()))
        )
        rows = sort(index.filter(pc.and_(wanted, chosen)), "window_id")
        self.captions: list[str] = rows["caption"].to_pylist()
        """Of every row."""
        self.ids: list[str] = rows["window_id"].to_pylist()
        """Of every row, ascending."""
        self._file: list[str] = rows["file"].to_pylist()
        self._group, self._row = rows["row_group"].to_numpy(), rows["row"].to_numpy()
        self._sha256 = {file.file: file.sha256 for file in described.files}
        self._shape_of = {file.file: described.shape_of(file) for file in described.files}
        whole = described.latent_bytes <= memory_bytes
        self._cache = RowGroups(storage, "latents", memory_bytes, whole_files=whole)
        shapes = dict.fromkeys(bucket.latent_shape for bucket in described.buckets) or [self.latent_shape]
        found = [np.array(self._rows_of(shape), np.int64) for shape in shapes]
        self.buckets = [rows for rows in found if len(rows)]
        """Numbers of the rows of each shape that has any, ascending; the main one's first, if it has. Lengths
        that an autoencoder pads to one are one bucket."""

    def _rows_of(self, shape: tuple[int, ...]) -> list[int]:
        return [i for i, file in enumerate(self._file) if self._shape_of[file] == shape]

    @property
    def main(self) -> list[int]:
        """Numbers of the rows of the main bucket, ascending."""
        return self._rows_of(self.latent_shape)

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
            file = self._file[i]
            group = self._cache.read(file, self._sha256[file], int(self._group[i]))
            target[...] = group.to_numpy_ndarray()[self._row[i]]
        return Rows(torch.from_numpy(latents), captions, ids)
