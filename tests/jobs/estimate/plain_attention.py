"""Attention as products of matrices that torch's counter sees: of the pairs that see each other."""

import pytest
import torch
from torch import Tensor

from models import blocks


def dense(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by two products; masks change no count."""
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def windowed(q: Tensor, k: Tensor, v: Tensor, tokens_per_frame: int, window: int) -> Tensor:
    """The same, a frame after another with the frames that it sees."""
    out = []
    for frame in range(q.shape[2] // tokens_per_frame):
        own = slice(frame * tokens_per_frame, (frame + 1) * tokens_per_frame)
        seen = slice(max(0, frame - window) * tokens_per_frame, (frame + window + 1) * tokens_per_frame)
        out.append(dense(q[:, :, own], k[:, :, seen], v[:, :, seen]))
    return torch.cat(out, dim=2)


@pytest.fixture
def plain_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks attend so."""
    monkeypatch.setattr(blocks, "dense_attention", dense)
    monkeypatch.setattr(blocks, "window_attention", windowed)
