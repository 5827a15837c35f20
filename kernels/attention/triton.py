"""Windowed attention in Triton, forward and backward: what is launched, with which tiles.

Any number of frames, tokens per frame and window; head dimensions that are multiples of 8 from 16 to 128;
any strides (a last dimension that is not contiguous is copied). A new clip length, window or batch size never
recompiles a kernel.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.attention.triton_kernels import (
    INTERPRETED,
    delta_kernel,
    forward_kernel,
    key_gradients_kernel,
    query_gradients_kernel,
)
from kernels.reference import WindowOptions

HEAD_DIMS = range(16, 129, 8)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of q, k and v; sums are float32, and float32 products are exact (no TF32)."""
AMD_STAGES = 2
"""Most pipeline stages on AMD, where a program has 64 KiB of shared memory."""
FEW_TOKENS = 64
"""Clips up to this length get small tiles."""


class Tile(NamedTuple):
    """Launch parameters."""

    tile: int
    """Tokens that a program owns."""
    step: int
    """Tokens that it reads at a time."""
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    key_gradients: Tile
    query_gradients: Tile


def tiles_for(tokens: int, head_dim: int, dtype: torch.dtype, interpreted: bool = INTERPRETED) -> Tiles:
    """Tiles that compile for sm_90 without spilling registers (kernels/aot.py checks them)."""
    if interpreted:
        return Tiles(*[Tile(32, 32, 4, 1)] * 3)
    if dtype == torch.float32:
        if head_dim > 64:
            return Tiles(Tile(32, 16, 8, 2), Tile(32, 16, 8, 2), Tile(32, 32, 8, 2))
        return Tiles(Tile(64, 32, 8, 2), *[Tile(32, 32, 8, 2)] * 2)
    if tokens <= FEW_TOKENS:
        return Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 8, 2), Tile(64, 64, 4, 2))
    return Tiles(Tile(128, 64, 8, 3), Tile(128, 32, 8, 2), Tile(128, 64, 8, 2))


def forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """`reference.forward`: output [B, heads, tokens, D] and lse [B, heads, tokens], contiguous.

    A NaN reaches every row that sees it, and may reach rows up to a tile further.

    Raises:
        ValueError: no kernel for the dtype or head dimension.
    """
    if q.dtype not in DTYPES or q.shape[-1] not in HEAD_DIMS:
        raise ValueError(
            f"the Triton window attention has no kernel for {q.dtype} with head_dim {q.shape[-1]}. Use "
            "float32, float16 or bfloat16 and a multiple of 8 from 16 to 128, or set "
            "SOSTENUTO_KERNELS=reference"
        )
    q, k, v = (_contiguous_rows(x) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tile = tiles_for(q.shape[2], q.shape[3], q.dtype).forward
    arguments = (q, k, v, out, lse, _valid_frames(k, options), *_strides(q, k, v), *_sizes(q, k, options))
    _launch(forward_kernel, q, tile, arguments, STEP=tile.step, **_kinds(q, k, options))
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.backward`: gradients of q, k and v [B, heads, tokens, D], contiguous."""
    grad, q, k, v = (_contiguous_rows(x) for x in (grad, q, k, v))
    _, for_keys, for_queries = tiles_for(q.shape[2], q.shape[3], q.dtype)
    delta = torch.empty_like(lse)
    _launch(delta_kernel, q, for_queries, (out.contiguous(), grad, delta, *_strides(grad), *out.shape[1:3]))
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    saved = (q, k, v, grad, lse, delta)
    rest = (_valid_frames(k, options), *_strides(q, k, v, grad), *_sizes(q, k, options))
    kinds = _kinds(q, k, options)
    arguments = (*saved, grad_k, grad_v, *rest, k.shape[2])
    _launch(key_gradients_kernel, k, for_keys, arguments, STEP=for_keys.step, **kinds)
    arguments = (*saved, grad_q, *rest)
    _launch(query_gradients_kernel, q, for_queries, arguments, STEP=for_queries.step, **kinds)
    return grad_q, grad_k, grad_v


def constants_for(head_dim: int, tile: Tile) -> dict[str, int]:
    """Compile-time arguments that all kernels share."""
    return {"HEAD_DIM": head_dim, "BLOCK_D": max(16, triton.next_power_of_2(head_dim)), "TILE": tile.tile}


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _valid_frames(k: Tensor, options: WindowOptions) -> Tensor:
    """int32 [B]."""
    if options.valid_frames is None:
        num_frames = k.shape[2] // options.tokens_per_frame
        return torch.full((k.shape[0],), num_frames, dtype=torch.int32, device=k.device)
    return options.valid_frames.to(device=k.device, dtype=torch.int32).contiguous()


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _sizes(q: Tensor, k: Tensor, options: WindowOptions) -> tuple[int | float, ...]:
    """heads, tokens, begins, per_frame, window, scale."""
    per_frame = options.tokens_per_frame
    window, begins = min(options.window, k.shape[2] // per_frame), options.query_frame * per_frame
    return q.shape[1], q.shape[2], begins, per_frame, window, options.scale


def _kinds(q: Tensor, k: Tensor, options: WindowOptions) -> dict[str, bool]:
    """Kinds of attention that have code of their own."""
    return {"WRAP": options.wrap, "PART": q.shape[2] != k.shape[2]}


def _launch(kernel: Any, owned: Tensor, tile: Tile, arguments: tuple[Any, ...], **constants: Any) -> None:
    """A program for each tile of `owned` [B, heads, tokens, D]."""
    grid = (triton.cdiv(owned.shape[2], tile.tile) * owned.shape[0] * owned.shape[1],)
    with torch.cuda.device_of(owned):
        kernel[grid](
            *arguments,
            **constants_for(owned.shape[3], tile),
            **constants,
            num_warps=tile.warps,
            num_stages=tile.stages if torch.version.hip is None else min(tile.stages, AMD_STAGES),
            enable_fp_fusion=True,
        )
