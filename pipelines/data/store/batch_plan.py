"""Which rows a step reads: a pure function of (seed, step), whatever the number of workers."""

from bisect import bisect_right
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


@dataclass(frozen=True)
class BucketPlan:
    """The order in which a corpus of several buckets is read: a batch is of one bucket, buckets take turns.

    Each bucket is read by a BatchPlan of its own: pass after pass, each a permutation of its rows, a batch
    running on into the bucket's next pass. Epoch e holds the batches whose first row is in pass e of their
    bucket, in an order drawn for the epoch. So no row is lost, none is doubled within a pass, buckets take
    turns in proportion to their rows, and where their sizes divide by the batch an epoch shows every row
    exactly once. The batches of a single bucket are those of its BatchPlan.

    Args:
        seed: the run's seed.
        sizes: rows of each bucket.
        batch: rows of a global batch.
        stream: names the order.

    Raises:
        DataError: there are no rows.
        ConfigError: the batch is empty.
    """

    seed: int
    sizes: tuple[int, ...]
    batch: int
    stream: str = ""

    def __post_init__(self) -> None:
        for number in range(max(1, len(self.sizes))):
            self._plan(number)

    def _plan(self, bucket: int) -> BatchPlan:
        stream = f"{self.stream}/{bucket}" if bucket else self.stream
        return BatchPlan(self.seed, self.sizes[bucket] if self.sizes else 0, self.batch, stream)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> list[RowRef]:
        """As BatchPlan's; the rows of the second bucket are numbered after those of the first, and so on.

        Raises:
            ConfigError: the batch does not divide by `world`, or there is no such rank.
        """
        bucket, turn = self.turn(step)
        before = sum(self.sizes[:bucket])
        return [RowRef(before + r.index, r.sample) for r in self._plan(bucket).rows(turn, rank, world)]

    def turn(self, step: int) -> tuple[int, int]:
        """The bucket whose turn it is at a step, and how many turns it had before."""
        most = step * self.batch // sum(self.sizes) + 2
        epoch = bisect_right(range(most), step, key=lambda e: sum(self._before(e))) - 1
        before, after = self._before(epoch), self._before(epoch + 1)
        counts = tuple(end - start for start, end in zip(before, after, strict=True))
        order = _turns(self.seed, self.stream, epoch, counts)
        place = step - sum(before)
        bucket = int(order[place])
        return bucket, before[bucket] + int((order[:place] == bucket).sum())

    def _before(self, epoch: int) -> list[int]:
        """Batches of each bucket whose first row lies in a pass before this one."""
        return [-(-epoch * size // self.batch) for size in self.sizes]


@lru_cache(maxsize=8)
def _turns(seed: int, stream: str, epoch: int, counts: tuple[int, ...]) -> NDArray[np.int64]:
    key = Key(seed, step=epoch, purpose=f"bucket order/{stream}")
    return key.numpy().permutation(np.repeat(np.arange(len(counts)), counts))


@lru_cache(maxsize=64)
def _order(seed: int, stream: str, epoch: int, num_rows: int) -> NDArray[np.int64]:
    key = Key(seed, step=epoch, purpose=f"epoch order/{stream}")
    return key.numpy().permutation(num_rows)
