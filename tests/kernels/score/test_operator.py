"""The reverse-KL score as an operator: traced, compiled, checked by torch, and what a path gets and gives."""

import pytest
import torch

from kernels import dispatch, ops, reference
from kernels.score import cpu as reverse_kl_cpu
from tests.kernels.helpers import windows

NORMALIZERS = ["window", "sample", "block"]


def options(normalizer="block", **changes):
    scopes = {"windows_per_sample": 2, "block_frames": 2}
    return {"guidance_scale": 2.0, "normalizer": normalizer, **scopes, **changes}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_finds_nothing_wrong_with_the_operator(normalizer, dtype):
    inputs = windows(4, 3, dtype=dtype)
    found = torch.library.opcheck(
        torch.ops.sostenuto.reverse_kl_score.default, (*inputs, 2.0, normalizer, 2, 2, 1e-4)
    )
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_one_compiled_graph_serves_every_length(normalizer):
    compiled = []

    def count(graph, _inputs):
        compiled.append(graph)
        return graph

    def score(*inputs):
        return ops.reverse_kl_score(*inputs, **options(normalizer))

    torch.compiler.reset()
    fast = torch.compile(score, fullgraph=True, dynamic=True, backend=count)
    for rows, frames in ((4, 5), (6, 7), (8, 10)):
        inputs = windows(rows, frames, dtype=torch.float32, inner=(3, 2, 9))
        for value, expected in zip(fast(*inputs), score(*inputs), strict=True):
            assert torch.equal(value, expected)
    assert len(compiled) == 1
    assert sum("sostenuto" in str(node.target) for node in compiled[0].graph.nodes) == 1


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_meta_tensors_have_the_shapes_and_types_of_real_ones(normalizer, dtype):
    inputs = windows(4, 5, dtype=dtype)
    real = ops.reverse_kl_score(*inputs, **options(normalizer))
    meta = ops.reverse_kl_score(*[x.to("meta") for x in inputs], **options(normalizer))
    for value, expected in zip(meta, real, strict=True):
        assert value.is_meta
        assert (value.shape, value.dtype, value.stride()) == (
            expected.shape,
            expected.dtype,
            expected.stride(),
        )


@pytest.mark.parametrize("path", ["cpu", "reference"])
def test_fields_are_contiguous_and_share_no_memory(monkeypatch, path):
    monkeypatch.setenv(dispatch.VARIABLE, path)
    inputs = [x.transpose(-1, -2) if x.dim() > 1 else x for x in windows(1, 3, inner=(3, 2, 5))]
    result = ops.reverse_kl_score(*inputs, **options("window", windows_per_sample=1))
    assert all(x.is_contiguous() for x in result)
    assert len({x.untyped_storage().data_ptr() for x in result}) == len(result)


def test_nothing_carries_a_gradient():
    inputs = [x.requires_grad_() for x in windows(2, 3)]
    result = ops.reverse_kl_score(*inputs, **options())
    assert not any(x.requires_grad for x in result)


def test_an_autocast_region_changes_nothing():
    inputs = windows(2, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ops.reverse_kl_score(*inputs, **options())
    for value, expected in zip(inside, ops.reverse_kl_score(*inputs, **options()), strict=True):
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected)


@pytest.mark.parametrize(("path", "module"), [("cpu", reverse_kl_cpu), ("reference", reference)])
def test_the_demanded_path_gets_every_option(monkeypatch, path, module):
    monkeypatch.setenv(dispatch.VARIABLE, path)
    given, real = [], module.reverse_kl_score
    monkeypatch.setattr(module, "reverse_kl_score", lambda *a: given.append(a[1]) or real(*a))
    ops.reverse_kl_score(*windows(4, 3), **options("sample"), floor=0.5)
    assert given == [reference.ScoreOptions(**options("sample", floor=0.5))]
