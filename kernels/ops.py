"""The operations that models use: inputs are checked here, kernels/dispatch.py chooses the code that runs."""

import os
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import checks, operators
from kernels.attention import dense
from kernels.dispatch import VARIABLE
from kernels.reference import Normalizer, ReverseKLScore, ScoreInputs, ScoreOptions, WindowOptions


@overload
def window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, tokens_per_frame: int, window: int, scale: float | None = None,
    valid_frames: Tensor | None = None, wrap: bool = False, query_frame: int = 0,
    return_lse: Literal[False] = False,
) -> Tensor: ...  # fmt: skip


@overload
def window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, tokens_per_frame: int, window: int, scale: float | None = None,
    valid_frames: Tensor | None = None, wrap: bool = False, query_frame: int = 0, return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tokens_per_frame: int,
    window: int,
    scale: float | None = None,
    valid_frames: Tensor | None = None,
    wrap: bool = False,
    query_frame: int = 0,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v, where a frame sees the frames at most `window` away, cut at the ends.

    Args:
        q: [B, heads, tokens, head_dim], tokens ordered by frame, `tokens_per_frame` each; any strides.
        k, v: like q, or of more frames, among which are the queries'.
        window: frames to each side; T - 1 and more is dense attention.
        scale: factor of the logits, head_dim ** -0.5 by default.
        valid_frames: integers [B]; frames at or beyond a sample's count see nothing and are seen by none.
        wrap: frames form a ring, whose queries are all given.
        query_frame: the first query's frame among the keys'.
        return_lse: also return each row's log-sum-exp [B, heads, tokens]: natural log, float32 or float64,
            without gradient.

    Returns:
        [B, heads, tokens, head_dim]; rows that see nothing are 0 (their lse -inf).

    Raises:
        ValueError: shapes or options that do not fit together.
        RuntimeError: the demanded path cannot run.
    """
    q, k, v = (_autocast(x) for x in (q, k, v))
    checks.attention_inputs(q, k, v)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    checks.window_options(
        q, k, WindowOptions(tokens_per_frame, window, scale, valid_frames, wrap, query_frame)
    )
    num_frames = k.shape[2] // tokens_per_frame
    plain = valid_frames is None and not wrap and not return_lse
    if plain and window >= num_frames - 1 and not os.environ.get(VARIABLE):
        return dense_attention(q, k, v, scale)
    if valid_frames is not None:
        valid_frames = valid_frames.clamp(0, num_frames)
    out, lse = operators.window_attention(
        q, k, v, tokens_per_frame, window, scale, valid_frames, wrap, query_frame
    )
    return (out, lse) if return_lse else out


def _autocast(x: Tensor) -> Tensor:
    """x in the dtype of the autocast region around it, if any; float64 stays, as in torch."""
    kind = x.device.type
    if (
        x.dtype == torch.float64
        or not torch.amp.is_autocast_available(kind)
        or not torch.is_autocast_enabled(kind)
    ):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, key_mask: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v over all keys: self-attention of a whole clip, or cross-attention to a caption.

    On a GPU this is torch's scaled_dot_product_attention, whatever SOSTENUTO_KERNELS says.

    Args:
        q: [B, heads, N, head_dim]; k, v: [B, heads, M, head_dim].
        scale: head_dim ** -0.5 by default.
        key_mask: bool [B, M], True where a key may be seen; a sample without any gives 0.

    Returns:
        [B, heads, N, head_dim].

    Raises:
        ValueError: shapes that do not fit together.
    """
    q, k, v = (_autocast(x) for x in (q, k, v))
    checks.attention_inputs(q, k, v)
    checks.key_mask_shape(k, key_mask)
    if q.device.type == "cpu":
        return dense.dense_attention(q, k, v, scale, key_mask)
    if key_mask is None:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    sees_nothing = ~key_mask.any(1, keepdim=True)
    mask = (key_mask | sees_nothing)[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.masked_fill(sees_nothing[:, :, None, None], 0.0)


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
    """(x0_fake - x0_real) / max(mean |x0 - x0_real|, floor): the reverse KL's push on each window.

    x0_real = x_t - t v_real with v_real = u + guidance_scale (c - u) (1 is no guidance); x0_fake = x_t - t
    v_fake. The loss 0.5 mean((x0 - stopgrad(x0 - score))^2) has the gradient score / numel. Nothing here
    carries a gradient. Autocast is ignored; tensors may have a lower precision than x0.

    Args:
        x0: [N, L, C, h, w], the student's windows; the rows of one video stand together.
        x_t, v_cond, v_uncond, v_fake: like x0; `v_uncond` may be None when guidance_scale is 1.
        t: [N], the time of each window (0 data, 1 noise).
        normalizer: what the mean is taken over: `window` a row; `sample` `windows_per_sample` consecutive
            rows; `block` `block_frames` consecutive frames of a row (the last block may be shorter).
        floor: the smallest normaliser.

    Returns:
        ReverseKLScore: the score, the loss, and diagnostics. Non-finite entries are 0 and counted.

    Raises:
        ValueError: shapes or options that do not fit together.
        RuntimeError: the demanded path cannot run.
    """
    inputs = ScoreInputs(x0, x_t, t, v_cond, v_uncond, v_fake)
    extents = (windows_per_sample, block_frames, float(floor))
    options = ScoreOptions(float(guidance_scale), normalizer, *extents)
    checks.score_inputs(inputs)
    checks.score_options(inputs, options)
    with torch.no_grad():
        return ReverseKLScore(*operators.reverse_kl_score(*inputs, *options))


def window_gather(video: Tensor, starts: Sequence[int], length: int, *, wrap: bool = False) -> Tensor:
    """video [B, T, ...] -> [B * M, length, ...]: the windows at M first frames, one video's together.

    With `wrap` the frames form a ring: a window that passes the end continues at the start.

    Raises:
        ValueError: no windows, or one that leaves the video or, with `wrap`, is longer than it.
    """
    checks.windows_fit("window_gather", starts, length, video.shape[1], wrap)
    windows = []
    for start in starts:
        runs = [video[:, frame : frame + n] for frame, _, n in _runs(start, length, video.shape[1])]
        windows.append(runs[0] if len(runs) == 1 else torch.cat(runs, 1))
    return torch.stack(windows, dim=1).flatten(0, 1)


def window_scatter(
    folded: Tensor,
    starts: Sequence[int],
    num_frames: int,
    coverage: Tensor | None = None,
    *,
    wrap: bool = False,
) -> Tensor:
    """windows [B * M, L, ...] -> [B, T, ...]: the sum of the windows over a frame, divided by its coverage.

    Sums are float32 or float64, in the order of the starts: deterministic on every device.

    Args:
        starts: M first frames, the same for every video, in the order of `window_gather`.
        num_frames: T.
        coverage: [T], what the sums are divided by; None counts these windows. Where it is 0, the result is
            0.
        wrap: frames form a ring, as in `window_gather`.

    Raises:
        ValueError: no windows, one that does not fit into the video, rows that are not whole videos, a
            coverage of another length.
    """
    length = folded.shape[1]
    checks.windows_fit("window_scatter", starts, length, num_frames, wrap)
    checks.scatter_options(folded, starts, num_frames, coverage)
    windows = folded.unflatten(0, (-1, len(starts)))
    compute = torch.promote_types(folded.dtype, torch.float32)
    total = folded.new_zeros((windows.shape[0], num_frames, *folded.shape[2:]), dtype=compute)
    counts = [0] * num_frames
    for m, start in enumerate(starts):
        for frame, place, n in _runs(start, length, num_frames):
            total[:, frame : frame + n] += windows[:, m, place : place + n]
            for i in range(frame, frame + n):
                counts[i] += 1
    share = (torch.tensor(counts) if coverage is None else coverage).to(folded.device, compute)
    share = torch.where(share > 0, 1 / share.clamp_min(1e-30), 0.0)
    return (total * share.view(-1, *[1] * (folded.dim() - 2))).to(folded.dtype)


def _runs(start: int, length: int, num_frames: int) -> list[tuple[int, int, int]]:
    """A window as one run of frames, or two where it passes the end of the ring: (first frame, its place in
    the window, number of frames)."""
    first = min(length, num_frames - start)
    return [(start, 0, first)] + ([(0, first, length - first)] if first < length else [])
