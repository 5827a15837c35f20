"""The reverse-KL score in Triton, four launches: sums per tile, normalisers, the score, totals.

`sum_kernel` reads the five tensors once; `score_kernel` reads the velocities again, which moves fewer bytes
than storing the difference would in half precision (18 per element instead of 20), needs no temporary of x0's
size, and rounds once. Sums within a tile are float32, all others float64. Nothing is added atomically: two
runs give the same bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from kernels.reference import ReverseKLScore, ScoreInputs, ScoreOptions

BLOCKS = {torch.float32: 2048, torch.float16: 4096, torch.bfloat16: 4096}
"""Elements per program, by x0's dtype: two loads of 128 bits per thread and tensor. Arithmetic is float32."""
WARPS = 8
CHUNK = 4096
"""Tile sums that one step of a total adds up."""
COUNTS = ("segments", "tiles", "rows", "row_tiles")
"""Integers whose values never trigger a recompilation."""


@triton.jit
def _tile_of(program, stride_row, stride_segment, segments, tiles, BLOCK: tl.constexpr):
    """Row, first element (int64) and number of elements of a program's tile."""
    tile = program % tiles
    segment = (program // tiles) % segments
    row = program // (tiles * segments)
    start = segment.to(tl.int64) * stride_segment
    end = tl.minimum(start + stride_segment, stride_row)
    start += tile.to(tl.int64) * BLOCK
    return row, row.to(tl.int64) * stride_row + start, tl.minimum(end - start, BLOCK).to(tl.int32)


@triton.jit
def _load(tensor, lane, count):
    """The first `count` lanes as float32, 0 in the others."""
    return tl.load(tensor + lane, mask=lane < count, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=COUNTS)
def sum_kernel(
    x0, x_t, t, v_cond, v_uncond, v_fake, tile_sums,
    guidance_scale, stride_row, stride_segment, segments, tiles,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of |x0 - x0_real| and of |x0_fake - x0_real| over one tile of one segment of one row.

    The tensors are [N, stride_row], contiguous. tile_sums is [4, N, segments, tiles]: the two sums, and what
    `score_kernel` finds, the sum of squares and the number of non-finite entries.
    """
    program = tl.program_id(0)
    row, first, count = _tile_of(program, stride_row, stride_segment, segments, tiles, BLOCK)
    lane = tl.arange(0, BLOCK)
    time = tl.load(t + row).to(tl.float32)
    v_real = _load(v_cond + first, lane, count)
    if GUIDED:
        base = _load(v_uncond + first, lane, count)
        v_real = base + guidance_scale * (v_real - base)
    gap = _load(x0 + first, lane, count) - (_load(x_t + first, lane, count) - time * v_real)
    difference = time * (v_real - _load(v_fake + first, lane, count))
    tl.store(tile_sums + program, tl.sum(tl.abs(gap), 0))
    tl.store(tile_sums + tl.num_programs(0) + program, tl.sum(tl.abs(difference), 0))


@triton.jit
def _total(values, count, CHUNK: tl.constexpr):
    """The sum of `count` values in float64, in an order that depends on nothing but their number."""
    lane = tl.arange(0, CHUNK)
    total = tl.zeros((CHUNK,), tl.float64)
    for first in range(0, count, CHUNK):
        total += tl.load(values + first + lane, mask=lane < count - first, other=0).to(tl.float64)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=COUNTS)
def norm_kernel(
    tile_sums, norm, floor, stride_row, stride_segment, segments, tiles, rows, CHUNK: tl.constexpr
):
    """max(mean |x0 - x0_real|, floor) of one segment, or of `rows` consecutive rows of one segment each.

    norm is float32 [N, segments]; a mean that is not a number stays so.
    """
    group = tl.program_id(0)
    total = _total(tile_sums + group.to(tl.int64) * rows * tiles, rows * tiles, CHUNK)
    start = (group % segments).to(tl.int64) * stride_segment
    size = tl.minimum(stride_row - start, stride_segment) * rows
    mean = (total / size).to(tl.float32)
    mean = tl.where(mean < floor, floor, mean)
    for row in range(rows):
        tl.store(norm + group * rows + row, mean)


@triton.jit(do_not_specialize=COUNTS)
def score_kernel(
    x0, x_t, t, v_cond, v_uncond, v_fake, norm, score, tile_sums,
    guidance_scale, stride_row, stride_segment, segments, tiles,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of t (v_real - v_fake) / norm, non-finite entries zero; their number and the sum of squares.

    Tiles go in reverse, so that those read last by `sum_kernel` come first. An entry whose x0 - x0_real is
    not finite counts too: it makes the normaliser infinite or NaN, so x0 and x_t are read only then.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    row, first, count = _tile_of(program, stride_row, stride_segment, segments, tiles, BLOCK)
    lane = tl.arange(0, BLOCK)
    time = tl.load(t + row).to(tl.float32)
    divisor = tl.load(norm + program // tiles)
    v_real = _load(v_cond + first, lane, count)
    if GUIDED:
        base = _load(v_uncond + first, lane, count)
        v_real = base + guidance_scale * (v_real - base)
    quotient = (v_real - _load(v_fake + first, lane, count)) * (time / divisor)
    looked_at = tl.where(divisor < float("inf"), 0, count)
    gap = _load(x0 + first, lane, looked_at) - (_load(x_t + first, lane, looked_at) - time * v_real)
    finite = (tl.abs(quotient) < float("inf")) & (tl.abs(gap) < float("inf"))
    quotient = tl.where(finite, quotient, 0.0)
    tl.store(score + first + lane, quotient.to(score.dtype.element_ty), mask=lane < count)
    slot = tile_sums + 2 * tl.num_programs(0) + program
    tl.store(slot, tl.sum(quotient * quotient, 0))
    tl.store(slot + tl.num_programs(0), tl.sum(tl.where(finite | (lane >= count), 0.0, 1.0), 0))


@triton.jit(do_not_specialize=COUNTS)
def total_kernel(
    tile_sums, distance_real, distance_fake, loss, non_finite, stride_row, row_tiles, rows,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Program n < rows: the mean distances of row n. Program `rows`: loss and count."""
    row = tl.program_id(0)
    tiles = rows * row_tiles
    if row < rows:
        mine = tile_sums + row.to(tl.int64) * row_tiles
        real, fake = _total(mine, row_tiles, CHUNK), _total(mine + tiles, row_tiles, CHUNK)
        tl.store(distance_real + row, (real / stride_row).to(tl.float32))
        tl.store(distance_fake + row, (fake / stride_row).to(tl.float32))
    else:
        mean = _total(tile_sums + 2 * tiles, tiles, CHUNK) / stride_row / rows
        tl.store(loss, (0.5 * mean).to(tl.float32))
        tl.store(non_finite, _total(tile_sums + 3 * tiles, tiles, CHUNK).to(tl.int64))


def reverse_kl_score(inputs: ScoreInputs, options: ScoreOptions) -> ReverseKLScore:
    """`reference.reverse_kl_score`.

    Raises:
        ValueError: no kernel for x0's dtype.
    """
    x0, x_t, t, v_cond, v_uncond, v_fake = inputs
    if x0.dtype not in BLOCKS:
        raise ValueError(
            f"the Triton reverse-KL score has no kernel for {x0.dtype}. Use float32, float16 or bfloat16, "
            "or set SOSTENUTO_KERNELS=reference"
        )
    rows, row_size = x0.shape[0], x0[0].numel()
    frames = options.segment_frames(x0.shape[1])
    segments = -(-x0.shape[1] // frames)
    segment_size = frames * x0[0, 0].numel()
    block = BLOCKS[x0.dtype]
    tiles = triton.cdiv(segment_size, block)
    programs = rows * segments * tiles
    scale, guided = options.guidance_scale, v_uncond is not None and options.guidance_scale != 1.0
    given = (x0, x_t, t, v_cond, v_cond if v_uncond is None else v_uncond, v_fake)
    tensors = [x.contiguous() for x in given]
    score = torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)
    tile_sums, norm, real, fake, loss = (
        torch.empty(shape, dtype=torch.float32, device=x0.device)
        for shape in ((4, programs), (rows, segments), (rows,), (rows,), ())
    )
    non_finite = torch.empty((), dtype=torch.int64, device=x0.device)
    sizes: tuple[int, ...] = (row_size, segment_size, segments, tiles)
    tile: dict[str, Any] = {"BLOCK": block, "num_warps": WARPS, "enable_fp_fusion": True}
    chunk: dict[str, Any] = {"CHUNK": CHUNK, "num_warps": WARPS, "enable_fp_fusion": True}
    with torch.cuda.device_of(x0):
        sum_kernel[(programs,)](*tensors, tile_sums, scale, *sizes, GUIDED=guided, **tile)
        norm_kernel[(rows * segments // options.rows,)](
            tile_sums, norm, options.floor, *sizes, options.rows, **chunk
        )
        score_kernel[(programs,)](*tensors, norm, score, tile_sums, scale, *sizes, GUIDED=guided, **tile)
        total_kernel[(rows + 1,)](
            tile_sums, real, fake, loss, non_finite, row_size, segments * tiles, rows, **chunk
        )
    norm = norm if options.normalizer == "block" else norm[:, 0]
    return ReverseKLScore(score, real, fake, norm, non_finite, loss)
