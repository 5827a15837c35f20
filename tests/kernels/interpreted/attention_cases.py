"""Window attention in Triton's interpreter: run by test_interpreted.py in a process of its own."""

import pytest
import torch

from kernels import dispatch
from kernels.attention.triton import forward
from kernels.attention.triton_kernels import INTERPRETED
from kernels.ops import window_attention
from tests.kernels.attention_contract import *  # noqa: F403
from tests.kernels.helpers import compare, qkv

BOUNDS = {torch.float16: (1e-3, 2e-3), torch.bfloat16: (1e-2, 1.5e-2)}


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")


@pytest.mark.parametrize(
    ("shape", "per_frame", "window", "dtype"),
    [
        ((2, 1, 7, 24), 1, 2, torch.float16),
        ((1, 1, 65, 40), 13, 4, torch.bfloat16),
        ((1, 1, 74, 96), 37, 1, torch.float16),
        ((1, 1, 33, 128), 1, 100, torch.bfloat16),
    ],
)
def test_half_precision_is_the_float64_reference(shape, per_frame, window, dtype):
    errors = compare(
        window_attention, shape, dtype, transposed=True, tokens_per_frame=per_frame, window=window
    )
    assert errors[0] < BOUNDS[dtype][0]
    assert errors[1] < BOUNDS[dtype][1]


def test_the_kernels_run_here(monkeypatch):
    assert INTERPRETED
    called = []
    monkeypatch.setattr(
        "kernels.attention.triton.forward", lambda *given: called.append(1) or forward(*given)
    )
    window_attention(*qkv((1, 1, 12, 16), dtype=torch.float32), tokens_per_frame=2, window=1)
    assert called


@pytest.mark.parametrize(("dim", "dtype"), [(12, torch.float32), (136, torch.float32), (16, torch.float64)])
def test_shapes_without_a_kernel_are_refused(dim, dtype):
    with pytest.raises(ValueError, match="SOSTENUTO_KERNELS=reference"):
        window_attention(*qkv((1, 1, 4, dim), dtype=dtype), tokens_per_frame=1, window=1)
