"""The two corpora as training batches: batch k is a function of (seed, k) only. Captions of rollouts."""

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.data.store.batch_plan import BatchPlan
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.types import CORPORA, CorpusName, Split
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig, StageConfig
from pipelines.training.recipes import Recipe, read_captions
from pipelines.training.stage import Batch, Batches

HELD_OUT_WINDOWS = 64
"""Most windows of the held-out part, over all workers."""


@dataclass(frozen=True)
class Corpus:
    """One corpus of a dataset with its plan.

    Args:
        rows: its windows.
        plan: which of them make a batch, all of one shape.
        order: row numbers, bucket after bucket, as the plan counts them.
    """

    rows: ShardDataset
    plan: BatchPlan
    order: NDArray[np.int64]

    @classmethod
    def of(cls, rows: ShardDataset, seed: int, batch: int, name: CorpusName) -> "Corpus":
        """A corpus in the order of a seed."""
        sizes = tuple(len(bucket) for bucket in rows.buckets)
        return cls(rows, BatchPlan(seed, sizes, batch, name), np.concatenate(rows.buckets))

    def batch(self, step: int, workers: Workers) -> Batch:
        """This worker's share of batch `step`."""
        refs = self.plan.rows(step, workers.rank, workers.size)
        rows = self.rows.read([int(self.order[ref.index]) for ref in refs])
        return Batch(rows.latents, rows.captions, [ref.sample for ref in refs], self.plan.batch)

    def ids(self, step: int) -> list[str]:
        """Windows of the whole batch `step`, in order."""
        return [self.rows.ids[int(self.order[ref.index])] for ref in self.plan.rows(step)]


class BatchSource:
    """The batches of a stage; while one is used, the next is read.

    Args:
        dataset: folder of an ingested dataset.
        stage: how many windows of each corpus a step takes.
        seed: decides the order.
        workers: this worker's place.
        only: ids of each corpus's windows that the run began with, which decide the order whatever the
            dataset has got since; None is all that it keeps.
    """

    def __init__(
        self,
        dataset: str,
        stage: StageConfig,
        seed: int,
        workers: Workers,
        only: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        wanted: dict[CorpusName, int] = {"short": stage.short_batch, "long": stage.long_batch}
        self.corpora = {
            name: Corpus.of(ShardDataset(dataset, name, only=only and only[name]), seed, batch, name)
            for name, batch in wanted.items()
            if batch
        }
        self._stage, self._workers = stage, workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[dict[str, Batch]]] | None = None

    def at(self, step: int, device: torch.device | str) -> Batches:
        """This worker's share of the batches of any step; that of the step after the last is quickest."""
        ahead = self._next
        reading = ahead[1] if ahead and ahead[0] == step else self._thread.submit(self._read, step)
        parts = reading.result()
        self._next = step + 1, self._thread.submit(self._read, step + 1)
        return Batches(**{name: replace(p, latents=p.latents.to(device)) for name, p in parts.items()})

    def ids(self, step: int) -> dict[str, list[str]]:
        """Windows of a step's whole batches, by corpus."""
        return {name: corpus.ids(step) for name, corpus in self.corpora.items()}

    def _read(self, step: int) -> dict[str, Batch]:
        read: dict[str, Batch] = {
            name: corpus.batch(step, self._workers) for name, corpus in self.corpora.items()
        }
        if long := read.get("long"):
            frames = self._stage.frames_at(step, long.latents.shape[1])
            read["long"] = replace(long, latents=long.latents[:, :frames])
        return read


def fixed_batch(
    recipe: Recipe, corpus: CorpusName, split: Split, count: int, workers: Workers, device: torch.device
) -> Batch | None:
    """This worker's part of up to `count` windows of a corpus, of its main bucket, the same at every call;
    None where the split has none. Where workers shard weights their parts are equal: some have windows again,
    numbered beyond the batch."""
    rows = ShardDataset(recipe.dataset, corpus, split)
    chosen = rows.main[:count]
    if not chosen:
        return None
    numbers = len(chosen) if workers.shards is None else workers.even(len(chosen))
    samples = range(numbers)[workers.rank :: workers.size]
    read = rows.read([chosen[sample % len(chosen)] for sample in samples])
    return Batch(read.latents.to(device), read.captions, samples, len(chosen))


def caption_pool(
    config: DistillConfig, dataset: str, only: Mapping[str, Collection[str]] | None = None
) -> dict[str, list[str]]:
    """Captions that rollouts may use, by where they come from: the corpora, or `distill.captions`.
    `only` is as in `BatchSource`.

    Raises:
        DataError: the file cannot be read, or has no captions.
    """
    if config.captions is None:
        return {name: ShardDataset(dataset, name, only=only and only[name]).captions for name in CORPORA}
    return {"file": read_captions(config.captions)}
