"""Trained networks to start from, and attention by matrix products that torch's counter sees."""

import pytest
import torch
from torch import Tensor

from models import blocks
from tests.pipelines.training import makers


def dense(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by two products; masks change no count."""
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def windowed(q: Tensor, k: Tensor, v: Tensor, tokens_per_frame: int, window: int, query_frame: int) -> Tensor:
    """The same, frame by frame over the frames it sees."""
    assert query_frame == 0
    out = []
    for frame in range(q.shape[2] // tokens_per_frame):
        own = slice(frame * tokens_per_frame, (frame + 1) * tokens_per_frame)
        seen = slice(max(0, frame - window) * tokens_per_frame, (frame + window + 1) * tokens_per_frame)
        out.append(dense(q[:, :, own], k[:, :, seen], v[:, :, seen]))
    return torch.cat(out, dim=2)


@pytest.fixture
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "dense_attention", dense)
    monkeypatch.setattr(blocks, "window_attention", windowed)


@pytest.fixture(scope="package")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of a trained teacher and student, by role."""
    return makers.trained_starts(tmp_path_factory.mktemp("starts"))
