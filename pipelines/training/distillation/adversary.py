"""An adversary on the teacher's features: real windows of SHORT or the student's, token by token.

Beyond arXiv 2602.24289; DMD2 (arXiv 2405.14867) reads its critic's features, FastGen its teacher's.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from models.blocks import layer_norm
from models.dit import Features
from models.rng import Key

HIDDEN = 64
"""Width of the head."""


class Adversary(nn.Module):
    """A small head on a frozen network's features; it says 0, which is undecided, until it is trained.

    Args:
        dim: width of the features.
        key: of its first weights.
    """

    def __init__(self, dim: int, key: Key) -> None:
        super().__init__()
        self.feature, self.time, self.out = (
            nn.Linear(dim, HIDDEN),
            nn.Linear(dim, HIDDEN),
            nn.Linear(HIDDEN, 1),
        )
        with torch.no_grad():
            for name, layer in (("feature", self.feature), ("time", self.time)):
                draw = torch.randn(layer.weight.shape, generator=key.at(purpose=name).torch())
                layer.weight.copy_(draw / math.sqrt(dim))
                layer.bias.zero_()
            for parameter in self.out.parameters():
                parameter.zero_()

    def forward(self, features: Features) -> Tensor:
        """How real each token is [B, T, S], as a logit."""
        hidden = self.feature(layer_norm(features.hidden))
        hidden = hidden + self.time(features.embedding).unsqueeze(-2)
        logits: Tensor = self.out(F.silu(hidden)).squeeze(-1)
        return logits

    def frozen(self, features: Features) -> Tensor:
        """The same, by which nothing of the adversary's own is trained."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        logits: Tensor = functional_call(self, weights, features)
        return logits


def adversary_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Of the adversary: -log D(real) - log(1 - D(fake)), means over tokens; 2 log 2 while it is undecided."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def adversarial_loss(fake: Tensor) -> Tensor:
    """Of the student: -log D(fake), which does not vanish where the adversary is sure; a mean over tokens."""
    return F.softplus(-fake).mean()
