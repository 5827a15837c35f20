# ruff: noqa: N803
"""The reverse-KL score in Triton: one pass reads the five tensors, a second divides.

The first kernel writes x0_fake - x0_real and, for each tile, sum |x0 - x0_real| and sum |x0_fake - x0_real|;
torch adds the tiles up in float64; the second kernel divides, zeroes what is not finite and counts it a tile.
No
atomics: two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.reference import Normalizer, ReverseKLScore
from kernels.reverse_kl_cpu import normaliser, segment_frames

BLOCK = 1024
"""Elements a program."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of the tensors; arithmetic is float32."""


@triton.jit  # type: ignore[untyped-decorator]
def difference_kernel(
    x0: tl.tensor,
    x_t: tl.tensor,
    t: tl.tensor,
    v_cond: tl.tensor,
    v_uncond: tl.tensor,
    v_fake: tl.tensor,
    difference: tl.tensor,
    sums: tl.tensor,
    guidance_scale: tl.tensor,
    row_size: tl.tensor,
    segment_size: tl.tensor,
    segments: tl.tensor,
    tiles: tl.tensor,
    GUIDED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One tile of one segment of one row: t (v_real - v_fake), NaN where x0 - x0_real is not finite.

    All tensors are [N, row_size], contiguous; sums is [N, segments, tiles, 2].
    """
    program = tl.program_id(0)
    tile = program % tiles
    segment = (program // tiles) % segments
    row = program // (tiles * segments)
    within = tile * BLOCK + tl.arange(0, BLOCK)
    limit = tl.minimum(segment_size, row_size - segment * segment_size)
    inside = within < limit
    offsets = row.to(tl.int64) * row_size + segment.to(tl.int64) * segment_size + within
    time = tl.load(t + row).to(tl.float32)
    student = tl.load(x0 + offsets, mask=inside, other=0.0).to(tl.float32)
    noisy = tl.load(x_t + offsets, mask=inside, other=0.0).to(tl.float32)
    v_real = tl.load(v_cond + offsets, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        base = tl.load(v_uncond + offsets, mask=inside, other=0.0).to(tl.float32)
        v_real = base + guidance_scale * (v_real - base)
    fake = tl.load(v_fake + offsets, mask=inside, other=0.0).to(tl.float32)
    gap = tl.abs(student - (noisy - time * v_real))
    result = time * (v_real - fake)
    result = tl.where((gap != gap) | (gap == float("inf")), float("nan"), result)
    tl.store(difference + offsets, result, mask=inside)
    slot = sums + program.to(tl.int64) * 2
    tl.store(slot, tl.sum(tl.where(inside, gap, 0.0), 0))
    tl.store(slot + 1, tl.sum(tl.where(inside, tl.abs(result), 0.0), 0))


@triton.jit  # type: ignore[untyped-decorator]
def divide_kernel(
    difference: tl.tensor,
    norm: tl.tensor,
    score: tl.tensor,
    counts: tl.tensor,
    row_size: tl.tensor,
    segment_size: tl.tensor,
    segments: tl.tensor,
    tiles: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One tile of score = difference / norm, non-finite entries zero and counted in counts [programs]."""
    program = tl.program_id(0)
    tile = program % tiles
    segment = (program // tiles) % segments
    row = program // (tiles * segments)
    within = tile * BLOCK + tl.arange(0, BLOCK)
    limit = tl.minimum(segment_size, row_size - segment * segment_size)
    inside = within < limit
    offsets = row.to(tl.int64) * row_size + segment.to(tl.int64) * segment_size + within
    divisor = tl.load(norm + row.to(tl.int64) * segments + segment)
    quotient = tl.load(difference + offsets, mask=inside, other=0.0) / divisor
    bad = (quotient != quotient) | (tl.abs(quotient) == float("inf"))
    tl.store(score + offsets, tl.where(bad, 0.0, quotient).to(score.dtype.element_ty), mask=inside)
    tl.store(counts + program, tl.sum(tl.where(inside & bad, 1, 0), 0))


def reverse_kl_score(
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    v_cond: Tensor,
    v_uncond: Tensor | None,
    v_fake: Tensor,
    *,
    guidance_scale: float,
    normalizer: Normalizer,
    windows_per_sample: int = 1,
    block_frames: int = 1,
    floor: float = 1e-4,
) -> ReverseKLScore:
    """`reference.reverse_kl_score` on a GPU, or on the CPU under Triton's interpreter.

    Raises:
        ValueError: x0 is float64.
    """
    if x0.dtype not in DTYPES:
        raise ValueError(
            f"the Triton reverse-KL score has no kernel for {x0.dtype}. Use float32, float16 or bfloat16, "
            "or set "
            "LONGTAKE_KERNELS=reference"
        )
    rows, row_size = x0.shape[0], x0[0].numel()
    frames = segment_frames(x0.shape[1], normalizer, block_frames)
    segments = -(-x0.shape[1] // frames)
    segment_size = frames * x0[0, 0].numel()
    tiles = triton.cdiv(segment_size, BLOCK)
    grid = (rows * segments * tiles,)
    guided = v_uncond is not None and guidance_scale != 1.0
    unconditional = v_cond if v_uncond is None else v_uncond
    inputs = [x.detach().contiguous() for x in (x0, x_t, t, v_cond, unconditional, v_fake)]
    difference = torch.empty(x0.shape, dtype=torch.float32, device=x0.device)
    sums = torch.empty(rows, segments, tiles, 2, dtype=torch.float32, device=x0.device)
    sizes = (row_size, segment_size, segments, tiles)
    difference_kernel[grid](
        *inputs, difference, sums, guidance_scale, *sizes, GUIDED=guided, BLOCK=BLOCK, enable_fp_fusion=True
    )

    totals = sums.sum(2, dtype=torch.float64)
    sizes_of_segments = torch.full((segments,), segment_size, dtype=torch.float64, device=x0.device)
    sizes_of_segments[-1] = row_size - (segments - 1) * segment_size
    norm = normaliser(totals[..., 0] / sizes_of_segments, normalizer, windows_per_sample, floor)
    norm = norm.to(torch.float32).contiguous()
    score = torch.empty(x0.shape, dtype=x0.dtype, device=x0.device)
    counts = torch.empty(grid, dtype=torch.int32, device=x0.device)
    divide_kernel[grid](difference, norm, score, counts, *sizes, BLOCK=BLOCK, enable_fp_fusion=True)
    distances = (totals.sum(1) / row_size).to(torch.float32)
    return ReverseKLScore(
        score=score,
        distance_real=distances[:, 0],
        distance_fake=distances[:, 1],
        norm=norm if normalizer == "block" else norm[:, 0],
        non_finite=counts.sum(),
    )
