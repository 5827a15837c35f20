"""3-D rotary positions of Wan 2.1: head channels are split over time, height and width."""

from functools import lru_cache

import torch
from torch import Tensor


def axis_channels(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that rotate with time, height and width; height and width get 2 floor(d/6) each."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def frequencies(channels: int, theta: float) -> Tensor:
    """The channels/2 angular frequencies theta^(-2i/channels) of one axis, float64, radians a position."""
    return theta ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)


@lru_cache(maxsize=64)
def rotations(
    grid: tuple[int, int, int], head_dim: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T*h*w, head_dim/2], float32, of the tokens of a (T, h, w) grid in raster order."""
    angles = []
    for axis, (size, channels) in enumerate(zip(grid, axis_channels(head_dim), strict=True)):
        angle = torch.outer(torch.arange(size, dtype=torch.float64), frequencies(channels, theta))
        shape = [1, 1, 1, channels // 2]
        shape[axis] = size
        angles.append(angle.view(shape).expand(*grid, -1))
    flat = torch.cat(angles, dim=-1).flatten(0, 2)
    return flat.cos().float().to(device), flat.sin().float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., tokens, head_dim] with each channel pair (2i, 2i+1) turned by its token's angle."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
