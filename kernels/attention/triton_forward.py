# ruff: noqa: N803
"""Windowed attention in Triton, forward: a running softmax over the keys that a tile of queries sees."""

import triton
import triton.language as tl

from kernels.attention.triton_walk import (
    FIRST_PLAIN_PIECE,
    FREE_PIECE,
    LENGTHS,
    LN_2,
    LOG2_E,
    PIECES,
    load_tile,
    owned,
    seen,
    store_tile,
    walk,
)


@triton.jit  # type: ignore[untyped-decorator]
def _attend(
    start: tl.tensor,
    stop: tl.tensor,
    q_tile: tl.tensor,
    rows: tl.tensor,
    keys: tl.tuple,
    rule: tl.tuple,
    scale_log2: tl.tensor,
    state: tl.tuple,
    MASKED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    STEP: tl.constexpr,
    SPECIAL: tl.constexpr,
    WRAP: tl.constexpr,
) -> tl.tensor:
    """The keys of [start, stop) into the running maximum, sum and weighted values (arXiv 1805.02867).

    Rows that have seen nothing keep a maximum of -inf; their weights are exp2(-inf - 0) = 0.
    """
    top, total, acc = state
    k, stride_k, v, stride_v = keys
    for place in range(start, stop, STEP):
        columns = place + tl.arange(0, STEP)
        k_tile = load_tile(k, stride_k, columns, stop, HEAD_DIM, q_tile.shape[1], MASKED)
        v_tile = load_tile(v, stride_v, columns, stop, HEAD_DIM, q_tile.shape[1], MASKED)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
        if MASKED:
            near = seen(rows // rule[1], columns // rule[1], rule, SPECIAL, WRAP)
            scores = tl.where(near & (columns < stop)[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        safe_top = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - safe_top[:, None])
        shrink = tl.exp2(top - safe_top)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
        top = new_top
    return top, total, acc


@triton.jit(do_not_specialize=LENGTHS)  # type: ignore[untyped-decorator]
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
    scale: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    SPECIAL: tl.constexpr,
    WRAP: tl.constexpr,
) -> None:
    """TILE query rows of out [B, heads, tokens, HEAD_DIM] and lse [B, heads, tokens], both contiguous.

    `valid_frames` is int32 [B]; SPECIAL is set with global frames or a ring.
    """
    pair, sample, head_index, first = owned(heads, tokens, TILE)
    rows = first + tl.arange(0, TILE)
    q += sample * stride_qb + head_index * stride_qh
    k += sample * stride_kb + head_index * stride_kh
    v += sample * stride_vb + head_index * stride_vh
    q_tile = load_tile(q, stride_qn, rows, tokens, HEAD_DIM, BLOCK_D, True)
    keys = (k, stride_kn, v, stride_vn)
    rule = (tl.load(valid_frames + sample), per_frame, window, global_frames)
    starts, stops = walk(first, tl.minimum(first + TILE, tokens) - 1, rule, STEP, SPECIAL, WRAP)
    scale_log2 = scale * LOG2_E
    state = (
        tl.full([TILE], float("-inf"), tl.float32),
        tl.zeros([TILE], tl.float32),
        tl.zeros([TILE, BLOCK_D], tl.float32),
    )
    for piece in tl.static_range(0 if SPECIAL else FIRST_PLAIN_PIECE, PIECES):
        state = _attend(
            starts[piece],
            stops[piece],
            q_tile,
            rows,
            keys,
            rule,
            scale_log2,
            state,
            piece != FREE_PIECE,
            HEAD_DIM,
            STEP,
            SPECIAL,
            WRAP,
        )
    top, total, acc = state
    safe_total = tl.where(total == 0.0, 1.0, total)
    store_tile(out + pair * tokens * HEAD_DIM, acc / safe_total[:, None], rows, tokens, HEAD_DIM)
    row_lse = tl.where(total == 0.0, float("-inf"), (top + tl.log2(safe_total)) * LN_2)
    tl.store(lse + pair * tokens + rows, row_lse, mask=rows < tokens)
