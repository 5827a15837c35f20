"""Processes that share the frames of clips (models/context.py), by torch.distributed."""

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from models.errors import ConfigError
from models.flow import VelocityModel
from models.text.conditioning import Conditioning
from pipelines.data.store.batch_plan import share


@dataclass
class Exchanges:
    """How many exchanges a worker has begun: one that has begun fewer than others keeps them waiting."""

    begun: int = 0


@dataclass(frozen=True)
class FrameGroup:
    """A Context whose processes own consecutive frames, the first ones one more where they do not divide.

    Args:
        rank: this process.
        size: how many there are.
        group: theirs; None is all processes.
        exchanges: counts what is exchanged.
    """

    rank: int
    size: int
    group: ProcessGroup | None = None
    exchanges: Exchanges = field(default_factory=Exchanges, compare=False)

    def own(self, frames: int) -> range:
        """This process's frames of a clip.

        Raises:
            ConfigError: there are fewer frames than processes.
        """
        if frames < self.size:
            raise ConfigError(
                f"a clip of {frames} latent frames cannot be shared by {self.size} workers",
                f"Set cluster.context_parallel={frames}, or less",
            )
        return share(frames, self.rank, self.size)

    def fetch(self, x: Tensor, frames: int, reach: int) -> Tensor:
        """The own frames' x [F, ...] -> that of all frames at most `reach` away; the adjoint adds."""
        owned, wanted = frames_of(frames, self.size), seen_by(frames, self.size, reach)
        sent = [overlap(owned[self.rank], one) for one in wanted]
        got = [len(overlap(one, wanted[self.rank])) for one in owned]
        out: Tensor = _Fetch.apply(x, self, sent, got)  # type: ignore[no-untyped-call]
        return out

    def join(self, x: Tensor, frames: int) -> Tensor:
        """The own frames' x [F, ...] -> that of all frames; the adjoint keeps the own frames."""
        own = self.own(frames)
        got = [*map(len, frames_of(frames, self.size))]
        out: Tensor = _Join.apply(x, self, own, got)  # type: ignore[no-untyped-call]
        return out

    def dealt(self, model: VelocityModel) -> VelocityModel:
        """A network that is asked alike by every process: each computes some of the rows, without a graph.

        One that is left without a row computes the last one again: others may gather weights with it.
        """

        def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            counts = [len(part) for part in dealt_rows(len(x_t), self.size)]
            first, count = sum(counts[: self.rank]), counts[self.rank]
            own = torch.arange(first, first + max(1, count), device=x_t.device).clamp(max=len(x_t) - 1)
            out = model(x_t[own], t[own], conditioning.select(own))[:count]
            return self.exchange(torch.cat([out] * self.size), [count] * self.size, counts)

        return velocity

    def exchange(self, x: Tensor, sent: list[int], got: list[int]) -> Tensor:
        """Rows of x to the processes in their order, `sent` to each; what they have sent, `got` from each."""
        self.exchanges.begun += 1
        received = x.new_empty(sum(got), *x.shape[1:])
        distributed.all_to_all_single(received, x.contiguous(), got, sent, group=self.group)
        return received


class _Fetch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: FrameGroup, sent: list[range], got: list[int]) -> Tensor:
        """`sent`: of the own frames, those that each process wants."""
        first = sent[group.rank].start
        ctx.own, ctx.group, ctx.sent, ctx.got = len(x), group, sent, got
        ctx.places = [slice(frames.start - first, frames.stop - first) for frames in sent]
        rows = torch.cat([x[place] for place in ctx.places])
        return group.exchange(rows, [*map(len, sent)], got)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        counts = [*map(len, ctx.sent)]
        parts = ctx.group.exchange(grad, ctx.got, counts).split(counts)
        total = grad.new_zeros(ctx.own, *grad.shape[1:], dtype=torch.promote_types(grad.dtype, torch.float32))
        for place, part in zip(ctx.places, parts, strict=True):
            total[place] += part
        return total.to(grad.dtype), None, None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: FrameGroup, own: range, got: list[int]) -> Tensor:
        ctx.own = slice(own.start, own.stop)
        return group.exchange(torch.cat([x] * group.size), [len(x)] * group.size, got)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad[ctx.own], None, None, None


def frames_of(frames: int, size: int) -> list[range]:
    """The frames of a clip that each of `size` processes owns."""
    return [share(frames, rank, size) for rank in range(size)]


def seen_by(frames: int, size: int, reach: int) -> list[range]:
    """Those at most `reach` away from each process's own."""
    return [
        range(max(0, own.start - reach), min(frames, own.stop + reach)) for own in frames_of(frames, size)
    ]


def dealt_rows(rows: int, size: int) -> list[range]:
    """The rows that each of `size` processes computes for all, the last ones none where there are too few."""
    each, more = divmod(rows, size)
    firsts = [rank * each + min(rank, more) for rank in range(size + 1)]
    return [range(first, last) for first, last in pairwise(firsts)]


def overlap(one: range, other: range) -> range:
    """What is in both, an empty range inside `one` where nothing is."""
    first = min(max(one.start, other.start), one.stop)
    return range(first, max(first, min(one.stop, other.stop)))
