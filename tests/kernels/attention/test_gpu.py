"""Windowed attention on a GPU: the contract of every path, real frames, and nothing compiled twice."""

import pytest
import torch

from kernels import dispatch
from kernels.ops import window_attention
from tests.kernels.attention_contract import *  # noqa: F403
from tests.kernels.helpers import compare, gradients, qkv

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-3, 2e-3), torch.bfloat16: (1e-2, 1.5e-2)}


@pytest.fixture(autouse=True)
def _on_the_gpu(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with torch.device("cuda"):
        yield


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("dim", [16, 24, 64, 96, 128])
@pytest.mark.parametrize(
    ("frames", "per_frame", "window"), [(7, 130, 2), (3, 1560, 1), (33, 16, 4), (200, 1, 9)]
)
def test_types_and_shapes_are_the_float64_reference(dtype, dim, frames, per_frame, window):
    shape = (1, 2, frames * per_frame, dim)
    errors = compare(
        window_attention, shape, dtype, transposed=True, tokens_per_frame=per_frame, window=window
    )
    assert errors[0] < BOUNDS[dtype][0]
    assert errors[1] < BOUNDS[dtype][1]


@pytest.mark.parametrize("options", [{}, {"wrap": True}])
def test_two_runs_of_real_frames_give_the_same_bits(options):
    inputs, weight = qkv((1, 4, 9360, 128), dtype=torch.bfloat16), torch.ones(1, 4, 9360, 128)
    options = {"tokens_per_frame": 1560, "window": 1, **options}
    runs = [gradients(lambda *x: window_attention(*x, **options), inputs, weight) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def test_strides_beyond_32_bits_are_followed():
    wide = torch.zeros(2, 1, 64, 2**25, dtype=torch.bfloat16)
    near = qkv((2, 1, 64, 64), dtype=torch.bfloat16)
    for place, x in zip((0, 64, 128), near, strict=True):
        wide[..., place : place + 64] = x
    far = [wide[..., place : place + 64] for place in (0, 64, 128)]
    options = {"tokens_per_frame": 8, "window": 1}
    assert far[0].stride(0) >= 2**31
    assert torch.equal(window_attention(*far, **options), window_attention(*near, **options))


def test_no_length_or_window_compiles_again():
    from kernels.attention.triton_kernels import forward_kernel

    def compiled() -> int:
        return sum(len(cache[0]) for cache in forward_kernel.device_caches.values())

    def attend(batch, heads, frames, window):
        q, k, v = qkv((batch, heads, frames * 16, 64), dtype=torch.bfloat16)
        window_attention(q, k, v, tokens_per_frame=16, window=window)

    attend(2, 2, 21, 4)
    first = compiled()
    for batch, heads, frames, window in ((1, 2, 22, 1), (3, 2, 32, 16), (2, 1, 33, 0), (1, 1, 240, 10)):
        attend(batch, heads, frames, window)
    assert compiled() == first
