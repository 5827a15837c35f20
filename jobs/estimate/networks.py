"""The networks of a stage on torch's meta device: what they hold, and what of it is trained."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from jobs.config.schema import RunConfig
from jobs.estimate.shapes import shapes
from models.blocks import checkpoint_blocks
from models.config import LoraConfig, ModelConfig
from models.ddt import Student
from models.dit import DiT
from models.lora import add_adapters
from pipelines.training.supervised import freeze_unused_head

SCORED = ("warmup", "distill")
"""Stages with a critic and a frozen teacher."""


@dataclass(frozen=True)
class Networks:
    """What a stage holds.

    Args:
        teacher: a plain stack with all weights trained: the teacher's stage, or the shape of a frozen one.
        student: as its stage trains it.
        critic: as its stage trains it.
        frozen_student: the long-SFT network that the student starts from.
    """

    teacher: DiT
    student: Student
    critic: DiT
    frozen_student: Student


def networks(config: RunConfig, stage: str) -> Networks:
    """The networks of a stage, adapters and frozen heads as the trainer sets them; not to be changed.

    Raises:
        ConfigError: adapters are asked for, and peft is not installed.
    """
    lora = config.lora if stage in config.lora.stages else LoraConfig()
    size = config.model, shapes(config).channels, config.text.dim
    return _built(size, lora, stage in SCORED, config.cluster.activation_checkpointing)


@lru_cache(maxsize=8)
def _built(
    size: tuple[ModelConfig, int, int], lora: LoraConfig, scored: bool, checkpointed: bool
) -> Networks:
    with torch.device("meta"):
        built = Networks(DiT(*size), Student(*size), DiT(*size), Student(*size))
    if lora.rank:
        add_adapters(built.student, lora)
        add_adapters(built.critic, lora)
    if not scored:
        freeze_unused_head(built.student)
    if checkpointed:
        for network in (built.teacher, built.student, built.critic):
            checkpoint_blocks(network)
    return built


def parameters(module: nn.Module) -> int:
    """Numbers of a network."""
    return sum(parameter.numel() for parameter in module.parameters())


def trained(module: nn.Module) -> int:
    """Numbers of a network that its optimiser gets."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
