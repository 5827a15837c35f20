"""Exponential moving average of weights."""

import torch
from torch import Tensor, nn


class Ema:
    """Averaged weights; the decay rises as (1 + k)/(10 + k) up to `decay`, so that early steps fade quickly.

    Frozen weights are their own average: they are shared with the module, not copied.

    Args:
        module: its present parameters start the average.
        decay: the largest decay.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self.average = {
            name: p.detach().clone() if name in self.trained else p.detach()
            for name, p in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """average <- d average + (1 - d) weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        moved = {name: p.detach() for name, p in module.named_parameters() if name in self.trained}
        torch._foreach_lerp_([self.average[name] for name in moved], list(moved.values()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into `module`."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.average[name])

    def tensors(self) -> dict[str, Tensor]:
        return self.average
