"""Who decides the order of batches: BatchPlan, a function of (seed, step) only, for any number of workers.

Windows of one shape are a bucket, and a batch is of one bucket. A bucket is read pass after pass; each pass
is a permutation of its rows, and a batch runs on from one pass into the next. Epoch e holds the batches whose
first row is in pass e of their bucket, in an order drawn for the epoch.

So no row is lost, none is doubled within a pass, and buckets take turns in proportion to their rows. Where
their sizes divide by the batch, an epoch shows every row exactly once.
"""

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
    """Row of the corpus; the rows of the second bucket are numbered after those of the first, and so on."""
    sample: int
    """Position in the global batch: the key of everything random about this row."""


@dataclass(frozen=True)
class BatchPlan:
    """The order in which a corpus is read.

    Args:
        seed: the run's seed.
        sizes: rows of each bucket.
        batch: rows of a global batch.
        stream: names the order, so that two corpora of one size are not read alike.

    Raises:
        DataError: a bucket has no rows, or there is no bucket.
        ConfigError: the batch is empty.
    """

    seed: int
    sizes: tuple[int, ...]
    batch: int
    stream: str = ""

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise DataError(
                f"The corpus {self.stream or 'to train on'} has no windows",
                "Ingest more videos, or lower data.holdout",
            )
        if self.batch < 1:
            raise ConfigError(f"a batch of {self.batch} rows", "Set the batch size to 1 or more")

    def rows(self, step: int, rank: int = 0, world: int = 1) -> list[RowRef]:
        """The rows of one worker at one step: its `share` of the global batch.

        Raises:
            ConfigError: a worker would have no row, or there is no such rank.
        """
        bucket, turn = self.turn(step)
        size, first = self.sizes[bucket], sum(self.sizes[:bucket])
        stream = f"{self.stream}/{bucket}" if bucket else self.stream
        rows = []
        for sample in share(self.batch, rank, world):
            pass_number, offset = divmod(turn * self.batch + sample, size)
            order = _order_of_rows(self.seed, stream, pass_number, size)
            rows.append(RowRef(first + int(order[offset]), sample))
        return rows

    def turn(self, step: int) -> tuple[int, int]:
        """The bucket whose turn it is at a step, and how many turns it had before."""
        last = step * self.batch // sum(self.sizes) + 1
        epoch = bisect_right(range(last + 1), step, key=lambda e: sum(self._batches_before(e))) - 1
        before, after = self._batches_before(epoch), self._batches_before(epoch + 1)
        counts = tuple(end - start for start, end in zip(before, after, strict=True))
        order = _order_of_buckets(self.seed, self.stream, epoch, counts)
        place = step - sum(before)
        bucket = int(order[place])
        return bucket, before[bucket] + int((order[:place] == bucket).sum())

    def _batches_before(self, epoch: int) -> list[int]:
        """Batches of each bucket whose first row lies in a pass before this epoch's."""
        return [-(-epoch * size // self.batch) for size in self.sizes]


def share(batch: int, rank: int, world: int) -> range:
    """The rank-th of `world` consecutive parts of a global batch; the first ones may hold one sample more.

    Raises:
        ConfigError: a worker would have no sample, or there is no such rank.
    """
    if not 0 <= rank < world <= batch:
        raise ConfigError(
            f"a batch of {batch} rows cannot be shared by {world} workers (rank {rank})",
            "Use a batch that has a row for every worker",
        )
    size, more = divmod(batch, world)
    first = rank * size + min(rank, more)
    return range(first, first + size + (rank < more))


@lru_cache(maxsize=8)
def _order_of_buckets(seed: int, stream: str, epoch: int, counts: tuple[int, ...]) -> NDArray[np.int64]:
    key = Key(seed, step=epoch, purpose=f"bucket order/{stream}")
    return key.numpy().permutation(np.repeat(np.arange(len(counts)), counts))


@lru_cache(maxsize=64)
def _order_of_rows(seed: int, stream: str, pass_number: int, size: int) -> NDArray[np.int64]:
    key = Key(seed, step=pass_number, purpose=f"epoch order/{stream}")
    return key.numpy().permutation(size)
