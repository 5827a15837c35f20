"""Attention whose outputs are kept for the backward pass, while all around it is computed again.

Not by torch's selective policies: they count every operator of a block, and refuse a backward pass outside
autocast after a forward pass whose weights another one had already rounded.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import operators

Operator = Callable[..., Any]

FUSED = (
    "flash_attention efficient_attention cudnn_attention fused_attention_overrideable flash_attention_for_cpu"
).split()
"""Paths of torch's scaled_dot_product_attention."""

ATTENTION = frozenset(
    {operators.window_attention}
    | {getattr(torch.ops.aten, f"_scaled_dot_product_{name}").default for name in FUSED}
)
"""What attention runs as: operators of (q, k, v, ...), the first of whose results is its output. Not among
them are the products that a CPU batches for few tokens, and those of torch's plain path."""


def kept_attention() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """For `torch.utils.checkpoint.checkpoint`: the modes in which a function computes, and computes again."""
    kept: list[Any] = []
    return _Keep(kept), _Recall(kept)


class _Keep(TorchDispatchMode):
    """Keeps what self-attention gives, in order.

    Not what attention to a caption does, which has fewer keys than queries: that is as much memory, and
    little work.
    """

    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(
        self, func: Operator, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if _is_self_attention(func, args):
            # autograd makes the tensors themselves its own
            self._kept.append([x.detach() if isinstance(x, Tensor) else x for x in out])
        return out


class _Recall(TorchDispatchMode):
    """Gives that back in place of computing it; everything else is computed."""

    def __init__(self, kept: list[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __enter__(self) -> Any:
        self._left = iter(self._kept)
        return super().__enter__()

    def __torch_dispatch__(
        self, func: Operator, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if _is_self_attention(func, args):
            return tuple(x.detach() if isinstance(x, Tensor) else x for x in next(self._left))
        return func(*args, **(kwargs or {}))


def _is_self_attention(func: Operator, args: tuple[Any, ...]) -> bool:
    """Whether an operator is attention of a clip's tokens to a clip's; queries and keys come first."""
    return func in ATTENTION and args[1].shape[2] >= args[0].shape[2]
