"""What the operations accept: each check raises a ValueError that says what is wrong and what to do."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from kernels.reference import Normalizer, ScoreInputs, ScoreOptions, WindowOptions


def attention_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Shapes [B, heads, N, D], [B, heads, M, D], [B, heads, M, D], nothing empty, one dtype and device."""
    if (
        q.dim() != 4
        or k.shape != v.shape
        or k.dim() != 4
        or (q.shape[:2], q.shape[3]) != (k.shape[:2], k.shape[3])
    ):
        raise ValueError(
            f"attention: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} do not fit together. "
            "Give [B, heads, tokens, head_dim], k and v of one shape"
        )
    if not q.numel() or not k.numel():
        raise ValueError(
            f"attention: q {list(q.shape)} or k {list(k.shape)} is empty. Give at least one token"
        )
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device or not q.is_floating_point():
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in (q, k, v))
        raise ValueError(
            f"attention: q, k and v are {kinds}. Convert them to one floating-point dtype and device"
        )


def window_options(q: Tensor, k: Tensor, options: WindowOptions) -> None:
    """The queries' frames are among the keys', or the same."""
    per_frame, window, _, valid_frames, wrap, first = options
    for tokens in (q.shape[2], k.shape[2]):
        if per_frame < 1 or tokens % per_frame:
            raise ValueError(
                f"window_attention: {tokens} tokens are not whole frames of tokens_per_frame={per_frame}. "
                "Pad the clip, or correct tokens_per_frame"
            )
    if window < 0:
        raise ValueError(f"window_attention: window={window} is negative. Give the frames to each side")
    frames, keys = q.shape[2] // per_frame, k.shape[2] // per_frame
    if first < 0 or first + frames > keys:
        raise ValueError(
            f"window_attention: {frames} frames of queries from query_frame={first} are not among {keys} of "
            "keys. Give the keys of those frames too, or use dense_attention across sequences"
        )
    if wrap and frames != keys:
        raise ValueError(
            f"window_attention: a ring of {keys} frames has queries of {frames}. Give those of all frames"
        )
    if valid_frames is None:
        return
    kind = valid_frames.dtype
    counts = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
    if valid_frames.shape != q.shape[:1] or not counts or valid_frames.device != q.device:
        raise ValueError(
            f"window_attention: valid_frames is {kind} {list(valid_frames.shape)} on {valid_frames.device}. "
            f"Give {q.shape[0]} integers, one per sample, on {q.device}"
        )


def score_inputs(inputs: ScoreInputs) -> None:
    """x0 [N, L, ...], the others of its shape, t [N], all on one device."""
    x0, t = inputs.x0, inputs.t
    if x0.dim() < 2 or not x0.numel() or not x0.is_floating_point():
        raise ValueError(
            f"reverse_kl_score: x0 is {x0.dtype} {list(x0.shape)}. "
            "Give floating-point windows [N, L, C, h, w] that are not empty"
        )
    for name, x in inputs._asdict().items():
        if name != "t" and x is not None and (x.shape != x0.shape or x.device != x0.device):
            raise ValueError(
                f"reverse_kl_score: {name} is {list(x.shape)} on {x.device}, x0 is {list(x0.shape)} on "
                f"{x0.device}. Give tensors of one shape and device"
            )
    if t.shape != x0.shape[:1] or t.device != x0.device:
        raise ValueError(
            f"reverse_kl_score: t is {list(t.shape)} on {t.device}. "
            f"Give {x0.shape[0]} times, one per window, on {x0.device}"
        )


def score_options(inputs: ScoreInputs, options: ScoreOptions) -> None:
    guidance_scale, normalizer, windows_per_sample, block_frames, floor = options
    windows = inputs.x0.shape[0]
    if inputs.v_uncond is None and guidance_scale != 1.0:
        raise ValueError(
            f"reverse_kl_score: guidance_scale={guidance_scale} without v_uncond. Give the teacher's "
            "unconditional velocity, or set guidance_scale=1"
        )
    if normalizer not in get_args(Normalizer):
        raise ValueError(
            f"reverse_kl_score: unknown normalizer {normalizer!r}. "
            f"Use one of {', '.join(get_args(Normalizer))}"
        )
    if windows_per_sample < 1 or windows % windows_per_sample:
        raise ValueError(
            f"reverse_kl_score: {windows} windows are not whole videos of windows_per_sample="
            f"{windows_per_sample}. Fold the same number of windows from every video"
        )
    if block_frames < 1 or floor <= 0:
        raise ValueError(
            f"reverse_kl_score: block_frames={block_frames} and floor={floor}. Both must be positive"
        )


def windows_fit(
    operation: str, starts: Sequence[int], length: int, num_frames: int, wrap: bool = False
) -> None:
    """At least one window, each inside the video or, with `wrap`, no longer than the ring."""
    last = num_frames - (1 if wrap and length <= num_frames else length)
    if not starts or length < 1 or min(starts) < 0 or max(starts) > last:
        raise ValueError(
            f"{operation}: windows of {length} frames at {list(starts)} do not lie in {num_frames} frames. "
            f"Give one to {num_frames} frames and starts from 0 to {max(last, 0)}"
        )


def key_mask_shape(k: Tensor, key_mask: Tensor | None) -> None:
    if key_mask is not None and (key_mask.dtype != torch.bool or key_mask.shape != (k.shape[0], k.shape[2])):
        raise ValueError(
            f"dense_attention: key_mask is {key_mask.dtype} {list(key_mask.shape)}, k is {list(k.shape)}. "
            f"Give a bool mask [{k.shape[0]}, {k.shape[2]}]"
        )


def scatter_options(folded: Tensor, starts: Sequence[int], num_frames: int, coverage: Tensor | None) -> None:
    if folded.shape[0] % len(starts):
        raise ValueError(
            f"window_scatter: {folded.shape[0]} windows are not whole videos of {len(starts)}. "
            "Give the starts of one video"
        )
    if coverage is not None and coverage.shape != (num_frames,):
        raise ValueError(
            f"window_scatter: coverage is {list(coverage.shape)} for {num_frames} frames. "
            "Give one number per frame"
        )
