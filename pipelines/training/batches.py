"""The two corpora as training batches: batch k is a function of (seed, k) only."""

from dataclasses import dataclass

import torch

from pipelines.data.dataset import CorpusName, ShardDataset
from pipelines.data.plan import BatchPlan
from pipelines.training.config import StageConfig
from pipelines.training.parallel import Workers
from pipelines.training.stages import Batch, Batches


@dataclass(frozen=True)
class Corpus:
    """One corpus of a dataset with its plan.

    Args:
        rows: its windows.
        plan: which of them make a batch.
    """

    rows: ShardDataset
    plan: BatchPlan

    def batch(self, step: int, workers: Workers, device: torch.device | str) -> Batch:
        """This worker's share of batch `step`."""
        refs = self.plan.rows(step, workers.rank, workers.size)
        rows = self.rows.read([ref.index for ref in refs])
        return Batch(rows.latents.to(device), rows.captions, [ref.sample for ref in refs])


class BatchSource:
    """The batches of a stage.

    Args:
        dataset: folder of an ingested dataset.
        stage: how many windows of each corpus a step takes.
        seed: names the order.
    """

    def __init__(self, dataset: str, stage: StageConfig, seed: int) -> None:
        wanted: dict[CorpusName, int] = {"short": stage.short_batch, "long": stage.long_batch}
        self.corpora = {
            name: Corpus(rows := ShardDataset(dataset, name), BatchPlan(seed, len(rows), batch, name))
            for name, batch in wanted.items()
            if batch
        }

    def at(self, step: int, workers: Workers, device: torch.device | str) -> Batches:
        """This worker's share of the batches of `step`."""
        parts = {name: corpus.batch(step, workers, device) for name, corpus in self.corpora.items()}
        return Batches(**parts)
