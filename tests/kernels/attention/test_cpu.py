import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import reference
from kernels.attention.cpu import Plan, plan
from kernels.attention.dense import dense_attention
from kernels.ops import window_attention
from tests.kernels.attention_contract import *  # noqa: F403
from tests.kernels.helpers import OPTIONS, compare, gradients, options_for, qkv, relative

# [B, heads, tokens, D], tokens a frame, window, the form the rule takes
CASES = [
    ((2, 3, 1, 16), 1, 0, "dense"),
    ((2, 2, 7, 24), 1, 6, "dense"),
    ((2, 2, 130, 16), 1, 200, "dense"),
    ((4, 2, 5, 24), 1, 1, "packed"),
    ((1, 1, 5, 24), 1, 0, "packed"),
    ((2, 2, 32, 24), 1, 8, "chunked"),
    ((1, 3, 35, 24), 5, 3, "chunked"),
    ((3, 2, 15, 24), 5, 1, "packed"),
    ((1, 2, 53, 16), 1, 0, "blocked"),
    ((2, 2, 75, 24), 1, 8, "blocked"),
    ((1, 2, 99, 40), 3, 2, "blocked"),
    ((1, 1, 240, 24), 1, 30, "blocked"),
    ((1, 2, 120, 16), 1, 50, "chunked"),
    ((1, 2, 91, 24), 13, 2, "chunked"),
    ((2, 1, 80, 32), 16, 0, "chunked"),
    ((1, 1, 111, 96), 37, 1, "chunked"),
    ((1, 2, 80, 128), 8, 3, "chunked"),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("shape", "per_frame", "window", "form"), CASES)
def test_float32_is_the_float64_reference_forward_and_backward(shape, per_frame, window, form, transposed):
    assert plan(shape[2] // per_frame, per_frame, window, torch.float32).form == form
    errors = compare(
        window_attention, shape, transposed=transposed, tokens_per_frame=per_frame, window=window
    )
    assert max(errors) < 2e-6


@settings(deadline=None, max_examples=80)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 60),
    st.sampled_from([1, 2, 3, 5, 8]),
    st.integers(0, 70),
    st.sampled_from([8, 24]),
    st.sampled_from(OPTIONS),
)
def test_any_shape_is_the_reference(batch, heads, frames, per_frame, window, dim, options):
    shape = (batch, heads, frames * per_frame, dim)
    options = options_for(options, batch)
    if "valid_frames" in options:
        count = options["valid_frames"].clamp_max(frames)
        options["valid_frames"] = torch.cat([count, torch.full((batch,), frames)])[:batch]
    errors = compare(
        window_attention, shape, torch.float64, tokens_per_frame=per_frame, window=window, **options
    )
    assert max(errors) < 1e-12


@pytest.mark.parametrize(("shape", "per_frame", "window", "form"), CASES)
def test_lse_is_the_reference_and_the_output_does_not_depend_on_asking(shape, per_frame, window, form):
    q, k, v = qkv(shape)
    options = {"tokens_per_frame": per_frame, "window": window}
    out, lse = window_attention(q, k, v, return_lse=True, **options)
    truth, true_lse = reference.window_attention(q, k, v, return_lse=True, **options)
    assert torch.allclose(lse, true_lse)
    assert torch.allclose(out, truth)
    assert torch.allclose(window_attention(q, k, v, **options), truth)


@pytest.mark.parametrize(("tokens", "per_frame", "window"), [(6, 1, 1), (40, 1, 2), (24, 8, 1), (5, 1, 9)])
def test_gradcheck(tokens, per_frame, window):
    leaves = [x.requires_grad_() for x in qkv((2, 1, tokens, 3))]
    assert torch.autograd.gradcheck(
        lambda q, k, v: window_attention(q, k, v, tokens_per_frame=per_frame, window=window), leaves
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "per_frame", "window"), [(32, 1, 8), (240, 1, 8), (64, 16, 1), (8, 1, 8)])
def test_half_precision_is_close(dtype, tokens, per_frame, window):
    forward, backward = compare(
        window_attention, (2, 2, tokens, 24), dtype, tokens_per_frame=per_frame, window=window
    )
    bound = 1e-2 if dtype == torch.bfloat16 else 2e-3
    assert forward < bound
    assert backward < 1.5 * bound


@pytest.mark.parametrize(("tokens", "per_frame", "window"), [(32, 1, 8), (80, 1, 4), (64, 16, 1), (8, 1, 8)])
@pytest.mark.parametrize("shift", [-120.0, 120.0])
def test_shifted_logits_change_nothing_in_any_form(tokens, per_frame, window, shift):
    q, k, v = qkv((1, 2, tokens, 24), dtype=torch.float32)
    q[..., 0], k[..., 0] = shift * 24**0.5, 1.0
    weight = torch.ones_like(q)
    options = {"tokens_per_frame": per_frame, "window": window}
    out, grads = gradients(lambda *x: window_attention(*x, **options), (q, k, v), weight)
    truth, true_grads = gradients(
        lambda *x: reference.window_attention(*x, **options), [x.double() for x in (q, k, v)], weight
    )
    assert relative(out, truth) < 1e-4
    assert relative(grads[2], true_grads[2]) < 1e-4
    assert all(g.isfinite().all() for g in grads)


def test_a_nan_does_not_cross_the_whole_clip():
    q, k, v = qkv((1, 1, 240, 8), dtype=torch.float32)
    v[:, :, 0] = float("nan")
    out = window_attention(q, k, v, tokens_per_frame=1, window=8)
    assert out[:, :, 32:].isfinite().all()


@pytest.mark.parametrize(("shape", "per_frame", "window", "form"), CASES[2::3])
def test_two_runs_of_every_form_give_the_same_bits(shape, per_frame, window, form):
    inputs, weight = qkv(shape, dtype=torch.float32), qkv(shape, 5, torch.float32)[0]
    runs = [
        gradients(
            lambda q, k, v: window_attention(q, k, v, tokens_per_frame=per_frame, window=window),
            inputs,
            weight,
        )
        for _ in range(2)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def test_masks_made_in_inference_mode_serve_training():
    shape = (2, 2, 44, 16)
    options = {"tokens_per_frame": 4, "window": 2}
    with torch.inference_mode():
        window_attention(*qkv(shape, dtype=torch.float32), **options)
    assert max(compare(window_attention, shape, **options)) < 2e-6


@pytest.mark.parametrize(
    ("batch", "rows", "columns"),
    [(3, 8, 8), (5, 8, 8), (2, 32, 5), (2, 7, 20), (1, 100, 100), (2, 1, 1), (1, 120, 90)],
)
@pytest.mark.parametrize("masked", [False, True])
def test_dense_attention_is_the_reference(batch, rows, columns, masked):
    q, (k, v) = qkv((batch, 2, rows, 8))[0], qkv((batch, 2, columns, 8), 1)[:2]
    mask = torch.rand(batch, columns, generator=torch.Generator().manual_seed(3)) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
        mask[0] = False
    truth = reference.dense_attention(q, k, v, 0.3, mask)
    assert torch.allclose(dense_attention(q, k, v, 0.3, mask), truth)
    small = [x.requires_grad_() for x in (q, k, v)]
    if rows * columns <= 200:
        assert torch.autograd.gradcheck(lambda *x: dense_attention(*x, 0.3, mask), small)


def test_clips_in_one_matrix_do_not_mix():
    q, k, v = qkv((4, 2, 8, 16), dtype=torch.float32)
    together = dense_attention(q, k, v)
    k[1], v[1] = k[1] * 9, v[1] + 100
    assert torch.equal(dense_attention(q, k, v)[[0, 2, 3]], together[[0, 2, 3]])


def test_the_rule_at_the_shapes_that_were_measured():
    assert plan(12, 1, 8, torch.float32) == Plan("packed")
    assert plan(32, 1, 8, torch.float32) == Plan("chunked", 128)
    assert plan(240, 1, 8, torch.float32) == Plan("blocked", 16)
    assert plan(8, 1, 8, torch.float32) == Plan("dense")
    assert plan(128, 16, 4, torch.float32) == Plan("chunked", 2)
    assert plan(128, 64, 4, torch.float32) == Plan("chunked", 1)
    assert plan(240, 1, 8, torch.bfloat16).form == "chunked"
