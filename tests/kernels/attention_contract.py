"""What every path of windowed attention promises, at shapes small enough for Triton's interpreter.

attention/test_cpu.py, attention/test_gpu.py and interpreted/attention_cases.py import these functions.
"""

from itertools import pairwise

import pytest
import torch

from kernels import reference
from kernels.ops import window_attention
from tests.kernels.helpers import compare, gradients, normal, options_for, qkv, relative

FLOAT32 = 1e-5
CASES = [  # [B, heads, tokens, D], tokens per frame, window, options
    ((1, 1, 1, 16), 1, 0, {}),
    ((2, 1, 7, 24), 1, 2, {"valid_frames": [3, 0]}),
    ((2, 1, 7, 24), 1, 2, {"valid_frames": [4, 5], "wrap": True}),
    ((1, 2, 35, 32), 5, 1, {}),
    ((1, 2, 35, 32), 5, 1, {"wrap": True}),
    ((1, 1, 65, 40), 13, 4, {}),
    ((1, 1, 65, 40), 13, 4, {"valid_frames": [4]}),
    ((1, 1, 48, 64), 16, 0, {}),
    ((1, 1, 74, 96), 37, 1, {"wrap": True}),
    ((2, 3, 9, 128), 1, 100, {}),
    ((1, 1, 130, 16), 130, 0, {}),
    ((1, 2, 16, 24), 1, 15, {"wrap": True}),
    ((1, 1, 80, 16), 5, 16, {}),
    ((1, 1, 80, 16), 5, 16, {"valid_frames": [11]}),
    ((2, 1, 100, 16), 4, 3, {"wrap": True, "valid_frames": [25, 18]}),
    ((1, 1, 100, 16), 4, 9, {"wrap": True}),
]


def both(inputs, weight, **options):
    """Output and gradients of the path and of the float64 reference."""
    exact = [x.double() for x in inputs]
    return (
        gradients(lambda *x: window_attention(*x, **options), inputs, weight),
        gradients(lambda *x: reference.window_attention(*x, **options), exact, weight.double()),
    )


@pytest.mark.parametrize(("shape", "per_frame", "window", "options"), CASES)
def test_output_and_gradients_are_the_reference_with_every_option(shape, per_frame, window, options):
    options = options_for(options, shape[0]) | {"tokens_per_frame": per_frame, "window": window}
    assert max(compare(window_attention, shape, **options)) < FLOAT32
    q, k, v = qkv(shape, dtype=torch.float32)
    _, lse = window_attention(q, k, v, return_lse=True, **options)
    _, truth = reference.window_attention(q.double(), k.double(), v.double(), return_lse=True, **options)
    assert torch.allclose(lse.double(), truth, atol=1e-5)


@pytest.mark.parametrize(
    ("cuts", "per_frame", "window", "valid"),
    [
        ((0, 5, 6, 13), 1, 2, None),
        ((0, 3, 9, 20), 5, 4, None),
        ((0, 1, 4), 37, 1, None),
        ((0, 6, 12), 1, 20, None),
        ((0, 7, 9, 20), 4, 3, (8, 20)),
        ((0, 40, 80), 1, 8, None),
    ],
)
def test_a_clip_in_parts_with_the_keys_that_they_see_is_the_whole(cuts, per_frame, window, valid):
    """A part's keys begin `window` frames before it and end so many after it, as far as there are any."""
    frames, count = cuts[-1], None if valid is None else torch.tensor(valid)
    inputs = qkv((2, 2, frames * per_frame, 24), dtype=torch.float32)
    weight = qkv(inputs[0].shape, 5)[0]
    options = {"tokens_per_frame": per_frame, "window": window}
    out, grads = gradients(
        lambda *x: reference.window_attention(*x, valid_frames=count, **options),
        [x.double() for x in inputs],
        weight,
    )
    found, sums = torch.zeros_like(out), [torch.zeros_like(grad) for grad in grads]
    for begin, end in pairwise(cuts):
        first, last = max(0, begin - window), min(frames, end + window)
        rows, keys = (slice(a * per_frame, b * per_frame) for a, b in ((begin, end), (first, last)))
        more = {} if count is None else {"valid_frames": (count - first).clamp_min(0)}
        part, own = gradients(
            lambda *x, at=begin - first, more=more: window_attention(*x, query_frame=at, **options, **more),
            (inputs[0][:, :, rows], inputs[1][:, :, keys], inputs[2][:, :, keys]),
            weight[:, :, rows],
        )
        found[:, :, rows] = part.double()
        for total, grad, place in zip(sums, own, (rows, keys, keys), strict=True):
            total[:, :, place] += grad.double()
    assert relative(found, out) < FLOAT32
    assert max(relative(total, grad) for total, grad in zip(sums, grads, strict=True)) < FLOAT32


@pytest.mark.parametrize(("factor", "per_frame"), [(4, 1), (16, 4)])
def test_large_logits(factor, per_frame):
    q, k, v = qkv((1, 1, 40, 16), dtype=torch.float32)
    found, truth = both((q * factor, k, v), qkv((1, 1, 40, 16), 5)[0], tokens_per_frame=per_frame, window=2)
    assert relative(found[0], truth[0]) < FLOAT32
    for grad, true in zip(found[1], truth[1], strict=True):
        assert relative(grad, true) < 2 * FLOAT32
        assert 0.98 < float(grad.double().norm() / true.norm()) < 1.02


@pytest.mark.parametrize("shift", [-120.0, 120.0])
def test_shifted_logits_change_nothing(shift):
    q, k, v = qkv((1, 1, 40, 16), dtype=torch.float32)
    q[..., 0], k[..., 0] = shift * 4, 1.0
    found, truth = both((q, k, v), torch.ones(1, 1, 40, 16), tokens_per_frame=4, window=2)
    assert relative(found[0], truth[0]) < 1e-4
    assert relative(found[1][2], truth[1][2]) < 1e-4
    assert all(grad.isfinite().all() for grad in found[1])


def test_one_key_can_take_all_and_equal_keys_share():
    v = qkv((1, 1, 20, 16), dtype=torch.float32)[2]
    same = torch.ones(1, 1, 20, 16)
    out = window_attention(torch.zeros_like(v), same, v, tokens_per_frame=4, window=1)
    mean = torch.stack([v[0, 0, max(0, 4 * f - 4) : 4 * f + 8].mean(0) for f in range(5)])
    assert torch.allclose(out[0, 0], mean.repeat_interleave(4, 0), atol=1e-6)
    peaked = torch.zeros(1, 1, 20, 16)
    peaked[:, :, 9] = 100.0
    out = window_attention(same, peaked, v, tokens_per_frame=4, window=1)
    assert torch.equal(out[0, 0, 4:16], v[0, 0, 9].expand(12, 16))


@pytest.mark.parametrize(("per_frame", "frames", "wrap"), [(4, 3, True), (8, 9, False), (8, 9, True)])
def test_rows_that_see_nothing_are_zero_and_give_no_gradient(per_frame, frames, wrap):
    shape, end = (2, 1, per_frame * frames, 16), 2 * per_frame
    inputs = qkv(shape, dtype=torch.float32)
    for x in inputs:
        x[0, :, end:] = float("nan")
        x[1] = float("inf")
    options = {"tokens_per_frame": per_frame, "window": 1, "valid_frames": torch.tensor([2, 0]), "wrap": wrap}
    out, lse = window_attention(*inputs, return_lse=True, **options)
    assert out[0, :, :end].isfinite().all()
    assert not out[0, :, end:].any()
    assert not out[1].any()
    assert (lse[1] == -torch.inf).all()
    assert (lse[0, :, end:] == -torch.inf).all()
    _, grads = gradients(lambda *x: window_attention(*x, **options), inputs, torch.ones(shape))
    for grad in grads:
        assert grad.isfinite().all()
        assert not grad[0, :, end:].any()
        assert not grad[1].any()


@pytest.mark.parametrize("wrap", [False, True])
def test_more_valid_frames_than_there_are_is_all_of_them(wrap):
    inputs, options = (
        qkv((2, 2, 35, 16), dtype=torch.float32),
        {"tokens_per_frame": 5, "window": 1, "wrap": wrap},
    )
    out = window_attention(*inputs, valid_frames=torch.tensor([7, 1000]), **options)
    assert torch.allclose(out, window_attention(*inputs, **options), atol=1e-6)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_nan_frame_is_seen_by_every_row_that_sees_it_and_by_none_far_away(which):
    inputs = qkv((1, 1, 160, 16), dtype=torch.float32)
    inputs[which][:, :, :4] = float("nan")
    out, grads = gradients(
        lambda *x: window_attention(*x, tokens_per_frame=4, window=2), inputs, torch.ones(1, 1, 160, 16)
    )
    assert out[:, :, : 4 if which == 0 else 12].isnan().all()
    assert out[:, :, 76:].isfinite().all()
    assert grads[0][:, :, :4].isnan().all()
    assert all(grad[:, :, 108:].isfinite().all() for grad in grads)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_infinite_values_are_not_made_finite():
    q, k, v = qkv((1, 1, 40, 16), dtype=torch.float32)
    v[:, :, 0] = float("inf")
    out = window_attention(q, k, v, tokens_per_frame=4, window=2)
    assert not out[:, :, :12].isfinite().any()


@pytest.mark.parametrize("wrap", [False, True])
def test_strides_of_any_kind_also_of_the_gradient(wrap):
    wide = normal((1, 2, 40, 48), torch.Generator().manual_seed(0))
    q, k, v = wide[..., 16:32], wide.flip(2)[:, :, :, ::3], wide[:, :1, :, :16].expand(1, 2, 40, 16)
    options = {"tokens_per_frame": 4, "window": 2, "wrap": wrap}
    for weight in (torch.ones(()).expand(1, 2, 40, 16), wide.transpose(1, 2)[..., 5:21].transpose(1, 2)):
        found, truth = both((q, k, v), weight, **options)
        assert relative(found[0], truth[0]) < FLOAT32
        assert max(relative(g, t) for g, t in zip(found[1], truth[1], strict=True)) < FLOAT32


@pytest.mark.parametrize("wrap", [False, True])
def test_two_runs_give_the_same_bits_and_a_batch_changes_no_sample(wrap):
    inputs, weight = qkv((2, 1, 70, 24), dtype=torch.float32), torch.ones(2, 1, 70, 24)
    options = {"tokens_per_frame": 5, "window": 3, "wrap": wrap}

    def run(inputs, weight):
        return gradients(lambda *x: window_attention(*x, **options), inputs, weight)

    one, two, alone = run(inputs, weight), run(inputs, weight), run([x[1:] for x in inputs], weight[1:])
    assert torch.equal(one[0], two[0])
    assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))
    assert torch.allclose(alone[0], one[0][1:], atol=1e-6)


def test_unwritten_memory_never_shows(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    for options in ({}, {"wrap": True}, {"valid_frames": torch.tensor([11, 2])}):
        out, grads = gradients(
            lambda *x, options=options: window_attention(*x, tokens_per_frame=3, window=1, **options),
            qkv((2, 1, 33, 24), dtype=torch.float32),
            torch.ones(2, 1, 33, 24),
        )
        assert out.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [(torch.float16, 1), (torch.float16, 16), (torch.bfloat16, 4), (torch.bfloat16, 16)],
)
def test_half_precision_errs_at_most_as_plain_torch_of_the_same_type_does(dtype, factor):
    q, k, v = qkv((1, 1, 60, 32), dtype=dtype)
    inputs, weight = (q * factor, k, v), qkv((1, 1, 60, 32), 7, dtype)[0]
    options = {"tokens_per_frame": 5, "window": 2}
    found, truth = both(inputs, weight, **options)

    def eager(q, k, v):
        mask = reference.frame_mask(12, 2, device=q.device)[0].repeat_interleave(5, 0).repeat_interleave(5, 1)
        scores = (q @ k.transpose(-1, -2) * 32**-0.5).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ v

    plain = gradients(eager, inputs, weight)
    bound = 1e-3 if dtype == torch.float16 else 1e-2
    assert relative(found[0], truth[0]) < bound
    step = torch.finfo(dtype).eps
    for mine, theirs, true in zip(
        (found[0], *found[1]), (plain[0], *plain[1]), (truth[0], *truth[1]), strict=True
    ):
        worst = float((theirs.double() - true).abs().max())
        assert float((mine.double() - true).abs().max()) <= 2 * worst + 2 * step * float(true.abs().max())
