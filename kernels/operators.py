"""Windowed attention and the reverse-KL score as operators of torch, whichever path runs in them: each is one
node of a compiled graph and knows its shapes on fake and meta tensors.

Registered by `define` and `impl`: the first call of `custom_op` imports the compiler into every process, and
tracing looks inside a `triton_op`, which fails on machines without a GPU.
"""

from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from kernels.dispatch import module_for
from kernels.reference import Normalizer, ReverseKLScore, ScoreInputs, ScoreOptions, WindowOptions

Function = Callable[..., Any]
ScoreFields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Those of ReverseKLScore, contiguous, none a view of another."""


def _register(
    name: str,
    function: Function,
    fake: Function,
    setup_context: Function | None = None,
    backward: Function | None = None,
) -> Function:
    """Makes `sostenuto::<name>` of a function whose type hints are the schema, and returns it.

    Args:
        function: its results share no memory with each other or with its arguments.
        fake: returns empty tensors of the same shapes, types and strides.
        setup_context, backward: the gradient. Without one, asking for it is a RuntimeError.
    """
    qualified = f"sostenuto::{name}"
    torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(qualified, "default", function)
    torch.library.register_fake(qualified, fake)

    def refuse(*_arguments: object) -> NoReturn:
        raise RuntimeError(f"{qualified} cannot be differentiated. Detach its inputs")

    torch.library.register_autograd(qualified, backward or refuse, setup_context=setup_context)
    packet: Any = getattr(torch.ops.sostenuto, name)
    return packet.default  # type: ignore[no-any-return]


def _attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens_per_frame: int,
    window: int,
    scale: float,
    valid_frames: Tensor | None,
    wrap: bool,
    query_frame: int,
) -> tuple[Tensor, Tensor]:
    """Output [B, heads, tokens, D] and lse [B, heads, tokens] (float32 or float64), both contiguous."""
    options = WindowOptions(tokens_per_frame, window, scale, valid_frames, wrap, query_frame)
    out, lse = module_for("window_attention", q.device).forward(q, k, v, options)
    return out, lse


def _attention_backward(
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
    wrap: bool,
    query_frame: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous. They cannot be differentiated again."""
    options = WindowOptions(tokens_per_frame, window, scale, valid_frames, wrap, query_frame)
    module = module_for("window_attention", q.device)
    grad_q, grad_k, grad_v = module.backward(grad, q, k, v, out, lse, options)
    return grad_q, grad_k, grad_v


def _fake_attention(q: Tensor, *_rest: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _fake_attention_backward(
    _grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_rest: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *numbers, valid_frames, wrap, query_frame = inputs
    ctx.save_for_backward(q, k, v, *output, valid_frames)
    ctx.numbers, ctx.rest = numbers, (wrap, query_frame)
    ctx.mark_non_differentiable(output[1])


def _differentiate_attention(ctx: Any, grad: Tensor, _grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, valid_frames = ctx.saved_tensors
    grads = window_attention_backward(grad, *saved, *ctx.numbers, valid_frames, *ctx.rest)
    return (*grads, *[None] * 6)


window_attention_backward = _register(
    "window_attention_backward", _attention_backward, _fake_attention_backward
)
window_attention = _register(
    "window_attention", _attention_forward, _fake_attention, _save_attention, _differentiate_attention
)


def _score(
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    v_cond: Tensor,
    v_uncond: Tensor | None,
    v_fake: Tensor,
    guidance_scale: float,
    normalizer: str,
    windows_per_sample: int,
    block_frames: int,
    floor: float,
) -> ScoreFields:
    inputs = ScoreInputs(x0, x_t, t, v_cond, v_uncond, v_fake)
    extent = cast(Normalizer, normalizer)
    options = ScoreOptions(guidance_scale, extent, windows_per_sample, block_frames, floor)
    result: ReverseKLScore = module_for("reverse_kl_score", x0.device).reverse_kl_score(inputs, options)
    return cast(ScoreFields, tuple(x.contiguous() for x in result))


def _fake_score(x0: Tensor, *rest: Any) -> ScoreFields:
    normalizer, _, block_frames, _ = rest[-4:]
    compute, rows = torch.promote_types(x0.dtype, torch.float32), x0.shape[0]
    blocks = [-(-x0.shape[1] // block_frames)] if normalizer == "block" else []
    return (
        x0.new_empty(x0.shape),
        x0.new_empty(rows, dtype=compute),
        x0.new_empty(rows, dtype=compute),
        x0.new_empty([rows, *blocks], dtype=compute),
        x0.new_empty((), dtype=torch.int64),
        x0.new_empty((), dtype=compute),
    )


reverse_kl_score = _register("reverse_kl_score", _score, _fake_score)
