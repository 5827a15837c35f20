"""The student: one long-context encoder and two heads on its residual stream (arXiv 2602.24289, eq. 6-8)."""

from typing import Literal

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.dit import DiT, Encoder, Head
from models.flow import VelocityModel
from models.text.conditioning import Conditioning
from models.weights import copy_into

HeadName = Literal["flow_matching", "distribution_matching"]


class Student(nn.Module):
    """Shared encoder, FM head and DM head (`heads: shared` has one for both), built as a DiT is.

    Encoder + one head is a plain stack of `num_layers` blocks.
    """

    def __init__(self, config: ModelConfig, channels: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        split = config.num_layers - config.head_layers
        first, last = config.attention_pattern[:split], config.attention_pattern[split:]
        self.encoder = Encoder(config, channels, text_dim, first, config.clip_position)
        if self.encoder.clip_position is not None:
            nn.init.zeros_(self.encoder.clip_position.weight)
            nn.init.zeros_(self.encoder.clip_position.bias)
        names = ["flow_matching"] + ["distribution_matching"] * (config.heads == "decoupled")
        self.heads = nn.ModuleDict({name: Head(config, channels, last) for name in names})

    def head(self, name: HeadName, *, detached: bool = False) -> VelocityModel:
        """One head over the encoder; `detached`: of what it learns, nothing reaches the encoder."""
        module = self.heads[name if self.config.heads == "decoupled" else "flow_matching"]

        def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not detached):
                features = self.encoder(x_t, t, conditioning)
            out: Tensor = module(features)
            return out

        return velocity

    @property
    def flow_matching(self) -> VelocityModel:
        """Mean seeking: supervised on LONG."""
        return self.head("flow_matching")

    @property
    def distribution_matching(self) -> VelocityModel:
        """Mode seeking: the few-step generator."""
        return self.head("distribution_matching")

    def start_from(self, teacher: DiT) -> None:
        """Copy the teacher's first blocks into the encoder and its last blocks into every head.

        The student then equals the teacher wherever the attention windows cover the clip, since
        `clip_position` starts at zero.
        """
        split = len(self.encoder.blocks)
        own = {name: tensor for name, tensor in self.state_dict().items() if ".clip_position." in name}
        for name, tensor in teacher.state_dict().items():
            part, rest = name.split(".", 1)
            number = int(rest.split(".")[1]) if rest.startswith("blocks.") else None
            if part == "encoder" and (number is None or number < split):
                own[name] = tensor
                continue
            if number is not None:
                rest = f"blocks.{number - split}.{rest.split('.', 2)[2]}"
            own |= {f"heads.{head}.{rest}": tensor for head in self.heads}
        copy_into(self, own, "the teacher")

    def copy_flow_matching_head(self) -> None:
        """DM head <- FM head: the warm start of distillation."""
        if self.config.heads == "decoupled":
            weights = self.heads["flow_matching"].state_dict()
            copy_into(self.heads["distribution_matching"], weights, "the FM head")
