"""Weights that are shared out over workers: FSDP2, which gathers a block's for as long as it computes."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from models.blocks import Block
from models.dit import Encoder, Head
from pipelines.context import Exchanges

SHARDED = Block, Encoder, Head
"""Modules whose own weights are gathered together, innermost first."""


@dataclass(frozen=True)
class Shards:
    """This worker's place among those that shard weights.

    Args:
        mesh: the workers that share weights out; or, with two axes, such groups, each of which has them all.
        exchanges: counts what is gathered.
    """

    mesh: DeviceMesh
    exchanges: Exchanges

    @property
    def number(self) -> int:
        """This worker's part among those of its group."""
        return self.mesh.get_local_rank(self.mesh.ndim - 1)

    @property
    def count(self) -> int:
        """Workers of a group."""
        return self.mesh.size(self.mesh.ndim - 1)

    @property
    def first_group(self) -> bool:
        """Whether this worker is in the first group: the others hold the same."""
        return self.mesh.ndim == 1 or self.mesh.get_local_rank(0) == 0

    def shard(self, model: nn.Module) -> None:
        """Keeps this worker's part of a network's weights, on the mesh's device, from now on.

        Weights are gathered as they are: autocast rounds them at each use, as it does whole ones. Gradients
        are added up, not averaged: losses are parts of means over the global batch.
        """
        from torch.distributed.fsdp import FSDPModule, fully_shard  # a second, which only shards are worth

        # features are views here and there, which nobody changes in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        gather = _Gather(self.exchanges)
        for module in reversed(list(model.modules())):
            if isinstance(module, SHARDED):
                sharded = fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
                assert isinstance(sharded, FSDPModule)
                sharded.set_gradient_divide_factor(1.0)
                sharded.set_force_sum_reduction_for_comms(True)
                sharded.set_custom_all_gather(gather)  # type: ignore[arg-type]  # the class is not exported


class _Gather:
    """An all-gather that counts: a worker that has begun fewer keeps the others waiting."""

    def __init__(self, exchanges: Exchanges) -> None:
        self._exchanges = exchanges

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: ProcessGroup, async_op: bool = False
    ) -> Any:
        self._exchanges.begun += 1
        return distributed.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


def is_sharded(tensor: Tensor) -> bool:
    """Whether workers have parts of a tensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that every worker then has all of; each of them has to ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]
