"""sostenuto::reverse_kl_score: the score as an operation that torch knows, opaque to torch.compile and with
shapes for meta tensors. It has no gradient, and under autocast it takes its inputs as they are.
"""

from typing import cast

import torch
from torch import Tensor

from kernels.dispatch import module_for
from kernels.reference import Normalizer, ReverseKLScore
from kernels.registration import operator

MODULES = {"triton": "score.triton", "cpu": "score.cpu", "reference": "reference"}
Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""The fields of ReverseKLScore, contiguous, none a view of another."""


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
) -> Result:
    """`ops.reverse_kl_score` of checked inputs."""
    result: ReverseKLScore = module_for("reverse_kl_score", x0.device, MODULES).reverse_kl_score(
        x0,
        x_t,
        t,
        v_cond,
        v_uncond,
        v_fake,
        guidance_scale=guidance_scale,
        normalizer=cast(Normalizer, normalizer),
        windows_per_sample=windows_per_sample,
        block_frames=block_frames,
        floor=floor,
    )
    return cast(Result, tuple(x.contiguous() for x in result))


def _fake(
    x0: Tensor,
    _x_t: Tensor,
    _t: Tensor,
    _v_cond: Tensor,
    _v_uncond: Tensor | None,
    _v_fake: Tensor,
    _guidance_scale: float,
    normalizer: str,
    _windows_per_sample: int,
    block_frames: int,
    _floor: float,
) -> Result:
    """Empty tensors of the shapes and types of the fields."""
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


score = operator("reverse_kl_score", _score, _fake)
