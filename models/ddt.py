"""The student: one long-context encoder and two heads on its residual stream (arXiv 2602.24289, eq. 6-8)."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from models.config import ModelConfig
from models.dit import DiT, Encoder, Features, Head
from models.text.captions import Conditioning
from models.weights import copy_into

HeadName = Literal["flow_matching", "distribution_matching"]


class Student(nn.Module):
    """Shared encoder, FM head and DM head; encoder + one head is a plain stack of `num_layers` blocks.

    Args:
        config: the model's shape; `heads: shared` gives both losses one head.
        channels: latent channels C.
        text_dim: numbers a text token.
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
        names = (
            ["flow_matching", "distribution_matching"] if config.heads == "decoupled" else ["flow_matching"]
        )
        self.heads = nn.ModuleDict({name: Head(config, channels, last) for name in names})

    def encode(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Features:
        """The shared residual stream of x_t [B, T, C, h, w]."""
        features: Features = self.encoder(x_t, t, conditioning)
        return features

    def head(self, name: HeadName) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
        """The VelocityModel of one head over the encoder."""
        module = self.heads[name if self.config.heads == "decoupled" else "flow_matching"]

        def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
            out: Tensor = module(self.encode(x_t, t, conditioning))
            return out

        return velocity

    @property
    def flow_matching(self) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
        """Mean seeking: supervised on LONG."""
        return self.head("flow_matching")

    @property
    def distribution_matching(self) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
        """Mode seeking: the few-step generator."""
        return self.head("distribution_matching")

    def start_from(self, teacher: DiT) -> None:
        """Copies the teacher's blocks: the first into the encoder, the last into every head.

        With `clip_position` zero at the start, the student then equals the teacher wherever the
        attention windows cover the clip.
        """
        source = teacher.state_dict()
        split = len(self.encoder.blocks)
        own = {name: tensor for name, tensor in self.state_dict().items() if ".clip_position." in f".{name}"}
        for name, tensor in source.items():
            room, _, rest = name.partition(".")
            if room == "encoder" and rest.startswith("blocks."):
                _, number, leaf = rest.split(".", 2)
                if int(number) < split:
                    own[name] = tensor
                    continue
                for head in self.heads:
                    own[f"heads.{head}.blocks.{int(number) - split}.{leaf}"] = tensor
            elif room == "encoder":
                own[name] = tensor
            else:
                own |= {f"heads.{head}.{rest}": tensor for head in self.heads}
        copy_into(self, own, "the teacher")

    def copy_flow_matching_head(self) -> None:
        """DM head <- FM head: the warm start of distillation."""
        if self.config.heads == "decoupled":
            copy_into(
                self.heads["distribution_matching"], self.heads["flow_matching"].state_dict(), "the FM head"
            )
