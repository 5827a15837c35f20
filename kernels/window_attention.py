# ruff: noqa: N803
"""Windowed attention in Triton: forward; the backward is recomputed chunk by chunk through torch.

One program holds a tile of queries and walks over the one contiguous range of keys that the tile's frames can
see, with a running maximum and sum (Milakov & Gimelshein, arXiv 1805.02867). Any number of frames, tokens a
frame and window; head dimensions that are multiples of 8 from 16 to 128; strides of any kind (a last
dimension that is not contiguous is copied). With `wrap` or `global_frames` the keys seen are not one range,
and all tiles are visited.

Written for Triton 3.6 to 3.9 and its interpreter, which computes wrong products of bfloat16: there, and only
there, UPCAST turns tiles into float32.
"""

import os
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs as numpy on the CPU; must be set before Triton is imported."""
HEAD_DIMS = range(16, 129, 8)
"""Head dimensions of the kernel."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of q, k and v; sums are float32."""
_LOG2_E = 1.4426950408889634


class Tile(NamedTuple):
    """Launch parameters: query rows and key columns a step, warps a program, stages of the pipeline."""

    rows: int
    columns: int
    warps: int
    stages: int


def tile_for(tokens: int, head_dim: int, dtype: torch.dtype, interpreted: bool = INTERPRETED) -> Tile:
    """Large tiles where they compile for sm_80 and sm_90 without spilling registers (float32 of head_dim 128
    spills in every tile); small ones for few tokens and the interpreter.
    """
    if interpreted:
        return Tile(32, 32, 4, 1)
    if tokens <= 64:
        return Tile(32, 32, 4, 2)
    if dtype == torch.float32:
        return Tile(64 if head_dim <= 64 else 32, 32, 8, 2)
    return Tile(128, 64, 8, 3)


@triton.jit  # type: ignore[untyped-decorator]
def _load_tile(
    base: tl.tensor,
    tokens: tl.tensor,
    channels: tl.tensor,
    limit: tl.tensor,
    stride: tl.tensor,
    HEAD_DIM: tl.constexpr,
    UPCAST: tl.constexpr,
) -> tl.tensor:
    """[tokens, channels] from `base`, zero at and beyond token `limit` and channel HEAD_DIM."""
    inside = (tokens < limit)[:, None] & (channels < HEAD_DIM)[None, :]
    offsets = tokens.to(tl.int64)[:, None] * stride + channels[None, :]
    tile = tl.load(base + offsets, mask=inside, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit  # type: ignore[untyped-decorator]
def _seen(
    row_frame: tl.tensor,
    column_frame: tl.tensor,
    count: tl.tensor,
    window: tl.tensor,
    global_frames: tl.tensor,
    ANY_FRAME: tl.constexpr,
    WRAP: tl.constexpr,
) -> tl.tensor:
    """[rows, columns]: which key a query sees; as `reference.frame_mask`."""
    distance = tl.abs(row_frame[:, None] - column_frame[None, :])
    if WRAP:
        distance = tl.minimum(distance, count - distance)
    seen = distance <= window
    if ANY_FRAME:
        seen = seen | (row_frame < global_frames)[:, None] | (column_frame < global_frames)[None, :]
    return seen & (row_frame < count)[:, None] & (column_frame < count)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _accumulate(
    q_tile: tl.tensor,
    k_tile: tl.tensor,
    v_tile: tl.tensor,
    seen: tl.tensor,
    scale: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
) -> tl.tensor:
    """One step of the running softmax: maximum, sum and weighted values with one more tile of keys.

    Rows that have seen nothing keep a maximum of -inf; their weights are exp2(-inf - 0) = 0.
    """
    scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores - safe_top[:, None])
    shrink = tl.exp2(top - safe_top)
    total = total * shrink + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
    return new_top, total, acc


@triton.jit  # type: ignore[untyped-decorator]
def forward_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    valid_frames: tl.tensor,
    stride_qb: tl.tensor,
    stride_qh: tl.tensor,
    stride_qn: tl.tensor,
    stride_kb: tl.tensor,
    stride_kh: tl.tensor,
    stride_kn: tl.tensor,
    stride_vb: tl.tensor,
    stride_vh: tl.tensor,
    stride_vn: tl.tensor,
    heads: tl.tensor,
    tokens: tl.tensor,
    per_frame: tl.tensor,
    window: tl.tensor,
    global_frames: tl.tensor,
    scale_log2: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ANY_FRAME: tl.constexpr,
    WRAP: tl.constexpr,
    UPCAST: tl.constexpr,
) -> None:
    """One tile of query rows of out [B, heads, tokens, HEAD_DIM] and lse [B, heads, tokens], both contiguous.

    `scale_log2` is the scale times log2(e); `valid_frames` int32 [B]; ANY_FRAME visits every key tile.
    """
    tiles = tl.cdiv(tokens, BLOCK_M)
    sample_head = tl.program_id(0) // tiles
    sample, head = (sample_head // heads).to(tl.int64), (sample_head % heads).to(tl.int64)
    first = (tl.program_id(0) % tiles) * BLOCK_M
    rows, channels = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    q_base, k_base = q + sample * stride_qb + head * stride_qh, k + sample * stride_kb + head * stride_kh
    v_base = v + sample * stride_vb + head * stride_vh
    q_tile = _load_tile(q_base, rows, channels, tokens, stride_qn, HEAD_DIM, UPCAST)

    count = tl.load(valid_frames + sample)
    low, high = 0, count * per_frame
    if not ANY_FRAME:
        last_frame = (tl.minimum(first + BLOCK_M, tokens) - 1) // per_frame
        low = tl.maximum(first // per_frame - window, 0) * per_frame
        high = tl.minimum(last_frame + window + 1, count) * per_frame

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(low, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        k_tile = _load_tile(k_base, columns, channels, high, stride_kn, HEAD_DIM, UPCAST)
        v_tile = _load_tile(v_base, columns, channels, high, stride_vn, HEAD_DIM, UPCAST)
        seen = _seen(rows // per_frame, columns // per_frame, count, window, global_frames, ANY_FRAME, WRAP)
        top, total, acc = _accumulate(q_tile, k_tile, v_tile, seen, scale_log2, top, total, acc)

    safe_total = tl.where(total == 0.0, 1.0, total)
    row_base = sample_head.to(tl.int64) * tokens + rows
    inside = (rows < tokens)[:, None] & (channels < HEAD_DIM)[None, :]
    out_tile = (acc / safe_total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row_base[:, None] * HEAD_DIM + channels[None, :], out_tile, mask=inside)
    row_lse = tl.where(total == 0.0, float("-inf"), (top + tl.log2(safe_total)) * 0.6931471805599453)
    tl.store(lse + row_base, row_lse, mask=rows < tokens)


class _Options(NamedTuple):
    """What a frame sees; as in `reference.window_attention`."""

    tokens_per_frame: int
    window: int
    scale: float
    valid_frames: Tensor | None
    global_frames: int
    wrap: bool


def _launch(q: Tensor, k: Tensor, v: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
    """Output and lse, contiguous."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, tokens, head_dim = q.shape
    num_frames = tokens // options.tokens_per_frame
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    if options.valid_frames is None:
        valid = torch.full((batch,), num_frames, dtype=torch.int32, device=q.device)
    else:
        valid = options.valid_frames.to(device=q.device, dtype=torch.int32).contiguous()
    tile = tile_for(tokens, head_dim, q.dtype)
    forward_kernel[(triton.cdiv(tokens, tile.rows) * batch * heads,)](
        q,
        k,
        v,
        out,
        lse,
        valid,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        heads,
        tokens,
        options.tokens_per_frame,
        min(options.window, num_frames),
        options.global_frames,
        options.scale * _LOG2_E,
        HEAD_DIM=head_dim,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        ANY_FRAME=options.wrap or options.global_frames > 0,
        WRAP=options.wrap,
        UPCAST=INTERPRETED and q.dtype == torch.bfloat16,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
    return out, lse


class _WindowAttention(torch.autograd.Function):
    """Triton forward; backward by `_recompute`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
        out, lse = _launch(q, k, v, options)
        ctx.save_for_backward(q, k, v)
        ctx.options = options
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        return (*_recompute(q, k, v, grad, ctx.options), None)


def _recompute(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, options: _Options
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v: each chunk of frames is attended again by torch and differentiated by it.

    Memory beyond the gradients is one chunk's. With valid_frames, global_frames or wrap the reference is
    differentiated instead, with memory that grows with tokens^2.
    """
    if options.valid_frames is not None or options.global_frames or options.wrap:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with torch.enable_grad():
            out = reference.window_attention(*leaves, **options._asdict())
        assert isinstance(out, Tensor)
        grad_q, grad_k, grad_v = torch.autograd.grad(out, leaves, grad)
        return grad_q, grad_k, grad_v
    per_frame, window = options.tokens_per_frame, options.window
    num_frames = q.shape[2] // per_frame
    chunk = max(1, 64 // per_frame)
    grads = (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
    for first in range(0, num_frames, chunk):
        last = min(num_frames, first + chunk)
        low, high = max(0, first - window), min(num_frames, last + window)
        rows, columns = slice(first * per_frame, last * per_frame), slice(low * per_frame, high * per_frame)
        frame = torch.arange(first, last, device=q.device).repeat_interleave(per_frame)
        key_frame = torch.arange(low, high, device=q.device).repeat_interleave(per_frame)
        mask = None if chunk == 1 else (frame[:, None] - key_frame).abs() <= window
        query, key, value = (
            x.detach().requires_grad_() for x in (q[:, :, rows], k[:, :, columns], v[:, :, columns])
        )
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=options.scale)
        parts = torch.autograd.grad(out, (query, key, value), grad[:, :, rows])
        for total, part, place in zip(grads, parts, (rows, columns, columns), strict=True):
            total[:, :, place] += part
    return grads


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tokens_per_frame: int,
    window: int,
    scale: float | None = None,
    valid_frames: Tensor | None = None,
    global_frames: int = 0,
    wrap: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`reference.window_attention` on a GPU, or on the CPU under Triton's interpreter.

    q, k, v are float32, float16 or bfloat16 with a head dimension in HEAD_DIMS; float32 products are exact
    (no TF32). A NaN reaches every row that sees it, and may reach rows up to a tile further.

    Raises:
        ValueError: another type or head dimension.
    """
    if q.dtype not in DTYPES or q.shape[-1] not in HEAD_DIMS:
        raise ValueError(
            f"the Triton window attention has no kernel for {q.dtype} with head_dim {q.shape[-1]}. Use "
            "float32, "
            "float16 or bfloat16 and a multiple of 8 from 16 to 128, or set LONGTAKE_KERNELS=reference"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    options = _Options(tokens_per_frame, window, scale, valid_frames, global_frames, wrap)
    out, lse = _WindowAttention.apply(q, k, v, options)
    return (out, lse) if return_lse else out
