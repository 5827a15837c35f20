"""What training workers exchange; a group of one exchanges nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from models.context import share_frames
from pipelines.context import Exchanges, FrameGroup
from pipelines.data.store.batch_plan import share
from pipelines.training.sharding import Shards, is_sharded

Model = TypeVar("Model", bound=nn.Module)

MESSAGE = 64 << 20
"""Gradient elements per all-reduce; the last gradient of a message may exceed it."""


@dataclass(frozen=True)
class Workers:
    """This worker's place among the training workers.

    Args:
        rank: this worker among those that share batches.
        size: how many of them there are.
        context: its place among those that have the same samples and share the frames of their clips; None
            where nobody does.
        exchanges: counts them.
        shards: its place among those that have parts of the weights; None where everybody has all.
        peers: those that share batches, of which each group of `context` has one; None is all processes.
    """

    rank: int = 0
    size: int = 1
    context: FrameGroup | None = None
    exchanges: Exchanges = field(default_factory=Exchanges, compare=False)
    shards: Shards | None = None
    peers: ProcessGroup | None = None

    @property
    def alike(self) -> int:
        """Workers that have the same samples."""
        return 1 if self.context is None else self.context.size

    @property
    def place(self) -> int:
        """This worker among all; the first has 0."""
        return self.rank * self.alike + (0 if self.context is None else self.context.rank)

    @property
    def count(self) -> int:
        """All workers."""
        return self.size * self.alike

    def share(self, batch: int) -> range:
        """This worker's samples of a global batch: consecutive, so that `gather` restores the order.

        Raises:
            ConfigError: a worker would have none.
        """
        return share(batch, self.rank, self.size)

    def share_of_all(self, batch: int) -> range:
        """This worker's samples of a batch that all workers share, those too that have the same clips.

        Raises:
            ConfigError: a worker would have none.
        """
        return share(batch, self.place, self.count)

    def sharing_frames(self, model: Model) -> Model:
        """The network, of which this worker computes its frames alone from now on."""
        if self.context is not None:
            share_frames(model, self.context)
        return model

    def sharding(self, model: Model) -> Model:
        """The network, built and started, of whose weights this worker has its part alone from now on."""
        if self.shards is not None:
            self.shards.shard(model)
        return model

    def building(self, device: torch.device | str) -> torch.device | str:
        """Where a network is whole before `sharding`, which brings this worker's part to its device."""
        return device if self.shards is None else "cpu"

    def even(self, batch: int) -> int:
        """The least multiple of those that share batches that is no less than `batch`: workers that gather
        weights go through networks equally often."""
        return -(-batch // self.size) * self.size

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their sum over the workers, about `MESSAGE` elements at a time.

        Each worker's losses are its samples' part of the mean over the global batch, and its gradients its
        frames' part of theirs. So the sum is the gradient of that mean, however both are shared. Those of
        sharded weights have been summed in the backward pass.
        """
        if self.count == 1:
            return
        held: list[Tensor] = []
        for gradient in (p.grad for p in parameters if p.grad is not None and not is_sharded(p)):
            held.append(gradient)
            if sum(g.numel() for g in held) >= MESSAGE:
                self._sum(held)
                held = []
        if held:
            self._sum(held)

    def _sum(self, gradients: Sequence[Tensor]) -> None:
        flat = torch.cat([g.flatten() for g in gradients])
        self._reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, part: Tensor, batch: int) -> Tensor:
        """Every worker's `share` of a batch, [b, ...], as one tensor [batch, ...] in order of samples."""
        if self.size == 1:
            return part
        sizes = [len(share(batch, rank, self.size)) for rank in range(self.size)]
        # messages of one size: a share may be a sample short of the first
        own = torch.cat([part, part.new_zeros(sizes[0] - len(part), *part.shape[1:])])
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self.exchanges.begun += 1
        distributed.all_gather(parts, own, group=self.peers)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def gather_texts(self, part: Sequence[str], batch: int, device: torch.device) -> list[str]:
        """Every worker's `share` of a batch of texts, in order of samples; `device` is where they
        communicate."""
        if self.size == 1:
            return list(part)
        coded = [text.encode() for text in part]
        (longest,) = self.largest([max(map(len, coded))], device)
        rows = [[len(text), *text.ljust(longest, b"\0")] for text in coded]
        whole = self.gather(torch.tensor(rows, device=device), batch).tolist()
        return [bytes(row[1 : 1 + row[0]]).decode() for row in whole]

    def sum(self, values: Sequence[Tensor]) -> Tensor:
        """Scalars of each worker's samples added up, [len(values)]."""
        if not values:
            return torch.zeros(0)
        return self.total(torch.stack([v.detach().float().reshape(()) for v in values])) / self.alike

    def total(self, values: Tensor) -> Tensor:
        """A tensor added over all workers, in its place."""
        self._reduce(values)
        return values

    def largest(self, values: Sequence[int], device: torch.device) -> list[int]:
        """The largest of the workers' values, one by one; `device` is where they communicate."""
        box = torch.tensor(values, device=device)
        self._reduce(box, distributed.ReduceOp.MAX)
        return box.tolist()

    def _reduce(self, values: Tensor, how: distributed.ReduceOp.RedOpType = distributed.ReduceOp.SUM) -> None:
        if self.count > 1:
            self.exchanges.begun += 1
            distributed.all_reduce(values, op=how)


ALONE = Workers()
"""The only worker."""
