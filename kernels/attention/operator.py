"""Windowed attention as an operator of torch, whichever path runs in it."""

from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import module_for
from kernels.reference import WindowOptions
from kernels.registration import operator

_PATHS = {"triton": "attention.triton", "cpu": "attention.cpu", "reference": "reference"}


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens_per_frame: int,
    window: int,
    scale: float,
    valid_frames: Tensor | None,
    global_frames: int,
    wrap: bool,
) -> tuple[Tensor, Tensor]:
    """Output [B, heads, tokens, D] and lse [B, heads, tokens] (float32 or float64), both contiguous.

    Arguments as `kernels.ops.window_attention`, which checks them; lse has no gradient.
    """
    options = WindowOptions(tokens_per_frame, window, scale, valid_frames, global_frames, wrap)
    out, lse = module_for("window_attention", q.device, _PATHS).forward(q, k, v, options)
    return out, lse


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tokens_per_frame: int,
    window: int,
    scale: float,
    valid_frames: Tensor | None,
    global_frames: int,
    wrap: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous. They are not differentiable again."""
    options = WindowOptions(tokens_per_frame, window, scale, valid_frames, global_frames, wrap)
    module = module_for("window_attention_backward", q.device, _PATHS)
    grad_q, grad_k, grad_v = module.backward(grad, q, k, v, out, lse, options)
    return grad_q, grad_k, grad_v


def _fake_forward(q: Tensor, *_given: object) -> tuple[Tensor, Tensor]:
    kept = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=kept)


def _fake_backward(
    _grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_given: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3], *output, inputs[6])
    ctx.numbers = inputs[3:6], inputs[7:]
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *kept, valid_frames = ctx.saved_tensors
    first, last = ctx.numbers
    return (*window_attention_backward(grad, *kept, *first, valid_frames, *last), *[None] * 6)


window_attention_backward = operator("window_attention_backward", _backward, _fake_backward)
window_attention = operator("window_attention", _forward, _fake_forward, _keep, _differentiate)
