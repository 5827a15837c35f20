"""The reverse-KL score on the CPU: float32 with float64 sums. Its normaliser also serves the Triton path."""

import torch
from torch import Tensor

from kernels.reference import Normalizer, ReverseKLScore


def segment_frames(frames: int, normalizer: Normalizer, block_frames: int) -> int:
    """Frames of a window that share a normaliser: a block's, or all."""
    return min(block_frames, frames) if normalizer == "block" else frames


def normaliser(means: Tensor, normalizer: Normalizer, windows_per_sample: int, floor: float) -> Tensor:
    """max(mean |x0 - x0_real|, floor) of each segment [N, segments] from the segments' own means."""
    if normalizer == "sample":
        shared = means.view(-1, windows_per_sample).mean(1, keepdim=True)
        means = shared.expand(-1, windows_per_sample).reshape(-1, 1)
    return means.clamp_min(floor)


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
    """`reference.reverse_kl_score`, by x0_fake - x0_real = t (v_real - v_fake): nothing large cancels."""
    compute = torch.promote_types(x0.dtype, torch.float32)
    student, x_t, v_real, v_fake = (x.detach().to(compute) for x in (x0, x_t, v_cond, v_fake))
    time = t.detach().to(compute).view(-1, *[1] * (x0.dim() - 1))
    if v_uncond is not None and guidance_scale != 1.0:
        base = v_uncond.detach().to(compute)
        v_real = base + guidance_scale * (v_real - base)
    gap = student - torch.addcmul(x_t, time, v_real, value=-1)
    difference = time * (v_real - v_fake)
    difference = difference.masked_fill_(~torch.isfinite(gap), float("nan"))
    gap = gap.abs_()

    frames = segment_frames(x0.shape[1], normalizer, block_frames)
    means = torch.stack([s.flatten(1).mean(1, dtype=torch.float64) for s in gap.split(frames, 1)], 1)
    norm = normaliser(means, normalizer, windows_per_sample, floor)
    divisor = norm.to(compute).repeat_interleave(frames, 1)[:, : x0.shape[1]]
    score = difference / divisor.view(*divisor.shape, *[1] * (x0.dim() - 2))
    bad = ~torch.isfinite(score)
    return ReverseKLScore(
        score=score.masked_fill_(bad, 0.0).to(x0.dtype),
        distance_real=gap.flatten(1).mean(1, dtype=torch.float64).to(compute),
        distance_fake=difference.abs().flatten(1).mean(1, dtype=torch.float64).to(compute),
        norm=(norm if normalizer == "block" else norm[:, 0]).to(compute),
        non_finite=bad.sum(),
    )
