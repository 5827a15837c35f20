"""The region in which networks compute in bfloat16."""

import torch

from models.precision import half_precision


def test_an_update_within_the_region_is_seen_by_the_next_pass() -> None:
    layer, x = torch.nn.Linear(4, 4, bias=False), torch.randn(2, 4)
    with half_precision(torch.device("cpu")):
        before = layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
        after = layer(x)
    assert before.dtype == torch.bfloat16
    assert torch.equal(after, 2 * before)


def test_a_region_that_is_off_changes_nothing() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with half_precision(torch.device("cpu"), enabled=False):
        assert layer(x).dtype == torch.float32
