"""Windows of a video out of it and back: plain torch, slice after slice, so deterministic on every device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _pieces(start: int, length: int, num_frames: int) -> list[tuple[int, int, int]]:
    """The one or two runs of a window, (first frame, first place in the window, frames); the second begins at
    frame 0 when the window leaves the end of a ring."""
    first = min(length, num_frames - start)
    return [(start, 0, first)] + ([(0, first, length - first)] if first < length else [])


def window_gather(video: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """`ops.window_gather` of checked inputs; a window that leaves the end goes on at the start."""
    windows = []
    for start in starts:
        runs = [video[:, frame : frame + n] for frame, _, n in _pieces(start, length, video.shape[1])]
        windows.append(runs[0] if len(runs) == 1 else torch.cat(runs, 1))
    return torch.stack(windows, dim=1).flatten(0, 1)


def window_scatter(
    windows: Tensor, starts: Sequence[int], num_frames: int, coverage: Tensor | None = None
) -> Tensor:
    """`ops.window_scatter` of checked inputs, summed in float32 or float64 in the order of the starts."""
    folded = windows.unflatten(0, (-1, len(starts)))
    compute = torch.promote_types(windows.dtype, torch.float32)
    total = windows.new_zeros((folded.shape[0], num_frames, *windows.shape[2:]), dtype=compute)
    counts = [0] * num_frames
    for m, start in enumerate(starts):
        for frame, place, n in _pieces(start, windows.shape[1], num_frames):
            total[:, frame : frame + n] += folded[:, m, place : place + n]
            for i in range(frame, frame + n):
                counts[i] += 1
    share = (torch.tensor(counts) if coverage is None else coverage).to(windows.device, compute)
    share = torch.where(share > 0, 1 / share.clamp_min(1e-30), 0.0)
    return (total * share.view(-1, *[1] * (windows.dim() - 2))).to(windows.dtype)
