"""Re-noising on the CPU: its integers are Philox', its floats are normal, and they depend on names alone."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import dispatch, ops, renoise_cpu

WORDS = st.integers(0, 2**32 - 1)
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
"""Counter, key and answer of Random123's kat_vectors for philox4x32 with 10 rounds."""


def philox(counter, key):
    """Philox4x32-10 in Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def normal(seed, sample, element):
    """The noise of one element in float64."""
    counter = (element // 4 % 2**32, element // 4 >> 32, sample % 2**32, sample >> 32)
    words = philox(counter, (seed % 2**32, seed >> 32))
    length, angle = words[element % 4 // 2 * 2 :][:2]
    radius = math.sqrt(-2 * math.log((length + 0.5) / 2**32))
    return radius * (math.sin, math.cos)[element % 2 == 0](math.tau * angle / 2**32)


def noise(shape, seed=5, samples=None):
    return ops.renoise(torch.zeros(shape), torch.ones(shape[0]), seed, samples)[1]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_of_random123(counter, key, answer):
    assert philox(counter, key) == answer
    words = renoise_cpu.philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(w) for w in words) == answer


@settings(deadline=None, max_examples=60)
@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_any_counter_and_key_are_those_of_plain_integers(counter, key):
    words = renoise_cpu.philox(tuple(torch.tensor([c, 0]) for c in counter), key)
    assert tuple(int(w[0]) for w in words) == philox(counter, key)
    assert tuple(int(w[1]) for w in words) == philox((0, 0, 0, 0), key)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 + 7, 2**63 - 1])
def test_each_element_is_the_normal_of_its_names(seed):
    samples = torch.tensor([0, 3, 2**33 + 1])
    found = noise((3, 5, 3), seed, samples).flatten(1).double()
    expected = [[normal(seed, s, e) for e in range(15)] for s in samples.tolist()]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=3e-6, rtol=0)


def test_elements_beyond_32_bits_have_counters_of_their_own():
    far = renoise_cpu.normals(9, torch.tensor([4]), 2**40 + 3, 2)[0]
    expected = [normal(9, 4, 4 * (2**40 + 3) + i) for i in range(8)]
    assert torch.allclose(far.double(), torch.tensor(expected, dtype=torch.float64), atol=3e-6, rtol=0)


def test_noise_is_standard_normal_and_independent():
    x = noise((4, 250_000)).double().numpy()
    assert abs(x.mean()) < 4e-3
    assert abs(x.var() - 1) < 6e-3
    assert abs((x**3).mean()) < 0.015
    assert abs((x**4).mean() - 3) < 0.04
    assert 4.5 < np.abs(x).max() < 6.8
    grid = np.linspace(-3, 3, 25)
    normal_below = [0.5 * math.erfc(-g / math.sqrt(2)) for g in grid]
    assert np.abs(np.searchsorted(np.sort(x.ravel()), grid) / x.size - normal_below).max() < 2e-3
    for lag in (1, 2, 3, 4, 8):
        assert abs((x[:, lag:] * x[:, :-lag]).mean()) < 5e-3
    assert np.abs(np.corrcoef(x) - np.eye(4)).max() < 8e-3
    assert np.abs(np.corrcoef(x, noise((4, 250_000), 6).double().numpy()) - np.eye(8)).max() < 8e-3


def test_no_word_gives_anything_but_a_finite_normal():
    ends = torch.tensor([0, 1, 2**29 - 1, 2**29, 2**30, 2**31 - 1, 2**31, 2**32 - 1])
    lengths, angles = (x.flatten() for x in torch.meshgrid(ends, ends, indexing="ij"))
    first, second = renoise_cpu._box_muller(lengths, angles)
    assert first.isfinite().all()
    assert second.isfinite().all()
    radius = (first.square() + second.square()).sqrt()
    assert radius.max().item() == pytest.approx(math.sqrt(66 * math.log(2)))


def test_the_split_of_a_batch_changes_nothing():
    x0, t = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 6)
    whole = ops.renoise(x0, t, 11)
    for rows in ([0, 1, 2], [3, 5], [4]):
        part = ops.renoise(x0[rows], t[rows], 11, torch.tensor(rows))
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))


def test_the_length_of_a_row_changes_no_element_and_runs_leave_no_seam(monkeypatch):
    long = noise((3, 1000))
    assert torch.equal(noise((3, 123)), long[:, :123])
    for run in (1, 7, 100):
        monkeypatch.setattr(renoise_cpu, "RUN", run)
        assert torch.equal(noise((3, 1000)), long)


def test_x_t_is_the_straight_line_between_x0_and_the_returned_noise():
    t = torch.tensor([0.0, 0.3, 1.0])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x0 = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
        x_t, eps = ops.renoise(x0, t.to(dtype), 3)
        assert x_t.dtype == eps.dtype == dtype
        assert torch.equal(x_t[0], x0[0])
        assert torch.equal(x_t[2], eps[2])
        time = t.to(dtype).double()[1]
        line = (1 - time) * x0[1].double() + time * eps[1].double()
        assert torch.allclose(x_t[1].double(), line, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_views_are_renoised_as_their_copies():
    wide = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    view, t = wide[::2, 1:5].transpose(1, 2), torch.tensor([0.2, 9.0, 0.7])[::2]
    for a, b in zip(ops.renoise(view, t, 1), ops.renoise(view.contiguous(), t.contiguous(), 1), strict=True):
        assert torch.equal(a, b)
        assert a.is_contiguous()


def test_the_gradient_of_x0_is_one_minus_t_and_eps_has_none():
    x0 = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    x_t, eps = ops.renoise(x0, t, 3)
    assert not eps.requires_grad
    (grad,) = torch.autograd.grad(x_t.sum(), x0)
    assert torch.equal(grad, (1 - t)[:, None, None].expand_as(x0))
    assert torch.autograd.gradcheck(lambda x: ops.renoise(x, t, 3)[0], x0)


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_torch_finds_nothing_wrong_with_the_operator(needs_gradient):
    x0 = torch.randn(3, 4, 2).requires_grad_(needs_gradient)
    arguments = (x0, torch.rand(3), 7, torch.arange(3))
    found = torch.library.opcheck(torch.ops.sostenuto.renoise.default, arguments)
    assert set(found.values()) == {"SUCCESS"}


def test_one_compiled_graph_serves_every_length_and_seed():
    compiled = []

    def count(graph, _inputs):
        compiled.append(graph)
        return graph

    torch.compiler.reset()
    fast = torch.compile(
        lambda x, t, seed: ops.renoise(x, t, seed), fullgraph=True, dynamic=True, backend=count
    )
    for rows, seed in ((2, 5), (3, 2**40), (6, 2**63 - 1)):
        x0, t = torch.randn(rows, rows + 7, 5), torch.rand(rows)
        for value, expected in zip(fast(x0, t, seed), ops.renoise(x0, t, seed), strict=True):
            assert torch.equal(value, expected)
    assert len(compiled) == 1


def test_meta_tensors_and_autocast_regions():
    x0, t = torch.randn(3, 4), torch.rand(3)
    for x in ops.renoise(x0.to("meta"), t.to("meta"), 3):
        assert (x.is_meta, x.shape, x.dtype) == (True, x0.shape, x0.dtype)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ops.renoise(x0, t, 3)
    assert all(torch.equal(a, b) for a, b in zip(inside, ops.renoise(x0, t, 3), strict=True))


def test_the_reference_is_the_plain_path(monkeypatch):
    expected = noise((2, 9))
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert torch.equal(noise((2, 9)), expected)


BAD = {
    "none of it empty": {"x0": torch.ones(2, 0)},
    "x0 is torch.int64": {"x0": torch.ones(2, 3, dtype=torch.int64)},
    "Give 2 times": {"t": torch.ones(3)},
    "Give 2 integers": {"samples": torch.ones(2)},
    "samples is torch.int64 \\[3\\]": {"samples": torch.arange(3)},
    "seed=-1": {"seed": -1},
    "Give 0 <= seed < 2\\^63": {"seed": 2**63},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_with_the_remedy(message):
    given = {"x0": torch.ones(2, 3), "t": torch.ones(2), "seed": 1, "samples": None}
    with pytest.raises(ValueError, match=message):
        ops.renoise(**{**given, **BAD[message]})
