"""Which rows a step reads: a pure function of (seed, step), whatever the number of workers."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError, DataError
from models.rng import Key


@dataclass(frozen=True, slots=True)
class RowRef:
    """A row of a corpus and its place in the global batch."""

    index: int
    """Row of the corpus."""
    sample: int
    """Position in the global batch: the key of everything random about this row."""


@dataclass(frozen=True)
class BatchPlan:
    """The order in which a corpus is read: epoch after epoch, each a permutation of all rows.

    Batches run on across the end of an epoch, so that every epoch shows every row exactly once.

    Args:
        seed: the run's seed.
        num_rows: rows of the corpus.
        batch: rows of a global batch.
        stream: names the order, so that two corpora of one size are not read alike.

    Raises:
        DataError: the corpus has no rows.
        ConfigError: the batch is empty.
    """

    seed: int
    num_rows: int
    batch: int
    stream: str = ""

    def __post_init__(self) -> None:
        if self.num_rows < 1:
            raise DataError(
                f"The corpus {self.stream or 'to train on'} has no windows",
                "Ingest more videos, or lower data.holdout",
            )
        if self.batch < 1:
            raise ConfigError(f"a batch of {self.batch} rows", "Set the batch size to 1 or more")

    def rows(self, step: int, rank: int = 0, world: int = 1) -> list[RowRef]:
        """The rows of one worker at one step: the rank-th of `world` equal parts of the global batch.

        Raises:
            ConfigError: the batch does not divide by `world`, or there is no such rank.
        """
        if world < 1 or self.batch % world or not 0 <= rank < world:
            raise ConfigError(
                f"a batch of {self.batch} rows cannot be shared by {world} workers (rank {rank})",
                "Use a batch size that the number of workers divides",
            )
        part = self.batch // world
        first = step * self.batch
        return [RowRef(self._row(first + s), s) for s in range(rank * part, (rank + 1) * part)]

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_rows)
        return int(_order(self.seed, self.stream, epoch, self.num_rows)[offset])


@lru_cache(maxsize=8)
def _order(seed: int, stream: str, epoch: int, num_rows: int) -> NDArray[np.int64]:
    key = Key(seed, step=epoch, purpose=f"epoch order/{stream}")
    return key.numpy().permutation(num_rows)
