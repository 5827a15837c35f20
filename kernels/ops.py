"""The operations the models use.

Inputs are checked here; which code then runs is kernels/dispatch.py's choice.
"""

import os
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import checks
from kernels import window_gather as windows
from kernels.attention import cpu_dense as dense_attention_cpu
from kernels.attention import operator as attention_op
from kernels.dispatch import VARIABLE
from kernels.reference import Normalizer, ReverseKLScore
from kernels.score.operator import score

__all__ = [
    "ReverseKLScore",
    "dense_attention",
    "reverse_kl_score",
    "window_attention",
    "window_gather",
    "window_scatter",
]


@overload
def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tokens_per_frame: int,
    window: int,
    scale: float | None = None,
    valid_frames: Tensor | None = None,
    global_frames: int = 0,
    wrap: bool = False,
    return_lse: Literal[False] = False,
) -> Tensor:
    """The output alone."""


@overload
def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tokens_per_frame: int,
    window: int,
    scale: float | None = None,
    valid_frames: Tensor | None = None,
    global_frames: int = 0,
    wrap: bool = False,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]:
    """The output and each row's log of the sum of exponentials."""


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tokens_per_frame: int,
    window: int,
    scale: float | None = None,
    valid_frames: Tensor | None = None,
    global_frames: int = 0,
    wrap: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v where a frame sees the frames at a distance of at most `window`, cut at the
    ends.

    Args:
        q, k, v: [B, heads, tokens, head_dim], tokens ordered by frame, `tokens_per_frame` each; any strides.
        window: frames to each side; T - 1 and more is dense attention.
        scale: factor of the logits, head_dim ** -0.5 by default.
        valid_frames: integers [B]; frames at or beyond a sample's count see nothing and are seen by none.
        global_frames: the first so many frames see all and are seen by all.
        wrap: frames form a ring.
        return_lse: also return the natural log of each row's sum of exponentials [B, heads, tokens], float32
            or float64, without gradient.

    Returns:
        [B, heads, tokens, head_dim]; rows that see nothing are 0 (their lse -inf).

    Raises:
        ValueError: shapes or options that do not fit together.
        RuntimeError: the demanded path cannot run.
    """
    q, k, v = (_as_autocast(x) for x in (q, k, v))
    checks.attention_inputs(q, k, v)
    checks.window_options(q, k, tokens_per_frame, window, valid_frames, global_frames)
    plain = valid_frames is None and not global_frames and not wrap and not return_lse
    if plain and window >= q.shape[2] // tokens_per_frame - 1 and not os.environ.get(VARIABLE):
        return dense_attention(q, k, v, scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if valid_frames is not None:
        valid_frames = valid_frames.clamp(0, q.shape[2] // tokens_per_frame)
    out, lse = attention_op.window_attention(
        q, k, v, tokens_per_frame, window, scale, valid_frames, global_frames, wrap
    )
    return (out, lse) if return_lse else out


def _as_autocast(x: Tensor) -> Tensor:
    """x in the type of an autocast region, if it is in one; float64 stays, as in torch."""
    kind = x.device.type
    known = torch.amp.is_autocast_available(kind)
    if x.dtype == torch.float64 or not known or not torch.is_autocast_enabled(kind):
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
        key_mask: bool [B, M], True where a key may be seen. A sample without any gives 0.

    Returns:
        [B, heads, N, head_dim].

    Raises:
        ValueError: shapes that do not fit together.
    """
    q, k, v = (_as_autocast(x) for x in (q, k, v))
    checks.attention_inputs(q, k, v)
    checks.key_mask_shape(k, key_mask)
    if q.device.type == "cpu":
        return dense_attention_cpu.dense_attention(q, k, v, scale, key_mask)
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

    x0_real = x_t - t v_real, v_real = u + guidance_scale (c - u) (1 is no guidance), x0_fake = x_t - t
    v_fake. With loss 0.5 mean((x0 - stopgrad(x0 - score))^2) the gradient of x0 is score / numel. Nothing
    here carries a gradient, and under autocast the tensors are used as they are; those of a lower precision
    than x0 are welcome.

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
    checks.score_inputs(x0, {"x_t": x_t, "v_cond": v_cond, "v_uncond": v_uncond, "v_fake": v_fake}, t)
    checks.score_options(x0, v_uncond, guidance_scale, normalizer, windows_per_sample, block_frames, floor)
    options = (float(guidance_scale), normalizer, windows_per_sample, block_frames, float(floor))
    with torch.no_grad():
        return ReverseKLScore(*score(x0, x_t, t, v_cond, v_uncond, v_fake, *options))


def window_gather(video: Tensor, starts: Sequence[int], length: int, *, wrap: bool = False) -> Tensor:
    """video [B, T, ...] -> [B * M, length, ...]: the windows that begin at M starts, one video's together.

    With `wrap` the frames form a ring: a window that leaves the end goes on at the start.

    Raises:
        ValueError: no windows, or one that leaves the video or, with `wrap`, is longer than it.
    """
    checks.window_places("window_gather", starts, length, video.shape[1], wrap)
    return windows.window_gather(video, starts, length)


def window_scatter(
    folded: Tensor,
    starts: Sequence[int],
    num_frames: int,
    coverage: Tensor | None = None,
    *,
    wrap: bool = False,
) -> Tensor:
    """windows [B * M, L, ...] -> [B, T, ...]: the sum of the windows over a frame, divided by its coverage.

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
    checks.window_places("window_scatter", starts, folded.shape[1], num_frames, wrap)
    checks.scatter_options(folded, starts, num_frames, coverage)
    return windows.window_scatter(folded, starts, num_frames, coverage)
