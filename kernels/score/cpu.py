"""The reverse-KL score on the CPU: float32 with float64 sums (float64 throughout for float64 inputs).

Large windows are computed in runs that stay in the cache, small ones all at once. A segment is what shares a
normaliser within a row: a block of frames, or all of them.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.reference import ReverseKLScore, ScoreInputs, ScoreOptions

RUN = 262_144
"""Elements per run."""
FINITE_SQUARES = 1e60
"""A sum of squares below this is one of finite float32 numbers."""
LARGE = 16_384
"""Elements per segment from which runs pay."""


class Parts(NamedTuple):
    """The score and the sums from which its diagnostics are made."""

    score: Tensor
    """Like x0, in float32 or float64."""
    sums: tuple[Tensor, Tensor]
    """Of |x0 - x0_real| and |x0_fake - x0_real|, each [N, segments], float64."""
    norm: Tensor
    """[N, segments], float64."""
    non_finite: int
    squares: float
    """Sum of score^2."""


def reverse_kl_score(inputs: ScoreInputs, options: ScoreOptions) -> ReverseKLScore:
    """`reference.reverse_kl_score`, by x0_fake - x0_real = t (v_real - v_fake): nothing large cancels."""
    x0, x_t, t, v_cond, v_uncond, v_fake = inputs
    tensors = [x.detach() for x in (x0, x_t, v_cond, v_fake)]
    if v_uncond is not None and options.guidance_scale != 1.0:
        tensors.append(v_uncond.detach())
    frames = options.segment_frames(x0.shape[1])
    large = frames * x0[0, 0].numel() >= LARGE
    parts = (_in_runs if large else _at_once)(tensors, t.detach(), frames, options)
    compute, row_size = parts.score.dtype, x0[0].numel()
    real, fake = ((s.sum(1) / row_size).to(compute) for s in parts.sums)
    return ReverseKLScore(
        score=parts.score.to(x0.dtype),
        distance_real=real,
        distance_fake=fake,
        norm=(parts.norm if options.normalizer == "block" else parts.norm[:, 0]).to(compute),
        non_finite=torch.tensor(parts.non_finite),
        loss=torch.tensor(0.5 * parts.squares / x0.numel(), dtype=compute),
    )


def _norm(sums: Tensor, row_size: int, segment_size: int, options: ScoreOptions) -> Tensor:
    """max(mean |x0 - x0_real|, floor) [N, segments] from the sums of each segment."""
    sizes = torch.full((sums.shape[1],), float(segment_size), dtype=torch.float64)
    sizes[-1] = row_size - segment_size * (len(sizes) - 1)
    means = (sums / sizes).unflatten(0, (-1, options.rows)).mean(1)
    norm: Tensor = means.clamp_min(options.floor).repeat_interleave(options.rows, 0)
    return norm


def _at_once(tensors: list[Tensor], t: Tensor, frames: int, options: ScoreOptions) -> Parts:
    """All rows together; tensors are x0, x_t, v_cond, v_fake and, with guidance, v_uncond."""
    compute = torch.promote_types(tensors[0].dtype, torch.float32)
    x0, x_t, v_real, v_fake, *unconditional = (x.to(compute).flatten(2) for x in tensors)
    time = t.to(compute).view(-1, 1, 1)
    for base in unconditional:
        v_real = base + options.guidance_scale * (v_real - base)
    gap = x0 - torch.addcmul(x_t, time, v_real, value=-1)
    difference = time * (v_real - v_fake)
    difference = difference.masked_fill_(~torch.isfinite(gap), float("nan"))

    by_frame = (x.abs().sum(2, dtype=torch.float64) for x in (gap, difference))
    real, fake = (torch.stack([s.sum(1) for s in x.split(frames, 1)], 1) for x in by_frame)
    norm = _norm(real, x0[0].numel(), frames * x0.shape[2], options)
    divisor = norm.to(compute).repeat_interleave(frames, 1)[:, : x0.shape[1], None]
    score = difference.div_(divisor)
    bad = ~torch.isfinite(score)
    score.masked_fill_(bad, 0.0)
    squares = score.square().sum(dtype=torch.float64)
    return Parts(score.view(tensors[0].shape), (real, fake), norm, int(bad.sum()), float(squares))


def _in_runs(tensors: list[Tensor], t: Tensor, frames: int, options: ScoreOptions) -> Parts:
    """Run after run of each segment of each row; looks for non-finite entries where a sum is not finite."""
    rows, row_size = tensors[0].shape[0], tensors[0][0].numel()
    compute = torch.promote_types(tensors[0].dtype, torch.float32)
    segment = frames * tensors[0][0, 0].numel()
    score = torch.empty(tensors[0].shape, dtype=compute)
    flat = [x.contiguous().view(rows, -1) for x in (score, *tensors)]
    scratch = torch.empty(2, min(RUN, segment), dtype=compute)
    totals = []
    for row, time in enumerate(t.to(compute).tolist()):
        for parts in zip(*(x[row].split(segment) for x in flat), strict=True):
            runs = zip(*(x.split(RUN) for x in parts), strict=True)
            sums = [_difference(scratch, time, options.guidance_scale, *run) for run in runs]
            totals.append([sum(column) for column in zip(*sums, strict=True)])
    real, fake, squares = torch.tensor(totals, dtype=torch.float64).view(rows, -1, 3).unbind(2)
    norm = _norm(real, row_size, segment, options)

    time = t.to(torch.float64)[:, None]
    factors = time / norm
    segments = [part for row in flat[0] for part in row.split(segment)]
    scaled = (factors.flatten().tolist(), (squares * factors.square()).flatten().tolist())
    ends = [_scale(part, *numbers) for part, *numbers in zip(segments, *scaled, strict=True)]
    bad, square = (sum(column) for column in zip(*ends, strict=True))
    return Parts(score, (real, time * fake), norm, int(bad), square)


def _difference(
    scratch: Tensor,
    time: float,
    guidance_scale: float,
    out: Tensor,
    x0: Tensor,
    x_t: Tensor,
    v_cond: Tensor,
    v_fake: Tensor,
    v_uncond: Tensor | None = None,
) -> list[float]:
    """One run [n]: writes d = v_real - v_fake, NaN where x0 - x0_real is not finite, and returns the sums of
    |x0 - x0_real|, |d| and d^2."""
    x0, x_t, v_real, v_fake = (x.to(out.dtype) for x in (x0, x_t, v_cond, v_fake))
    if v_uncond is not None:
        v_real = torch.lerp(v_uncond.to(out.dtype), v_real, guidance_scale, out=out)
    terms = scratch[:, : out.numel()]
    gap, size = terms.unbind()
    torch.sub(x0, x_t, out=gap).add_(v_real, alpha=time).abs_()
    torch.sub(v_real, v_fake, out=out)
    torch.abs(out, out=size)
    sums: list[float] = [*terms.sum(1).tolist(), size.mul_(size).sum().item()]
    if math.isfinite(sum(sums)):
        return sums
    if v_uncond is not None:
        base = v_uncond.to(out.dtype)
        v_real = base + guidance_scale * (v_cond.to(out.dtype) - base)
    torch.sub(v_real, v_fake, out=out)
    gap = x0 - (x_t - time * v_real)
    out.masked_fill_(~torch.isfinite(gap), float("nan"))
    return [x.sum().item() for x in (gap.double().abs(), out.double().abs(), out.double().square())]


def _scale(part: Tensor, factor: float, squares: float) -> tuple[int, float]:
    """Multiplies a segment in place and zeroes its non-finite entries; returns their number and the sum of
    squares. `squares` is that sum as expected: if it is moderate, every entry is finite.
    """
    part.mul_(factor)
    if squares < FINITE_SQUARES:
        return 0, squares
    bad = ~torch.isfinite(part)
    part.masked_fill_(bad, 0.0)
    return int(bad.sum()), part.double().square().sum().item()
