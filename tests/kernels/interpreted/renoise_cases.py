# ruff: noqa: N803
"""Re-noising in Triton's interpreter: run by test_interpreted.py in a process of its own."""

import pytest
import torch
import triton
import triton.language as tl

from kernels import dispatch, ops, renoise, renoise_cpu

SEEDS = [0, 1, 2**31, 2**32 + 12345, 2**63 - 1]


@triton.jit(do_not_specialize=["seed"])
def words_kernel(words, numbers, samples, seed, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    found = renoise.words(seed, tl.load(numbers + lane), tl.load(samples + lane))
    for i in tl.static_range(4):
        tl.store(words + i * SIZE + lane, found[i].to(tl.int64))


@triton.jit
def angle_kernel(angles, cosines, sines, SIZE: tl.constexpr):
    lane = tl.arange(0, SIZE)
    cos, sin = renoise._cos_sin(tl.load(angles + lane).to(tl.uint32))
    tl.store(cosines + lane, cos)
    tl.store(sines + lane, sin)


@pytest.mark.parametrize("seed", SEEDS)
def test_integers_are_those_of_the_cpu_bit_for_bit(seed):
    numbers = torch.tensor([0, 1, 2**31, 2**32 - 1, 2**32, 2**45 + 3, 7, 8])
    samples = torch.tensor([0, 1, 5, 2**31, 2**32 + 9, 2**62, 0, 0])
    words = torch.empty(4, 8, dtype=torch.int64)
    words_kernel[(1,)](words, numbers, samples, seed, SIZE=8)
    low = renoise_cpu.WORD
    counter = (numbers & low, numbers >> 32, samples & low, samples >> 32)
    expected = renoise_cpu.philox(counter, (seed & low, seed >> 32))
    assert torch.equal(words, torch.stack(expected))


def test_the_golden_words_come_out_of_the_kernel():
    words = torch.empty(4, 8, dtype=torch.int64)
    words_kernel[(1,)](words, torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int64), 0, SIZE=8)
    assert words[:, 0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_cosine_and_sine_of_every_part_of_a_turn():
    eighths = torch.arange(8)[:, None] * 2**29 + torch.tensor([0, 1, 2**28, 2**29 - 1])
    angles = torch.cat([eighths.flatten(), torch.arange(0, 2**32, 2**32 // 480)])[:512]
    cosines, sines = torch.empty(2, 512)
    angle_kernel[(1,)](angles, cosines, sines, SIZE=512)
    turns = angles.double() * (2 * torch.pi / 2**32)
    assert torch.allclose(cosines.double(), turns.cos(), atol=1.5e-7, rtol=0)
    assert torch.allclose(sines.double(), turns.sin(), atol=1.5e-7, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inner", [(5, 3), (3, 11, 67), (2048,)])
def test_x_t_and_noise_are_those_of_the_cpu(dtype, inner):
    x0 = torch.randn(2, *inner, generator=torch.Generator().manual_seed(1)).to(dtype)
    t, samples = torch.tensor([0.3, 1.0]), torch.tensor([2**40 + 7, 3])
    bound = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-2}[dtype]
    expected = renoise_cpu.renoise(x0, t, 2**62 + 5, samples)
    for value, truth in zip(renoise.renoise(x0, t, 2**62 + 5, samples), expected, strict=True):
        assert value.dtype == dtype
        assert value.shape == x0.shape
        assert torch.allclose(value.float(), truth.float(), atol=bound, rtol=0)


def test_no_element_is_left_unwritten_and_two_runs_give_the_same_bits(monkeypatch):
    like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x: like(x).fill_(float("nan")))
    x0, t, samples = torch.zeros(2, 2051), torch.ones(2), torch.arange(2)
    one, two = (renoise.renoise(x0, t, 5, samples) for _ in range(2))
    assert one[1].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_kernel_is_reached_by_demand_and_refuses_float64(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    x0, t = torch.ones(2, 6), torch.rand(2)
    expected = renoise.renoise(x0, t, 4, torch.arange(2))
    assert all(torch.equal(a, b) for a, b in zip(ops.renoise(x0, t, 4), expected, strict=True))
    with pytest.raises(ValueError, match="SOSTENUTO_KERNELS=reference"):
        ops.renoise(x0.double(), t, 4)
