"""What data-parallel workers exchange; a group of one exchanges nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from pipelines.data.store.batch_plan import share

MESSAGE = 64 << 20
"""Gradient elements per all-reduce; the last gradient of a message may exceed it."""


@dataclass(frozen=True)
class Workers:
    """This worker's place among the training workers.

    Args:
        rank: this worker.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, batch: int) -> range:
        """This worker's samples of a global batch: consecutive, so that `gather` restores the order.

        Raises:
            ConfigError: a worker would have none.
        """
        return share(batch, self.rank, self.size)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their sum over the workers, about `MESSAGE` elements at a time.

        Each worker's losses are its samples' part of the mean over the global batch, so the sum is the
        gradient of that mean, however the samples are shared.
        """
        if self.size == 1:
            return
        held: list[Tensor] = []
        for gradient in (p.grad for p in parameters if p.grad is not None):
            held.append(gradient)
            if sum(g.numel() for g in held) >= MESSAGE:
                self._sum(held)
                held = []
        if held:
            self._sum(held)

    def _sum(self, gradients: Sequence[Tensor]) -> None:
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, part: Tensor, batch: int) -> Tensor:
        """Every worker's `share` of a batch, [b, ...], as one tensor [batch, ...] in order of samples."""
        if self.size == 1:
            return part
        sizes = [len(share(batch, rank, self.size)) for rank in range(self.size)]
        # messages of one size: a share may be a sample short of the first
        own = torch.cat([part, part.new_zeros(sizes[0] - len(part), *part.shape[1:])])
        parts = [torch.empty_like(own) for _ in sizes]
        distributed.all_gather(parts, own)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, values: Sequence[Tensor]) -> Tensor:
        """Scalars added over the workers, [len(values)]."""
        stacked = torch.stack([v.detach().float().reshape(()) for v in values])
        if self.size > 1:
            distributed.all_reduce(stacked)
        return stacked

    def largest(self, value: int, device: torch.device) -> int:
        """The largest of the workers' values; `device` is where they communicate."""
        if self.size == 1:
            return value
        box = torch.tensor(value, device=device)
        distributed.all_reduce(box, op=distributed.ReduceOp.MAX)
        return int(box)


ALONE = Workers()
"""The only worker."""
