"""Functions as operators of torch: one node in a compiled graph, with shapes for fake and meta tensors.

By `define` and `impl`, not by `custom_op`, whose first call imports the compiler into every process, nor by
`triton_op`: tracing would look inside, which fails on machines without a GPU.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

Function = Callable[..., Any]


def operator(
    name: str,
    function: Function,
    fake: Function,
    keep: Function | None = None,
    backward: Function | None = None,
) -> Function:
    """Registers a function whose type hints are its schema, and returns the operator.

    Args:
        name: `sostenuto::<name>`.
        function: computes; its results share no memory with each other or with its arguments.
        fake: returns empty tensors of the same shapes, types and strides.
        keep: `setup_context` of the gradient.
        backward: the gradient. Without one, asking for it is a RuntimeError.
    """
    qualified = f"sostenuto::{name}"
    torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(qualified, "default", function)
    torch.library.register_fake(qualified, fake)

    def refuse(*_given: object) -> NoReturn:
        raise RuntimeError(f"{qualified} cannot be differentiated. Detach its inputs")

    torch.library.register_autograd(qualified, backward or refuse, setup_context=keep)
    packet: Any = getattr(torch.ops.sostenuto, name)
    return packet.default  # type: ignore[no-any-return]
