"""Attention over all tokens, or from a clip to its caption, on the CPU: batched products where they win."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.attention.cpu_batched import (
    VECTOR_COLUMNS,
    Layout,
    Matrices,
    PackedClips,
    batched_gradients,
    batched_softmax,
    clips_per_matrix,
    packed_mask,
)

PLAIN_PAIRS = 96 * 96
"""Query-key pairs per matrix up to which a batched product beats torch's fused operator."""


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, key_mask: Tensor | None = None
) -> Tensor:
    """`ops.dense_attention` of checked inputs."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows, columns = q.shape[2], k.shape[2]
    small = columns <= VECTOR_COLUMNS or rows * columns <= PLAIN_PAIRS
    if not small or q.dtype not in (torch.float32, torch.float64):
        mask = None
        if key_mask is not None:
            mask = (key_mask | ~key_mask.any(1, keepdim=True))[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    elif key_mask is None and rows == columns:
        clips = clips_per_matrix(q.shape[0] * q.shape[1], rows)
        mask = packed_mask(clips, rows, 1, rows, q.dtype) if clips > 1 else None
        out = _Dense.apply(q, k, v, mask, scale, PackedClips(clips))
    else:
        pad = max(0, VECTOR_COLUMNS - columns)
        mask = _additive_key_mask(q, columns, key_mask, pad)
        out = _Dense.apply(q, F.pad(k, (0, 0, 0, pad)), F.pad(v, (0, 0, 0, pad)), mask, scale, PackedClips(1))
    if key_mask is None:
        return out
    return out.masked_fill(~key_mask.any(1)[:, None, None, None], 0.0)


def _additive_key_mask(q: Tensor, columns: int, key_mask: Tensor | None, pad: int) -> Tensor | None:
    """0 where a key may be seen, else -inf: [B * heads, 1, columns + pad], or [1, 1, ...] without a mask.

    A sample that may see nothing gets 0 everywhere: its rows stay finite until they are replaced.
    """
    if key_mask is None:
        if not pad:
            return None
        key_mask = torch.ones(1, columns, dtype=torch.bool, device="cpu")
    hidden = F.pad(~key_mask, (0, pad), value=True) & key_mask.any(1, keepdim=True)
    mask = torch.zeros(hidden.shape, dtype=q.dtype, device="cpu").masked_fill_(hidden, float("-inf"))
    heads = q.shape[1] if mask.shape[0] > 1 else 1
    return mask.repeat_interleave(heads, 0)[:, None]


class _Dense(torch.autograd.Function):
    """softmax(scale q k^T + mask) v over a layout's matrices; keeps the weights for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, layout: Layout
    ) -> Tensor:
        matrices, _ = batched_softmax(layout, q, k, v, mask, scale)
        ctx.save_for_backward(*matrices)
        ctx.layout, ctx.scale, ctx.shapes = layout, scale, (q.shape, k.shape)
        return layout.fold_queries(torch.bmm(matrices.weights, matrices.values), q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        matrices = Matrices(*ctx.saved_tensors)
        return (*batched_gradients(ctx.layout, grad, matrices, ctx.scale, *ctx.shapes), None, None, None)
