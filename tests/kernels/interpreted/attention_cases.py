"""Window attention in Triton's interpreter: run by test_interpreted.py in a process of its own."""

import pytest
import torch

from kernels import dispatch, ops, reference
from kernels.window_attention import window_attention
from tests.kernels.helpers import OPTIONS, compare, options_for, qkv, relative

BOUNDS = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-3, 2e-3), torch.bfloat16: (1e-2, 1.5e-2)}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("shape", "per_frame", "window"),
    [
        ((1, 1, 1, 16), 1, 0),
        ((2, 1, 7, 24), 1, 2),
        ((1, 2, 35, 32), 5, 1),
        ((1, 1, 65, 40), 13, 4),
        ((1, 1, 48, 64), 16, 0),
        ((1, 1, 74, 96), 37, 1),
        ((2, 3, 33, 128), 1, 100),
    ],
)
def test_forward_and_backward_are_the_float64_reference(dtype, shape, per_frame, window):
    errors = compare(
        window_attention, shape, dtype, transposed=True, tokens_per_frame=per_frame, window=window
    )
    assert errors[0] < BOUNDS[dtype][0]
    assert errors[1] < BOUNDS[dtype][1]


@pytest.mark.parametrize("options", OPTIONS[1:])
def test_options_are_the_reference(options):
    options = {**options_for(options, 2), "tokens_per_frame": 3, "window": 1}
    assert max(compare(window_attention, (2, 1, 15, 16), **options)) < 1e-5
    q, k, v = qkv((2, 1, 15, 16), dtype=torch.float32)
    _, lse = window_attention(q, k, v, return_lse=True, **options)
    _, truth = reference.window_attention(q, k, v, return_lse=True, **options)
    assert torch.allclose(lse, truth, atol=1e-5)


def test_strides_of_any_kind():
    wide = torch.randn(1, 2, 40, 48, generator=torch.Generator().manual_seed(0))
    q, k, v = wide[..., 16:32], wide.flip(2)[:, :, :, ::3], wide[:, :1, :, :16].expand(1, 2, 40, 16)
    out = window_attention(q, k, v, tokens_per_frame=4, window=2)
    truth = reference.window_attention(q.double(), k.double(), v.double(), tokens_per_frame=4, window=2)
    assert relative(out, truth) < 1e-5


@pytest.mark.parametrize("shift", [-120.0, 120.0])
def test_shifted_logits_change_nothing(shift):
    q, k, v = qkv((1, 1, 40, 16), dtype=torch.float32)
    q[..., 0], k[..., 0] = shift * 4, 1.0
    out = window_attention(q, k, v, tokens_per_frame=4, window=2)
    truth = reference.window_attention(q.double(), k.double(), v.double(), tokens_per_frame=4, window=2)
    assert relative(out, truth) < 1e-4


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_nan_frame_is_seen_by_every_row_that_sees_it_and_by_none_far_away(which):
    inputs = qkv((1, 1, 160, 16), dtype=torch.float32)
    inputs[which][:, :, :4] = float("nan")
    out = window_attention(*inputs, tokens_per_frame=4, window=2)
    assert out[:, :, : 4 if which == 0 else 12].isnan().all()
    assert out[:, :, 76:].isfinite().all()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_values_are_not_made_finite():
    q, k, v = qkv((1, 1, 40, 16), dtype=torch.float32)
    v[:, :, 0] = float("inf")
    out = window_attention(q, k, v, tokens_per_frame=4, window=2)
    assert not out[:, :, :12].isfinite().any()


def test_two_runs_give_the_same_bits():
    q, k, v = qkv((1, 2, 70, 24), dtype=torch.float32)
    runs = [window_attention(q, k, v, tokens_per_frame=5, window=3) for _ in range(2)]
    assert torch.equal(*runs)


def test_unwritten_memory_never_shows(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    out, lse = window_attention(
        *qkv((2, 1, 33, 24), dtype=torch.float32), tokens_per_frame=3, window=1, return_lse=True
    )
    assert out.isfinite().all()
    assert lse.isfinite().all()


def test_the_kernel_is_reached_by_demand(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    q, k, v = qkv((1, 1, 12, 16), dtype=torch.float32)
    out = ops.window_attention(q, k, v, tokens_per_frame=2, window=1)
    assert torch.equal(out, window_attention(q, k, v, tokens_per_frame=2, window=1))


@pytest.mark.parametrize(("dim", "dtype"), [(12, torch.float32), (136, torch.float32), (16, torch.float64)])
def test_shapes_without_a_kernel_are_refused(dim, dtype):
    with pytest.raises(ValueError, match="LONGTAKE_KERNELS=reference"):
        window_attention(*qkv((1, 1, 4, dim), dtype=dtype), tokens_per_frame=1, window=1)
