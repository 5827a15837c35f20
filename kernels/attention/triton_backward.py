# ruff: noqa: N803
"""Windowed attention in Triton, backward: what each tile of keys and each tile of queries collects.

No atomics: every gradient has one owner, so two runs give the same bits.
"""

import triton
import triton.language as tl

from kernels.attention.triton_walk import (
    FIRST_PLAIN_PIECE,
    FREE_PIECE,
    LENGTHS,
    LOG2_E,
    PIECES,
    load_tile,
    owned,
    seen,
    store_tile,
    walk,
)


@triton.jit(do_not_specialize=LENGTHS)  # type: ignore[untyped-decorator]
def delta_kernel(
    out: tl.tensor,
    grad: tl.tensor,
    delta: tl.tensor,
    stride_gb: tl.tensor,
    stride_gh: tl.tensor,
    stride_gn: tl.tensor,
    heads: tl.tensor,
    tokens: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """TILE rows of delta [B, heads, tokens] = sum(out * grad), `out` contiguous."""
    pair, sample, head_index, first = owned(heads, tokens, TILE)
    rows = first + tl.arange(0, TILE)
    grad += sample * stride_gb + head_index * stride_gh
    out_tile = load_tile(out + pair * tokens * HEAD_DIM, HEAD_DIM, rows, tokens, HEAD_DIM, BLOCK_D, True)
    grad_tile = load_tile(grad, stride_gn, rows, tokens, HEAD_DIM, BLOCK_D, True)
    total = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    tl.store(delta + pair * tokens + rows, total, mask=rows < tokens)


@triton.jit  # type: ignore[untyped-decorator]
def _base_2(lse: tl.tensor) -> tl.tensor:
    """lse in base 2; +inf, so that weights are 0, where a row has seen nothing."""
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E)


@triton.jit  # type: ignore[untyped-decorator]
def _collect(
    start: tl.tensor,
    stop: tl.tensor,
    k_tile: tl.tensor,
    v_tile: tl.tensor,
    columns: tl.tensor,
    rows_of: tl.tuple,
    sums: tl.tuple,
    rule: tl.tuple,
    scale_log2: tl.tensor,
    state: tl.tuple,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    STEP: tl.constexpr,
    SPECIAL: tl.constexpr,
    WRAP: tl.constexpr,
) -> tl.tensor:
    """What the query rows of [start, stop) add to dK / scale and dV of a tile of keys.

    With p = exp(s - lse): dV = p^T dO, dS = p (dO V^T - delta), dK = scale dS^T Q; all transposed here.
    """
    grad_k, grad_v = state
    q, stride_q, grad, stride_g = rows_of
    lse, delta = sums
    for place in range(start, stop, STEP):
        rows = place + tl.arange(0, STEP)
        q_tile = load_tile(q, stride_q, rows, stop, HEAD_DIM, k_tile.shape[1], MASKED)
        grad_tile = load_tile(grad, stride_g, rows, stop, HEAD_DIM, k_tile.shape[1], MASKED)
        row_lse = _base_2(tl.load(lse + rows, mask=rows < stop, other=0.0))
        row_delta = tl.load(delta + rows, mask=rows < stop, other=0.0)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * scale_log2
        if MASKED:
            near = seen(columns // rule[1], rows // rule[1], rule, SPECIAL, WRAP) & (rows < stop)[None, :]
            scores = tl.where(near, scores, float("-inf"))
        weights = tl.exp2(scores - row_lse[None, :])
        shares = weights * (tl.dot(v_tile, tl.trans(grad_tile), input_precision="ieee") - row_delta[None, :])
        if MASKED:
            shares = tl.where(near, shares, 0.0)
        grad_v = tl.dot(weights.to(grad_tile.dtype), grad_tile, grad_v, input_precision="ieee")
        grad_k = tl.dot(shares.to(q_tile.dtype), q_tile, grad_k, input_precision="ieee")
    return grad_k, grad_v


@triton.jit(do_not_specialize=LENGTHS)  # type: ignore[untyped-decorator]
def key_gradients_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    grad_k: tl.tensor,
    grad_v: tl.tensor,
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
    stride_gb: tl.tensor,
    stride_gh: tl.tensor,
    stride_gn: tl.tensor,
    heads: tl.tensor,
    tokens: tl.tensor,
    per_frame: tl.tensor,
    window: tl.tensor,
    global_frames: tl.tensor,
    scale: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    SPECIAL: tl.constexpr,
    WRAP: tl.constexpr,
) -> None:
    """TILE keys of grad_k and grad_v [B, heads, tokens, HEAD_DIM], contiguous; each key has one owner."""
    pair, sample, head_index, first = owned(heads, tokens, TILE)
    columns = first + tl.arange(0, TILE)
    k += sample * stride_kb + head_index * stride_kh
    v += sample * stride_vb + head_index * stride_vh
    k_tile = load_tile(k, stride_kn, columns, tokens, HEAD_DIM, BLOCK_D, True)
    v_tile = load_tile(v, stride_vn, columns, tokens, HEAD_DIM, BLOCK_D, True)
    q += sample * stride_qb + head_index * stride_qh
    grad += sample * stride_gb + head_index * stride_gh
    rows_of = (q, stride_qn, grad, stride_gn)
    sums = (lse + pair * tokens, delta + pair * tokens)
    rule = (tl.load(valid_frames + sample), per_frame, window, global_frames)
    starts, stops = walk(first, tl.minimum(first + TILE, tokens) - 1, rule, STEP, SPECIAL, WRAP)
    scale_log2 = scale * LOG2_E
    state = (tl.zeros([TILE, BLOCK_D], tl.float32), tl.zeros([TILE, BLOCK_D], tl.float32))
    for piece in tl.static_range(0 if SPECIAL else FIRST_PLAIN_PIECE, PIECES):
        state = _collect(
            starts[piece],
            stops[piece],
            k_tile,
            v_tile,
            columns,
            rows_of,
            sums,
            rule,
            scale_log2,
            state,
            piece != FREE_PIECE,
            HEAD_DIM,
            STEP,
            SPECIAL,
            WRAP,
        )
    total_k, total_v = state
    store_tile(grad_k + pair * tokens * HEAD_DIM, total_k * scale, columns, tokens, HEAD_DIM)
    store_tile(grad_v + pair * tokens * HEAD_DIM, total_v, columns, tokens, HEAD_DIM)


@triton.jit  # type: ignore[untyped-decorator]
def _pull(
    start: tl.tensor,
    stop: tl.tensor,
    q_tile: tl.tensor,
    grad_tile: tl.tensor,
    rows: tl.tensor,
    sums: tl.tuple,
    keys: tl.tuple,
    rule: tl.tuple,
    scale_log2: tl.tensor,
    total: tl.tensor,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    STEP: tl.constexpr,
    SPECIAL: tl.constexpr,
    WRAP: tl.constexpr,
) -> tl.tensor:
    """What the keys of [start, stop) add to dQ / scale = dS K of a tile of query rows."""
    k, stride_k, v, stride_v = keys
    row_lse, row_delta = sums
    for place in range(start, stop, STEP):
        columns = place + tl.arange(0, STEP)
        k_tile = load_tile(k, stride_k, columns, stop, HEAD_DIM, q_tile.shape[1], MASKED)
        v_tile = load_tile(v, stride_v, columns, stop, HEAD_DIM, q_tile.shape[1], MASKED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
        if MASKED:
            near = seen(rows // rule[1], columns // rule[1], rule, SPECIAL, WRAP) & (columns < stop)[None, :]
            scores = tl.where(near, scores, float("-inf"))
        weights = tl.exp2(scores - row_lse[:, None])
        shares = weights * (tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee") - row_delta[:, None])
        if MASKED:
            shares = tl.where(near, shares, 0.0)
        total = tl.dot(shares.to(k_tile.dtype), k_tile, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=LENGTHS)  # type: ignore[untyped-decorator]
def query_gradients_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    grad: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    grad_q: tl.tensor,
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
    stride_gb: tl.tensor,
    stride_gh: tl.tensor,
    stride_gn: tl.tensor,
    heads: tl.tensor,
    tokens: tl.tensor,
    per_frame: tl.tensor,
    window: tl.tensor,
    global_frames: tl.tensor,
    scale: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    SPECIAL: tl.constexpr,
    WRAP: tl.constexpr,
) -> None:
    """TILE rows of grad_q [B, heads, tokens, HEAD_DIM], contiguous."""
    pair, sample, head_index, first = owned(heads, tokens, TILE)
    rows = first + tl.arange(0, TILE)
    q += sample * stride_qb + head_index * stride_qh
    grad += sample * stride_gb + head_index * stride_gh
    q_tile = load_tile(q, stride_qn, rows, tokens, HEAD_DIM, BLOCK_D, True)
    grad_tile = load_tile(grad, stride_gn, rows, tokens, HEAD_DIM, BLOCK_D, True)
    k += sample * stride_kb + head_index * stride_kh
    v += sample * stride_vb + head_index * stride_vh
    keys = (k, stride_kn, v, stride_vn)
    row_lse = _base_2(tl.load(lse + pair * tokens + rows, mask=rows < tokens, other=0.0))
    sums = (row_lse, tl.load(delta + pair * tokens + rows, mask=rows < tokens, other=0.0))
    rule = (tl.load(valid_frames + sample), per_frame, window, global_frames)
    starts, stops = walk(first, tl.minimum(first + TILE, tokens) - 1, rule, STEP, SPECIAL, WRAP)
    scale_log2 = scale * LOG2_E
    total = tl.zeros([TILE, BLOCK_D], tl.float32)
    for piece in tl.static_range(0 if SPECIAL else FIRST_PLAIN_PIECE, PIECES):
        total = _pull(
            starts[piece],
            stops[piece],
            q_tile,
            grad_tile,
            rows,
            sums,
            keys,
            rule,
            scale_log2,
            total,
            piece != FREE_PIECE,
            HEAD_DIM,
            STEP,
            SPECIAL,
            WRAP,
        )
    store_tile(grad_q + pair * tokens * HEAD_DIM, total * scale, rows, tokens, HEAD_DIM)
