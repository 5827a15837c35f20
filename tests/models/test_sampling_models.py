"""Velocity models made of others."""

import pytest
import torch
from torch import Tensor

from models.sampling import directed, guided, turned
from models.text.conditioning import Conditioning
from tests.models.builders import latents


def by_caption(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """The caption's sum everywhere."""
    return conditioning.text.sum(dim=(1, 2)).view(-1, 1, 1, 1, 1).expand_as(x_t)


def around(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Of a ring: a frame's neighbours, at its time."""
    time = t if t.ndim == 2 else t[:, None].expand(-1, x_t.shape[1])
    return 2 * x_t.roll(1, 1) - 0.5 * x_t.roll(-2, 1) + time[:, :, None, None, None]


def placed(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """Of a clip with two ends: frame i is multiplied by i."""
    return x_t * torch.arange(x_t.shape[1]).view(1, -1, 1, 1, 1)


def says(*values: float) -> Conditioning:
    return Conditioning(torch.tensor(values).view(-1, 1, 1))


X, T = latents(), torch.tensor([0.3, 0.7])


def test_guidance_leads_away_from_the_null_caption() -> None:
    assert guided(by_caption, 1.0) is by_caption
    away = Conditioning(says(3.0, 4.0).text, negative=torch.tensor([[1.0]]))
    found = guided(by_caption, 2.5)(X, T, away)[:, 0, 0, 0, 0]
    assert found.tolist() == [1.0 + 2.5 * (3.0 - 1.0), 1.0 + 2.5 * (4.0 - 1.0)]


def test_every_frame_has_the_velocity_of_its_own_caption() -> None:
    model = directed(by_caption, [(0, says(1.0, 2.0)), (3, says(5.0, 6.0)), (4, says(7.0, 8.0))])
    found = model(X, T, says(9.0, 9.0))[:, :, 0, 0, 0]
    assert found.tolist() == [[1, 1, 1, 5, 7, 7, 7, 7], [2, 2, 2, 6, 8, 8, 8, 8]]


def test_one_caption_in_parts_is_one_caption() -> None:
    own = says(1.0, 2.0)
    assert torch.equal(directed(around, [(0, own), (5, own)])(X, T, own), around(X, T, own))


@pytest.mark.parametrize("frames", [0, 1, 3, 8])
@pytest.mark.parametrize("t", [T, torch.linspace(0, 1, 16).view(2, 8)])
def test_a_ring_has_no_first_frame(frames: int, t: Tensor) -> None:
    own = says(1.0, 2.0)
    assert torch.equal(turned(around, frames)(X, t, own), around(X, t, own))


def test_a_clip_with_ends_has_them_elsewhere_once_it_is_turned() -> None:
    found = turned(placed, 3)(torch.ones(1, 5, 1, 1, 1), T[:1], says(0.0))
    assert found.flatten().tolist() == [3, 4, 0, 1, 2]
