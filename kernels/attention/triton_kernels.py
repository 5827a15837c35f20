"""Windowed attention in Triton: the forward kernel and the three kernels of the backward pass.

A program owns one tile of tokens of one head and walks over the tokens that its frames see. Seeing is
symmetric, so the same ranges serve queries that look for keys and keys that look for the queries that see
them: one contiguous range around the tile, whose middle needs no mask, and on a ring also one at the head and
one at the tail of the clip. Every output element has one owner and nothing is added atomically, so two runs
give the same bits.

`band` is (num_frames, per_frame, window): the sample's valid frames, tokens per frame, frames to each side.
With PART the queries are those of some frames alone: tokens are counted from the first key, of queries too,
and `begins` is the first query.
Written for Triton 3.6 to 3.9 and its interpreter.
"""

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs as numpy on the CPU; must be set before Triton is imported."""
UPCAST = tl.constexpr(INTERPRETED)
"""The interpreter multiplies bfloat16 wrongly: there, and only there, tiles become float32."""
LOG2_E = tl.constexpr(1.4426950408889634)
"""Scores are kept in base 2, whose exponential is one instruction."""
LN_2 = tl.constexpr(0.6931471805599453)
SIZES = ("heads", "tokens", "begins", "per_frame", "window")
"""Integers whose values never trigger a recompilation."""
RANGES = tl.constexpr(5)
FIRST_NEAR_RANGE = tl.constexpr(2)
"""Ranges before it exist only on a ring."""
UNMASKED_RANGE = tl.constexpr(3)


@triton.jit
def program_tile(heads, tokens, TILE: tl.constexpr):
    """This program's (sample, head) pair as int64, sample, head, and the first token of its tile."""
    tiles = tl.cdiv(tokens, TILE)
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    return pair, pair // heads, pair % heads, (tl.program_id(0) % tiles) * TILE


@triton.jit
def load_tile(
    base, stride, tokens, limit, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """[tokens, BLOCK_D] from `base`: zero beyond channel HEAD_DIM and, with MASKED, from token `limit` on."""
    channels = tl.arange(0, BLOCK_D)
    places = base + tokens.to(tl.int64)[:, None] * stride + channels[None, :]
    if MASKED:
        inside = (tokens < limit)[:, None] & (channels < HEAD_DIM)[None, :]
        tile = tl.load(places, mask=inside, other=0.0)
    elif HEAD_DIM != BLOCK_D:
        tile = tl.load(places, mask=(channels < HEAD_DIM)[None, :], other=0.0)
    else:
        tile = tl.load(places)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def store_tile(base, tile, tokens, limit, HEAD_DIM: tl.constexpr):
    """[tokens, BLOCK_D] to a contiguous [limit, HEAD_DIM]."""
    channels = tl.arange(0, tile.shape[1])
    inside = (tokens < limit)[:, None] & (channels < HEAD_DIM)[None, :]
    places = base + tokens.to(tl.int64)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(places, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def window_mask(rows, columns, band, WRAP: tl.constexpr):
    """[rows, columns]: which token sees which, as `reference.frame_mask` says of frames."""
    num_frames, per_frame, window = band
    row_frame, column_frame = rows // per_frame, columns // per_frame
    distance = tl.abs(row_frame[:, None] - column_frame[None, :])
    if WRAP:
        distance = tl.minimum(distance, num_frames - distance)
    return (distance <= window) & (row_frame < num_frames)[:, None] & (column_frame < num_frames)[None, :]


@triton.jit
def visible_ranges(first, last, begin_frame, end_frame, band, STEP: tl.constexpr, WRAP: tl.constexpr):
    """First and last-plus-one tokens of the RANGES that the tile of tokens `first` to `last` sees of the
    frames from `begin_frame` to `end_frame`, which are all valid ones on a ring.

    They are disjoint: the head and the tail of the clip (empty unless WRAP), then the range around the tile
    in three parts, whose middle, UNMASKED_RANGE, holds whole steps that every token of the tile sees.
    """
    num_frames, per_frame, window = band
    first_frame, last_frame = first // per_frame, last // per_frame
    exists = first_frame < num_frames
    low = tl.where(exists, tl.maximum(first_frame - window, begin_frame), 0)
    high = tl.where(exists, tl.minimum(last_frame + window + 1, end_frame), 0)
    seen_by_all_from = tl.maximum(last_frame - window, begin_frame)
    seen_by_all_to = tl.where(last_frame < num_frames, tl.minimum(first_frame + window + 1, end_frame), 0)
    head = 0
    tail = num_frames
    if WRAP:
        reach = tl.minimum(last_frame, num_frames - 1) + window + 1 - num_frames
        head = tl.minimum(tl.maximum(reach, 0), low)
        tail = tl.maximum(tl.where(exists, tl.minimum(first_frame - window, 0), 0) + num_frames, high)
    low, high = low * per_frame, high * per_frame
    seen_by_all_from, seen_by_all_to = seen_by_all_from * per_frame, seen_by_all_to * per_frame
    free = low + tl.cdiv(tl.maximum(seen_by_all_from - low, 0), STEP) * STEP
    bound = free + tl.maximum(seen_by_all_to - free, 0) // STEP * STEP
    starts = (0, tail * per_frame, low, free, bound)
    return starts, (head * per_frame, num_frames * per_frame, tl.minimum(free, high), bound, high)


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    q, k, v, out, lse, valid_frames,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    heads, tokens, begins, per_frame, window, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WRAP: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """TILE query rows of out [B, heads, tokens, HEAD_DIM] and lse [B, heads, tokens], both contiguous.

    Online softmax (arXiv 1805.02867); `valid_frames` is int32 [B]. A row that has seen nothing keeps a
    maximum of -inf, and its weights are exp2(-inf - 0) = 0.
    """
    if not PART:
        begins = 0
    pair, sample, head, first = program_tile(heads, tokens, TILE)
    first, limit = first + begins, tokens + begins
    rows = first + tl.arange(0, TILE)
    q += sample * stride_qb + head * stride_qh - begins * stride_qn
    k += sample * stride_kb + head * stride_kh
    v += sample * stride_vb + head * stride_vh
    q_tile = load_tile(q, stride_qn, rows, limit, HEAD_DIM, BLOCK_D, True)
    band = (tl.load(valid_frames + sample), per_frame, window)
    starts, stops = visible_ranges(first, tl.minimum(first + TILE, limit) - 1, 0, band[0], band, STEP, WRAP)
    scale_log2 = scale * LOG2_E
    row_max = tl.full([TILE], float("-inf"), tl.float32)
    row_sum = tl.zeros([TILE], tl.float32)
    acc = tl.zeros([TILE, BLOCK_D], tl.float32)
    for i in tl.static_range(0 if WRAP else FIRST_NEAR_RANGE, RANGES):
        for start in range(starts[i], stops[i], STEP):
            columns = start + tl.arange(0, STEP)
            k_tile = load_tile(k, stride_kn, columns, stops[i], HEAD_DIM, BLOCK_D, i != UNMASKED_RANGE)
            v_tile = load_tile(v, stride_vn, columns, stops[i], HEAD_DIM, BLOCK_D, i != UNMASKED_RANGE)
            scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
            if i != UNMASKED_RANGE:
                mask = window_mask(rows, columns, band, WRAP) & (columns < stops[i])[None, :]
                scores = tl.where(mask, scores, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            finite_max = tl.where(new_max == float("-inf"), 0.0, new_max)
            weights = tl.exp2(scores - finite_max[:, None])
            shrink = tl.exp2(row_max - finite_max)
            row_sum = row_sum * shrink + tl.sum(weights, 1)
            acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc * shrink[:, None], input_precision="ieee")
            row_max = new_max
    divisor = tl.where(row_sum == 0.0, 1.0, row_sum)
    store_tile(out + (pair * tokens - begins) * HEAD_DIM, acc / divisor[:, None], rows, limit, HEAD_DIM)
    row_lse = tl.where(row_sum == 0.0, float("-inf"), (row_max + tl.log2(divisor)) * LN_2)
    tl.store(lse + pair * tokens - begins + rows, row_lse, mask=rows < limit)


@triton.jit(do_not_specialize=SIZES)
def delta_kernel(
    out, grad, delta, stride_gb, stride_gh, stride_gn, heads, tokens,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """TILE rows of delta [B, heads, tokens] = sum(out * grad) over the channels; `out` is contiguous."""
    pair, sample, head, first = program_tile(heads, tokens, TILE)
    rows = first + tl.arange(0, TILE)
    grad += sample * stride_gb + head * stride_gh
    out_tile = load_tile(out + pair * tokens * HEAD_DIM, HEAD_DIM, rows, tokens, HEAD_DIM, BLOCK_D, True)
    grad_tile = load_tile(grad, stride_gn, rows, tokens, HEAD_DIM, BLOCK_D, True)
    total = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    tl.store(delta + pair * tokens + rows, total, mask=rows < tokens)


@triton.jit
def load_lse(lse, rows, limit):
    """lse in base 2; +inf where a row has seen nothing, so that its weights are 0."""
    found = tl.load(lse + rows, mask=rows < limit, other=0.0)
    return tl.where(found == float("-inf"), float("inf"), found * LOG2_E)


@triton.jit(do_not_specialize=(*SIZES, "keys"))
def key_gradients_kernel(
    q, k, v, grad, lse, delta, grad_k, grad_v, valid_frames,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn,
    heads, tokens, begins, per_frame, window, scale, keys,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WRAP: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """TILE keys of grad_k and grad_v [B, heads, tokens, HEAD_DIM], contiguous.

    With p = exp(s - lse): dV = p^T dO, dS = p (dO V^T - delta), dK = scale dS^T Q; s, p and dS stand
    transposed here, [keys, queries].
    """
    if not PART:
        begins, keys = 0, tokens
    pair, sample, head, first = program_tile(heads, keys, TILE)
    columns = first + tl.arange(0, TILE)
    q += sample * stride_qb + head * stride_qh - begins * stride_qn
    k += sample * stride_kb + head * stride_kh
    v += sample * stride_vb + head * stride_vh
    grad += sample * stride_gb + head * stride_gh - begins * stride_gn
    lse += pair * tokens - begins
    delta += pair * tokens - begins
    grad_k += pair * keys * HEAD_DIM
    grad_v += pair * keys * HEAD_DIM
    k_tile = load_tile(k, stride_kn, columns, keys, HEAD_DIM, BLOCK_D, True)
    v_tile = load_tile(v, stride_vn, columns, keys, HEAD_DIM, BLOCK_D, True)
    band, last = (tl.load(valid_frames + sample), per_frame, window), tl.minimum(first + TILE, keys) - 1
    end_frame = tl.minimum((begins + tokens) // per_frame, band[0])
    starts, stops = visible_ranges(first, last, begins // per_frame, end_frame, band, STEP, WRAP)
    scale_log2 = scale * LOG2_E
    acc_k = tl.zeros([TILE, BLOCK_D], tl.float32)
    acc_v = tl.zeros([TILE, BLOCK_D], tl.float32)
    for i in tl.static_range(0 if WRAP else FIRST_NEAR_RANGE, RANGES):
        for start in range(starts[i], stops[i], STEP):
            rows = start + tl.arange(0, STEP)
            q_tile = load_tile(q, stride_qn, rows, stops[i], HEAD_DIM, BLOCK_D, i != UNMASKED_RANGE)
            grad_tile = load_tile(grad, stride_gn, rows, stops[i], HEAD_DIM, BLOCK_D, i != UNMASKED_RANGE)
            row_lse = load_lse(lse, rows, stops[i])
            row_delta = tl.load(delta + rows, mask=rows < stops[i], other=0.0)
            scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * scale_log2
            if i != UNMASKED_RANGE:
                mask = window_mask(columns, rows, band, WRAP) & (rows < stops[i])[None, :]
                scores = tl.where(mask, scores, float("-inf"))
            weights = tl.exp2(scores - row_lse[None, :])
            grad_weights = tl.dot(v_tile, tl.trans(grad_tile), input_precision="ieee")
            grad_scores = weights * (grad_weights - row_delta[None, :])
            if i != UNMASKED_RANGE:
                grad_scores = tl.where(mask, grad_scores, 0.0)
            acc_v = tl.dot(weights.to(grad_tile.dtype), grad_tile, acc_v, input_precision="ieee")
            acc_k = tl.dot(grad_scores.to(q_tile.dtype), q_tile, acc_k, input_precision="ieee")
    store_tile(grad_k, acc_k * scale, columns, keys, HEAD_DIM)
    store_tile(grad_v, acc_v, columns, keys, HEAD_DIM)


@triton.jit(do_not_specialize=SIZES)
def query_gradients_kernel(
    q, k, v, grad, lse, delta, grad_q, valid_frames,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn,
    heads, tokens, begins, per_frame, window, scale,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr, WRAP: tl.constexpr,
    PART: tl.constexpr,
):  # fmt: skip
    """TILE rows of grad_q [B, heads, tokens, HEAD_DIM], contiguous: dQ = scale dS K."""
    if not PART:
        begins = 0
    pair, sample, head, first = program_tile(heads, tokens, TILE)
    first, limit = first + begins, tokens + begins
    rows = first + tl.arange(0, TILE)
    q += sample * stride_qb + head * stride_qh - begins * stride_qn
    k += sample * stride_kb + head * stride_kh
    v += sample * stride_vb + head * stride_vh
    grad += sample * stride_gb + head * stride_gh - begins * stride_gn
    grad_q += (pair * tokens - begins) * HEAD_DIM
    q_tile = load_tile(q, stride_qn, rows, limit, HEAD_DIM, BLOCK_D, True)
    grad_tile = load_tile(grad, stride_gn, rows, limit, HEAD_DIM, BLOCK_D, True)
    row_lse = load_lse(lse + pair * tokens - begins, rows, limit)
    row_delta = tl.load(delta + pair * tokens - begins + rows, mask=rows < limit, other=0.0)
    band = (tl.load(valid_frames + sample), per_frame, window)
    starts, stops = visible_ranges(first, tl.minimum(first + TILE, limit) - 1, 0, band[0], band, STEP, WRAP)
    scale_log2 = scale * LOG2_E
    acc = tl.zeros([TILE, BLOCK_D], tl.float32)
    for i in tl.static_range(0 if WRAP else FIRST_NEAR_RANGE, RANGES):
        for start in range(starts[i], stops[i], STEP):
            columns = start + tl.arange(0, STEP)
            k_tile = load_tile(k, stride_kn, columns, stops[i], HEAD_DIM, BLOCK_D, i != UNMASKED_RANGE)
            v_tile = load_tile(v, stride_vn, columns, stops[i], HEAD_DIM, BLOCK_D, i != UNMASKED_RANGE)
            scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale_log2
            if i != UNMASKED_RANGE:
                mask = window_mask(rows, columns, band, WRAP) & (columns < stops[i])[None, :]
                scores = tl.where(mask, scores, float("-inf"))
            weights = tl.exp2(scores - row_lse[:, None])
            grad_weights = tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee")
            grad_scores = weights * (grad_weights - row_delta[:, None])
            if i != UNMASKED_RANGE:
                grad_scores = tl.where(mask, grad_scores, 0.0)
            acc = tl.dot(grad_scores.to(k_tile.dtype), k_tile, acc, input_precision="ieee")
    store_tile(grad_q, acc * scale, rows, limit, HEAD_DIM)
