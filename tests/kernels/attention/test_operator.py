"""Windowed attention as an operator: traced, compiled, checked by torch, and cast in autocast regions."""

import pytest
import torch

from kernels.ops import dense_attention, window_attention
from tests.kernels.helpers import OPTIONS, options_for, qkv

ARGUMENTS = (2, 1, 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_torch_finds_nothing_wrong_with_the_operator(dtype, options):
    options = {"valid_frames": None, "wrap": False} | options_for(options, 2) | {"query_frame": 0}
    inputs = [x.requires_grad_() for x in qkv((2, 2, 12, 16), dtype=dtype)]
    found = torch.library.opcheck(
        torch.ops.sostenuto.window_attention.default, (*inputs, *ARGUMENTS, *options.values())
    )
    assert set(found.values()) == {"SUCCESS"}


def test_one_compiled_graph_serves_every_length():
    compiled = []

    def count(graph, _inputs):
        compiled.append(graph)
        return graph

    def loss(q, k, v):
        return window_attention(q, k, v, tokens_per_frame=2, window=1, wrap=True).square().sum()

    torch.compiler.reset()
    fast = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    for tokens in (12, 20, 34):
        inputs = qkv((1, 2, tokens, 16), dtype=torch.float32)
        assert torch.allclose(fast(*inputs), loss(*inputs))
    assert len(compiled) == 1
    nodes = [node for node in compiled[0].graph.nodes if "sostenuto" in str(node.target)]
    assert len(nodes) == 1


@pytest.mark.parametrize("wrap", [False, True])
def test_compiled_gradients_are_the_eager_ones(wrap):
    def loss(q, k, v):
        return window_attention(q, k, v, tokens_per_frame=2, window=1, wrap=wrap).square().sum()

    torch.compiler.reset()
    inputs = [x.requires_grad_() for x in qkv((2, 2, 24, 16), dtype=torch.float32)]
    eager = torch.autograd.grad(loss(*inputs), inputs)
    fast = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for grad, expected in zip(torch.autograd.grad(fast(*inputs), inputs), eager, strict=True):
        assert torch.allclose(grad, expected, atol=1e-6)


def test_meta_tensors_have_shapes():
    q, k, v = (x.to("meta").requires_grad_() for x in qkv((2, 2, 12, 16), dtype=torch.bfloat16))
    out, lse = window_attention(q, k, v, tokens_per_frame=2, window=1, return_lse=True)
    assert (out.shape, out.dtype, out.is_contiguous()) == (q.shape, torch.bfloat16, True)
    assert (lse.shape, lse.dtype) == (q.shape[:3], torch.float32)
    assert torch.autograd.grad(out.sum(), q)[0].shape == q.shape


def test_an_autocast_region_decides_the_type():
    q, k, v = (x.requires_grad_() for x in qkv((1, 2, 12, 16), dtype=torch.float32))
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            out = window_attention(q, k.to(dtype), v, tokens_per_frame=2, window=1)
        assert out.dtype == dtype
        assert torch.autograd.grad(out.float().sum(), q)[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        exact = [x.double() for x in (q, k, v)]
        assert window_attention(*exact, tokens_per_frame=2, window=1).dtype == torch.float64


def test_the_log_of_the_sum_has_no_gradient():
    q, k, v = (x.requires_grad_() for x in qkv((1, 2, 12, 16)))
    _, lse = window_attention(q, k, v, tokens_per_frame=2, window=1, return_lse=True)
    assert not lse.requires_grad


def test_gradients_are_not_differentiable_again():
    q, k, v = (x.requires_grad_() for x in qkv((1, 2, 12, 16)))
    out = window_attention(q, k, v, tokens_per_frame=2, window=1)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        torch.autograd.grad(grad.sum(), q)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (12, 5), (200, 180)])
def test_dense_attention_takes_mixed_types_in_an_autocast_region(rows, columns, masked):
    q = qkv((2, 2, rows, 16), dtype=torch.float32)[0].requires_grad_()
    k, v = (x.requires_grad_() for x in qkv((2, 2, columns, 16), dtype=torch.float32)[:2])
    mask = torch.ones(2, columns, dtype=torch.bool) if masked else None
    if mask is not None:
        mask[0] = False
    with torch.autocast("cpu", torch.bfloat16):
        out = dense_attention(q, k, v.bfloat16(), key_mask=mask)
    assert out.dtype == torch.bfloat16
    exact = dense_attention(q, k, v, key_mask=mask)
    assert torch.allclose(out.float(), exact, atol=3e-2)
    for grad in torch.autograd.grad(out.float().sum(), (q, k, v)):
        assert grad.dtype == torch.float32
        assert grad.isfinite().all()


def test_a_masked_caption_compiles_to_one_graph():
    def loss(q, k, v, mask):
        return dense_attention(q, k, v, key_mask=mask).square().sum()

    torch.compiler.reset()
    q, (k, v) = qkv((2, 2, 120, 16), dtype=torch.float32)[0], qkv((2, 2, 100, 16), dtype=torch.float32)[:2]
    mask = torch.rand(2, 100, generator=torch.Generator().manual_seed(0)) < 0.5
    fast = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.allclose(fast(q, k, v, mask), loss(q, k, v, mask))
