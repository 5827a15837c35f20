"""Where networks compute: a GPU that is asked for is there, or the command says so."""

import pytest
import torch

from models.device import compute_device
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
