"""The reverse-KL score on a GPU: equal to the reference, and the same bits twice."""

import pytest
import torch

from kernels import ops, reference
from tests.kernels.helpers import relative, score_by, windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("normalizer", ["window", "sample", "block"])
@pytest.mark.parametrize("inner", [(3, 2, 2), (5, 11, 23), (16, 60, 104)])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_every_field_is_the_reference(dtype, normalizer, inner, guidance_scale):
    inputs = [x.cuda() for x in windows(4, 5, dtype=dtype, inner=inner)]
    options = {"normalizer": normalizer, "windows_per_sample": 2, "block_frames": 2}
    result = ops.reverse_kl_score(*inputs, guidance_scale=guidance_scale, **options)
    exact = [x.double() for x in inputs]
    truth = score_by(reference, *exact, guidance_scale=guidance_scale, **options)
    assert relative(result.score, truth.score) < BOUNDS[dtype]
    for value, expected in zip((*result[1:4], result.loss), (*truth[1:4], truth.loss), strict=True):
        assert relative(value, expected) < 2e-6
    assert result.non_finite == 0
    again = ops.reverse_kl_score(*inputs, guidance_scale=guidance_scale, **options)
    assert all(torch.equal(a, b) for a, b in zip(result, again, strict=True))


@pytest.mark.parametrize("place", [0, 1, 3, 4, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_zero_and_counted(place, value):
    inputs = [x.cuda() for x in windows(3, 4, dtype=torch.float32)]
    inputs[place][1, 2, 0, 0, 0] = value
    options = {"guidance_scale": 2.0, "normalizer": "window"}
    result = ops.reverse_kl_score(*inputs, **options)
    truth = score_by(reference, *inputs, **options)
    assert result.non_finite == truth.non_finite > 0
    assert torch.allclose(result.score, truth.score, atol=1e-5)
