"""What data-parallel workers exchange; a group of one exchanges nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

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
            ValueError: the batch does not divide.
        """
        if batch % self.size:
            raise ValueError(f"a batch of {batch} does not divide among {self.size} workers")
        part = batch // self.size
        return range(self.rank * part, (self.rank + 1) * part)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their mean over the workers, about `MESSAGE` elements at a time."""
        if self.size == 1:
            return
        held: list[Tensor] = []
        for gradient in (p.grad for p in parameters if p.grad is not None):
            held.append(gradient)
            if sum(g.numel() for g in held) >= MESSAGE:
                self._average(held)
                held = []
        if held:
            self._average(held)

    def _average(self, gradients: Sequence[Tensor]) -> None:
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, part: Tensor) -> Tensor:
        """The parts [b, ...] of all workers as one tensor [b * size, ...], in order of samples."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def mean(self, values: Sequence[Tensor]) -> Tensor:
        """Scalars averaged over the workers, [len(values)]."""
        stacked = torch.stack([v.detach().float().reshape(()) for v in values])
        if self.size > 1:
            distributed.all_reduce(stacked)
            stacked /= self.size
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
