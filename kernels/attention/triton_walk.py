# ruff: noqa: N803
"""Windowed attention on the device: what its Triton kernels share.

A program owns a tile of tokens and walks over the tokens that its frames see or are seen by: the relation is
symmetric, so one rule serves forward and backward. The walk is one contiguous range around the tile, whose
middle needs no mask, and with global frames or a ring also a range at the head and one at the tail.

Arguments that travel together are tuples: `rule` = (count, per_frame, window, global_frames), with `count`
the sample's valid frames; `keys` and `rows` = (base, token stride) of two tensors in turn.
Written for Triton 3.6 to 3.9 and its interpreter.
"""

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs as numpy on the CPU; must be set before Triton is imported."""
UPCAST = tl.constexpr(INTERPRETED)
"""The interpreter multiplies bfloat16 wrongly: there, and only there, tiles are made float32."""
LOG2_E = tl.constexpr(1.4426950408889634)
"""Scores are kept in base 2, whose exponential is one instruction."""
LN_2 = tl.constexpr(0.6931471805599453)
LENGTHS = ("heads", "tokens", "per_frame", "window", "global_frames")
"""Whole numbers that kernels are not compiled again for, whatever they are."""
PIECES = tl.constexpr(5)
FREE_PIECE = tl.constexpr(3)
FIRST_PLAIN_PIECE = tl.constexpr(2)
"""Pieces of a walk: those before it are empty without global frames and a ring."""


@triton.jit  # type: ignore[untyped-decorator]
def owned(heads: tl.tensor, tokens: tl.tensor, TILE: tl.constexpr) -> tl.tensor:
    """What a program owns: pair of sample and head (int64), sample, head, and its first token."""
    tiles = tl.cdiv(tokens, TILE)
    pair = (tl.program_id(0) // tiles).to(tl.int64)
    return pair, pair // heads, pair % heads, (tl.program_id(0) % tiles) * TILE


@triton.jit  # type: ignore[untyped-decorator]
def load_tile(
    base: tl.tensor,
    stride: tl.tensor,
    tokens: tl.tensor,
    limit: tl.tensor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """[tokens, BLOCK_D] from `base`, zero beyond channel HEAD_DIM, and with MASKED from token `limit` on."""
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


@triton.jit  # type: ignore[untyped-decorator]
def store_tile(
    base: tl.tensor, tile: tl.tensor, tokens: tl.tensor, limit: tl.tensor, HEAD_DIM: tl.constexpr
) -> None:
    """[tokens, BLOCK_D] to a contiguous [limit, HEAD_DIM]."""
    channels = tl.arange(0, tile.shape[1])
    inside = (tokens < limit)[:, None] & (channels < HEAD_DIM)[None, :]
    places = base + tokens.to(tl.int64)[:, None] * HEAD_DIM + channels[None, :]
    tl.store(places, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def seen(
    row_frame: tl.tensor, column_frame: tl.tensor, rule: tl.tuple, SPECIAL: tl.constexpr, WRAP: tl.constexpr
) -> tl.tensor:
    """[rows, columns]: which token sees which; as `reference.frame_mask`, and symmetric as that is."""
    count, window, global_frames = rule[0], rule[2], rule[3]
    distance = tl.abs(row_frame[:, None] - column_frame[None, :])
    if WRAP:
        distance = tl.minimum(distance, count - distance)
    seen = distance <= window
    if SPECIAL:
        seen = seen | (row_frame < global_frames)[:, None] | (column_frame < global_frames)[None, :]
    return seen & (row_frame < count)[:, None] & (column_frame < count)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def walk(
    first: tl.tensor,
    last: tl.tensor,
    rule: tl.tuple,
    STEP: tl.constexpr,
    SPECIAL: tl.constexpr,
    WRAP: tl.constexpr,
) -> tl.tensor:
    """Where the tile of tokens `first` to `last` has to look: the beginnings and the ends of PIECES ranges.

    They are disjoint, in tokens: the head and the tail of the clip (empty unless SPECIAL), and a range around
    the tile in three, whose middle (FREE_PIECE), in whole steps, is seen by every token of the tile.
    """
    count, per_frame, window, global_frames = rule
    first_frame, last_frame = first // per_frame, last // per_frame
    exists = first_frame < count
    low = tl.where(exists, tl.maximum(first_frame - window, 0), 0)
    high = tl.where(exists, tl.minimum(last_frame + window + 1, count), 0)
    seen_from = tl.maximum(last_frame - window, 0)
    seen_to = tl.where(last_frame < count, tl.minimum(first_frame + window + 1, count), 0)
    head = 0
    tail = count
    if SPECIAL:
        any_global, all_global = first_frame < global_frames, last_frame < tl.minimum(global_frames, count)
        low = tl.where(any_global, 0, low)
        high = tl.where(any_global & exists, count, high)
        seen_from = tl.where(all_global, 0, seen_from)
        seen_to = tl.where(all_global, count, seen_to)
        head = tl.where(exists, tl.minimum(global_frames, count), 0)
        if WRAP:
            reach = tl.minimum(last_frame, count - 1) + window + 1 - count
            head = tl.where(exists, tl.maximum(head, reach), 0)
            tail = tl.where(exists, tl.minimum(tail, tl.maximum(first_frame - window + count, 0)), count)
        head = tl.minimum(head, low)
        tail = tl.maximum(tail, high)
    low, high = low * per_frame, high * per_frame
    seen_from, seen_to = seen_from * per_frame, seen_to * per_frame
    free = low + tl.cdiv(tl.maximum(seen_from - low, 0), STEP) * STEP
    bound = free + tl.maximum(seen_to - free, 0) // STEP * STEP
    starts = (0, tail * per_frame, low, free, bound)
    return starts, (head * per_frame, count * per_frame, tl.minimum(free, high), bound, high)
