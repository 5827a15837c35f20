"""What a stage trains, and everything a checkpoint must hold to go on exactly."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.ema import Ema
from pipelines.training.config import StageConfig


@dataclass(frozen=True)
class Rollout:
    """Videos the student has generated, kept for the critic.

    Args:
        latents: [B, T, C, h, w], the whole global batch; the rollouts of a pool may differ in shape.
        captions: B captions.
    """

    latents: Tensor
    captions: tuple[str, ...]


@dataclass
class TrainState:
    """Trained modules with their optimisers and averages; frozen ones are rebuilt by the stage.

    Args:
        modules: by role: those that are trained, and the student that a warm-up leaves alone.
        optimizers: of the roles that are trained.
        averages: EMA of the roles that are sampled.
        step: finished optimiser steps.
        pool: the last rollouts.
        cpu_seconds: processor time spent in steps, over all sessions.
        held_out_start: loss on held-out windows before the first step, where it was measured.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.AdamW]
    averages: dict[str, Ema]
    step: int = 0
    pool: list[Rollout] = field(default_factory=list)
    cpu_seconds: float = 0.0
    held_out_start: float | None = None


def adamw(
    parameters: Iterable[nn.Parameter], config: StageConfig, learning_rate: float | None = None
) -> torch.optim.AdamW:
    """AdamW with the stage's settings, fused on every device."""
    rate = config.learning_rate if learning_rate is None else learning_rate
    betas = (float(config.beta1), float(config.beta2))
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=config.weight_decay, fused=True)


def learning_rate_factor(config: StageConfig, step: int) -> float:
    """Linear warm-up, then 1 or a half cosine to 0 at `steps`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * done, dtype=torch.float64))))
