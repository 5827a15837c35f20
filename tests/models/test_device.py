"""Where networks compute, and in which precision."""

import pytest
import torch

from models.device import compute_device, half_precision
from models.errors import ConfigError


def test_the_cpu_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compute_device(False) == torch.device("cpu")
    assert compute_device(True) == torch.device("cuda")


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU") as caught:
        compute_device(True)
    assert "cluster.use_gpu=false" in caught.value.remedy


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
