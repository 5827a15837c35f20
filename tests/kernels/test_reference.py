import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from tests.kernels.helpers import OPTIONS, options_for, qkv, relative


def brute_mask(num_frames, window, count, wrap):
    """The definition, pair by pair."""
    mask = torch.zeros(num_frames, num_frames, dtype=torch.bool)
    for i in range(count):
        for j in range(count):
            distance = abs(i - j)
            if wrap:
                distance = min(distance, count - distance)
            mask[i, j] = distance <= window
    return mask


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(0, 11), st.integers(0, 9), st.booleans())
def test_frame_mask_is_the_definition_pair_by_pair(num_frames, window, count, wrap):
    count = min(count, num_frames)
    mask = reference.frame_mask(num_frames, window, valid_frames=torch.tensor([count]), wrap=wrap)
    assert torch.equal(mask[0], brute_mask(num_frames, window, count, wrap))


def test_a_window_of_one_reaches_the_next_frame_and_no_further():
    mask = reference.frame_mask(4, 1)[0]
    assert mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]


def test_a_ring_closes_at_the_ends():
    assert reference.frame_mask(5, 1, wrap=True)[0, 0].int().tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_is_the_weighted_mean_row_by_row(options):
    q, k, v = qkv((2, 1, 10, 3))
    options = options_for(options, 2)
    out, lse = reference.window_attention(q, k, v, tokens_per_frame=2, window=1, return_lse=True, **options)
    mask = reference.frame_mask(5, 1, **options).expand(2, 5, 5)
    for b in range(2):
        for i in range(10):
            seen = [j for j in range(10) if mask[b, i // 2, j // 2]]
            weights = [math.exp(float(q[b, 0, i] @ k[b, 0, j]) * 3**-0.5) for j in seen]
            row = sum((w * v[b, 0, j] for w, j in zip(weights, seen, strict=True)), torch.zeros(3))
            total = sum(weights)
            expected = row / total if seen else torch.zeros(3).double()
            assert torch.allclose(out[b, 0, i], expected)
            assert lse[b, 0, i].item() == pytest.approx(math.log(total) if seen else -math.inf)


def test_dense_attention_is_softmax_over_the_keys_that_may_be_seen():
    q, k, v = qkv((2, 1, 3, 4))
    mask = torch.tensor([[True, False, True], [False, False, False]])
    out = reference.dense_attention(q, k, v, 0.3, mask)
    weights = (q[0, 0] @ k[0, 0, [0, 2]].T * 0.3).softmax(-1)
    assert torch.allclose(out[0, 0], weights @ v[0, 0, [0, 2]])
    assert not out[1].any()
    assert torch.allclose(reference.dense_attention(q, k, v), (q @ k.transpose(2, 3) / 2).softmax(-1) @ v)


def test_equal_keys_give_the_mean_of_the_values_seen():
    v = torch.arange(4.0).view(1, 1, 4, 1)
    out = reference.window_attention(torch.zeros_like(v), v, v, tokens_per_frame=1, window=1)
    assert out.flatten().tolist() == pytest.approx([0.5, 1.0, 2.0, 2.5])


def test_rows_that_see_nothing_have_no_gradient():
    leaves = [x.requires_grad_() for x in qkv((1, 1, 4, 2))]
    out = reference.window_attention(*leaves, tokens_per_frame=2, window=1, valid_frames=torch.tensor([0]))
    grads = torch.autograd.grad(out.sum(), leaves)
    assert not out.any()
    assert not any(g.any() for g in grads)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    leaves = [x.requires_grad_() for x in qkv((2, 1, 5, 2))]
    options = options_for(options, 2)
    assert torch.autograd.gradcheck(
        lambda q, k, v: reference.window_attention(q, k, v, tokens_per_frame=1, window=1, **options), leaves
    )


def test_half_precision_is_computed_in_float32():
    q, k, v = qkv((1, 2, 6, 16), dtype=torch.bfloat16)
    out = reference.window_attention(q, k, v, tokens_per_frame=1, window=2)
    exact = reference.window_attention(q.double(), k.double(), v.double(), tokens_per_frame=1, window=2)
    assert out.dtype == torch.bfloat16
    assert relative(out, exact) < 4e-3
