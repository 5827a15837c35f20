"""sostenuto::renoise: the re-noising as an operation that torch knows, with a gradient for x0.

Under autocast it takes its inputs as they are.
"""

from typing import Any

from torch import Tensor

from kernels.dispatch import module_for
from kernels.registration import operator

MODULES = {"triton": "renoise", "cpu": "renoise_cpu", "reference": "renoise_cpu"}


def _noised(x0: Tensor, t: Tensor, seed: int, samples: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and eps of `ops.renoise` for checked inputs, contiguous."""
    x_t, eps = module_for("renoise", x0.device, MODULES).renoise(x0, t, seed, samples)
    return x_t, eps


def _fake(x0: Tensor, _t: Tensor, _seed: int, _samples: Tensor) -> tuple[Tensor, Tensor]:
    """Two empty tensors like x0."""
    return x0.new_empty(x0.shape), x0.new_empty(x0.shape)


def _keep_time(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _grad_eps: Tensor) -> tuple[Tensor, None, None, None]:
    """d x_t / d x0 = 1 - t; eps depends on nothing but the seed."""
    (t,) = ctx.saved_tensors
    return grad * (1 - t).to(grad.dtype).view(-1, *[1] * (grad.dim() - 1)), None, None, None


noised = operator("renoise", _noised, _fake, _keep_time, _backward)
