"""Windowed attention in Triton, forward and backward: what is launched, and how large.

Any number of frames, tokens a frame and window; head dimensions that are multiples of 8 from 16 to 128;
strides of any kind (a last dimension that is not contiguous is copied). Nothing is compiled again when the
clip's length, the window or the batch changes.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.aot_case import AotCase
from kernels.attention.triton_backward import delta_kernel, key_gradients_kernel, query_gradients_kernel
from kernels.attention.triton_forward import forward_kernel
from kernels.attention.triton_walk import INTERPRETED
from kernels.reference import WindowOptions

HEAD_DIMS = range(16, 129, 8)
"""Head dimensions of the kernels."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of q, k and v; sums are float32, and float32 products are exact (no TF32)."""
AMD_STAGES = 2
"""Most stages of a pipeline on AMD, whose programs share 64 KiB."""
FEW_TOKENS = 64
"""Clips up to this length get small tiles."""


class Tile(NamedTuple):
    """Launch parameters: tokens a program owns, tokens a step, warps a program, stages of the pipeline."""

    tile: int
    step: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tile of each kernel."""

    forward: Tile
    key_gradients: Tile
    query_gradients: Tile


def tiles_for(tokens: int, head_dim: int, dtype: torch.dtype, interpreted: bool = INTERPRETED) -> Tiles:
    """Tiles that compile for sm_80 and sm_90 without spilling registers (kernels/aot.py checks them)."""
    if interpreted:
        return Tiles(*[Tile(32, 32, 4, 1)] * 3)
    if dtype == torch.float32:
        if head_dim > 64:
            return Tiles(Tile(32, 16, 8, 2), Tile(32, 16, 8, 2), Tile(32, 32, 8, 2))
        return Tiles(Tile(64, 32, 8, 2), *[Tile(32, 32, 8, 2)] * 2)
    if tokens <= FEW_TOKENS:
        return Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 8, 2), Tile(64, 64, 4, 2))
    return Tiles(Tile(128, 64, 8, 3), Tile(128, 32, 8, 2), Tile(128, 64, 8, 2))


def forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """Output [B, heads, tokens, D] and lse [B, heads, tokens], contiguous; as `reference.forward`.

    A NaN reaches every row that sees it, and may reach rows up to a tile further.

    Raises:
        ValueError: a type or head dimension without a kernel.
    """
    _check(q)
    q, k, v = (_by_rows(x) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    tile = tiles_for(q.shape[2], q.shape[3], q.dtype).forward
    arguments = (q, k, v, out, lse, _valid(q, options), *_strides(q, k, v), *_sizes(q, options))
    _launch(forward_kernel, q, tile, arguments, options)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v [B, heads, tokens, D], contiguous."""
    grad, q, k, v = (_by_rows(x) for x in (grad, q, k, v))
    tiles = tiles_for(q.shape[2], q.shape[3], q.dtype)
    delta = torch.empty_like(lse)
    _launch_delta(out, grad, delta, tiles.query_gradients)
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    given, valid = (q, k, v, grad, lse, delta), _valid(q, options)
    rest = (valid, *_strides(q, k, v, grad), *_sizes(q, options))
    _launch(key_gradients_kernel, q, tiles.key_gradients, (*given, grad_k, grad_v, *rest), options)
    _launch(query_gradients_kernel, q, tiles.query_gradients, (*given, grad_q, *rest), options)
    return grad_q, grad_k, grad_v


def constants_for(head_dim: int, tile: Tile, special: bool, wrap: bool) -> dict[str, Any]:
    """What a kernel is compiled for, beside types and alignment."""
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "TILE": tile.tile,
        "STEP": tile.step,
        "SPECIAL": special,
        "WRAP": wrap,
    }


def _check(q: Tensor) -> None:
    if q.dtype not in DTYPES or q.shape[-1] not in HEAD_DIMS:
        raise ValueError(
            f"the Triton window attention has no kernel for {q.dtype} with head_dim {q.shape[-1]}. Use "
            "float32, float16 or bfloat16 and a multiple of 8 from 16 to 128, or set "
            "SOSTENUTO_KERNELS=reference"
        )


def _by_rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _valid(q: Tensor, options: WindowOptions) -> Tensor:
    """Valid frames of each sample, int32 [B]."""
    if options.valid_frames is None:
        count = q.shape[2] // options.tokens_per_frame
        return torch.full((q.shape[0],), count, dtype=torch.int32, device=q.device)
    return options.valid_frames.to(device=q.device, dtype=torch.int32).contiguous()


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _sizes(q: Tensor, options: WindowOptions) -> tuple[int | float, ...]:
    """heads, tokens, per_frame, window, global_frames, scale."""
    frames = q.shape[2] // options.tokens_per_frame
    near, common = min(options.window, frames), min(options.global_frames, frames)
    return q.shape[1], q.shape[2], options.tokens_per_frame, near, common, options.scale


def _grid(q: Tensor, tile: Tile) -> tuple[int]:
    return (triton.cdiv(q.shape[2], tile.tile) * q.shape[0] * q.shape[1],)


def _launch(kernel: Any, q: Tensor, tile: Tile, arguments: tuple[Any, ...], options: WindowOptions) -> None:
    special = options.wrap or options.global_frames > 0
    with torch.cuda.device_of(q):
        kernel[_grid(q, tile)](
            *arguments,
            **constants_for(q.shape[3], tile, special, options.wrap),
            num_warps=tile.warps,
            num_stages=tile.stages if torch.version.hip is None else min(tile.stages, AMD_STAGES),
            enable_fp_fusion=True,
        )


def _launch_delta(out: Tensor, grad: Tensor, delta: Tensor, tile: Tile) -> None:
    """delta [B, heads, tokens] = sum(out * grad) over the head dimension."""
    out = out.contiguous()
    with torch.cuda.device_of(out):
        delta_kernel[_grid(out, tile)](
            out,
            grad,
            delta,
            *_strides(grad),
            *out.shape[1:3],
            HEAD_DIM=out.shape[3],
            BLOCK_D=max(16, triton.next_power_of_2(out.shape[3])),
            TILE=tile.tile,
            num_warps=tile.warps,
            enable_fp_fusion=True,
        )


def aot_cases() -> list[AotCase]:
    """Every tile and shape of mask, at full and padded head dimensions."""
    found = []
    for dtype, name in zip(DTYPES, ("fp32", "fp16", "bf16"), strict=True):
        types = dict.fromkeys(("q", "k", "v", "out", "grad", "grad_q", "grad_k", "grad_v"), f"*{name}")
        types |= dict.fromkeys(("lse", "delta"), "*fp32") | {"valid_frames": "*i32", "scale": "fp32"}
        types |= {f"stride_{x}{axis}": "i64" for x in "qkvg" for axis in "bhn"}
        for tokens, head_dim, kind in _SHIPPED[name]:
            tiles = tiles_for(tokens, head_dim, dtype, interpreted=False)
            for kernel, tile in zip(_KERNELS, tiles, strict=True):
                size = "few" if tokens <= FEW_TOKENS else "many"
                case = AotCase(
                    f"{kernel.__name__}_{name}_{head_dim}_{size}_{kind}",
                    kernel,
                    types,
                    constants_for(head_dim, tile, kind != "plain", kind == "special_wrap"),
                    {"num_warps": tile.warps, "num_stages": tile.stages},
                    tensor_cores=dtype != torch.float32,
                    everywhere=name == "bf16" and kind == "plain",
                )
                found.append(case)
        tile = tiles_for(_MANY, 128, dtype, interpreted=False).query_gradients
        constants = {"HEAD_DIM": 128, "BLOCK_D": 128, "TILE": tile.tile}
        found.append(
            AotCase(f"delta_kernel_{name}", delta_kernel, types, constants, {"num_warps": tile.warps})
        )
    return found


_KERNELS = (forward_kernel, key_gradients_kernel, query_gradients_kernel)
_MANY, _KINDS = 4096, ("plain", "special", "special_wrap")
_SHIPPED = {
    "fp32": [(_MANY, dim, "plain") for dim in (64, 128)],
    "fp16": [(_MANY, dim, "plain") for dim in (64, 128)],
    "bf16": [(FEW_TOKENS, dim, "plain") for dim in (64, 128)]
    + [(_MANY, dim, "plain") for dim in (24, 64, 96, 128)]
    + [(_MANY, 128, kind) for kind in _KINDS[1:]],
}
"""Tokens, head dimension and kind."""
