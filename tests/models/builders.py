"""Tiny networks and inputs for tests."""

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.flow import over_frames
from models.text.conditioning import Conditioning

TINY = ModelConfig(num_heads=2, head_dim=12, ffn_dim=32, freq_dim=16, patch_size=(1, 1, 1), window=8)


def randomize(module: nn.Module, seed: int = 0, std: float = 0.2) -> None:
    """Every parameter normal, so that no zero layer hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def latents(batch: int = 2, frames: int = 8, channels: int = 4, side: int = 1, seed: int = 1) -> Tensor:
    """Normal latents [batch, frames, channels, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, channels, side, side, generator=generator)


def captions(batch: int = 2, tokens: int = 3, dim: int = 10, seed: int = 2) -> Conditioning:
    """Normal text tokens."""
    return Conditioning(torch.randn(batch, tokens, dim, generator=torch.Generator().manual_seed(seed)))


class GaussianVelocity:
    """The exact velocity for data N(mean, std^2), every element independent: v = (x_t - E[x0 | x_t]) / t.

    Args:
        mean, std: of the data.
    """

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std
        self.calls = 0

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x_t]."""
        variance = (1 - t) ** 2 * self.std**2 + t**2
        return self.mean + (1 - t) * self.std**2 / variance * (x_t - (1 - t) * self.mean)

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        self.calls += 1
        time = over_frames(t, x_t)
        variance = (1 - time) ** 2 * self.std**2 + time**2
        centred = x_t - (1 - time) * self.mean
        return (time - (1 - time) * self.std**2) / variance * centred - self.mean


class JointGaussianVelocity:
    """The exact velocity for clips [B, T, ...] whose frames are jointly normal, with a time for each frame.

    With A = diag(1 - t) and S = A C A + diag(t^2), E[x0 | x_t] = C A S^-1 x_t and
    E[eps | x_t] = diag(t) S^-1 x_t.

    Args:
        covariance: C [T, T], of zero mean.
    """

    def __init__(self, covariance: Tensor) -> None:
        self.covariance = covariance

    def __call__(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        times = (t if t.ndim == 2 else t[:, None].expand(-1, x_t.shape[1])).double()
        a = torch.diag_embed(1 - times)
        s = a @ self.covariance @ a + torch.diag_embed(times.square())
        inner = torch.linalg.solve(s, x_t.flatten(2).double())
        v = torch.diag_embed(times) @ inner - self.covariance @ a @ inner
        return v.view(x_t.shape).to(x_t)
