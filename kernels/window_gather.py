"""Windows of a video out of it and back: plain torch, slice after slice, so deterministic on every device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def window_gather(video: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """video [B, T, ...] -> [B * M, length, ...]: the windows that begin at M starts, one video's together."""
    return torch.stack([video[:, start : start + length] for start in starts], dim=1).flatten(0, 1)


def window_scatter(
    windows: Tensor, starts: Sequence[int], num_frames: int, coverage: Tensor | None = None
) -> Tensor:
    """windows [B * M, L, ...] -> [B, T, ...]: the sum of the windows over a frame, divided by its coverage.

    Args:
        starts: M first frames, the same for every video, in the order of `window_gather`.
        num_frames: T.
        coverage: [T], what the sums are divided by; None counts these windows. Where it is 0, the result is
            0.
    """
    folded = windows.unflatten(0, (-1, len(starts)))
    length = windows.shape[1]
    compute = torch.promote_types(windows.dtype, torch.float32)
    total = torch.zeros(folded.shape[0], num_frames, *windows.shape[2:], dtype=compute, device=windows.device)
    for m, start in enumerate(starts):
        total[:, start : start + length] += folded[:, m]
    if coverage is None:
        coverage = torch.zeros(num_frames, dtype=torch.int64)
        for start in starts:
            coverage[start : start + length] += 1
    share = coverage.to(device=windows.device, dtype=compute)
    share = torch.where(share > 0, 1 / share.clamp_min(1e-30), 0.0)
    return (total * share.view(-1, *[1] * (windows.dim() - 2))).to(windows.dtype)
