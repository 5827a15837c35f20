"""Settings of the training stages."""

from dataclasses import dataclass
from typing import Literal

from models.config import NonNegativeInt, PositiveFloat, PositiveInt, Share


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One supervised stage: teacher, sft or mixed (pipelines/training/supervised.py)."""

    steps: PositiveInt = 1000
    """Optimiser steps."""
    short_batch: NonNegativeInt = 0
    """SHORT windows a step, over all workers."""
    long_batch: NonNegativeInt = 0
    """LONG windows a step, over all workers."""
    learning_rate: PositiveFloat = 1.5e-3
    """Peak learning rate of AdamW."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.99
    """AdamW's second moment."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    clip_norm: PositiveFloat = 1.0
    """Largest gradient norm."""
    ema_decay: Share = 0.995
    """Decay of the averaged weights, ramped as (1 + k) / (10 + k)."""
    t_mean: float = 0.0
    """Mean of the normal whose sigmoid is the time of training."""
    t_std: PositiveFloat = 1.0
    """Its standard deviation."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; the last step is always saved."""
    preview_every: int = 0
    """Steps between previews in MLflow, and one at the end; 0 is none."""
    log_every: PositiveInt = 25
    """Steps between lines of metrics."""


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """FM head copied to DM head, critic from the teacher, then critic-only steps as `distill` takes them."""

    steps: NonNegativeInt = 0
    """Critic-only steps before distillation; 0 goes straight to it."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(StageConfig):
    """FM and DM losses together (models/losses.py, pipelines/training/distill.py)."""

    steps: PositiveInt = 150
    long_batch: PositiveInt = 32
    learning_rate: PositiveFloat = 5e-5
    beta1: float = 0.0
    schedule: Literal["cosine", "constant"] = "constant"
    warmup_steps: int = 0
    ema_decay: Share = 0.98
    t_mean: float = 0.6
    checkpoint_every: PositiveInt = 50
    log_every: PositiveInt = 10
    rollout_batch: PositiveInt = 32
    """Videos a rollout, over all workers."""
    caption_source: Literal["long", "short", "both"] = "both"
    """Corpus that rollout captions are drawn from; `both` takes half from each."""
    ramp_steps: NonNegativeInt = 0
    """Steps over which the reverse-KL weight rises from 0."""
    window_frames: PositiveInt = 8
    """Latent frames a window: the teacher's length."""
    window_stride: PositiveInt = 4
    """Latent frames between windows; the phase of the tiling is random."""
    windows_per_video: int | None = None
    """Windows of the tiling that are scored, drawn at random; None is all."""
    critic_learning_rate: PositiveFloat = 5e-4
    """Learning rate of the critic."""
    critic_updates: NonNegativeInt = 1
    """Critic steps an iteration."""
    critic_batch: PositiveInt = 128
    """Windows a critic step, over all workers, from the rollout pool."""
    rollout_pool: PositiveInt = 3
    """Rollouts kept for the critic."""
    teacher_gate: Literal["refuse", "warn"] = "warn"
    """What happens when the teacher's windows are far from the corpus."""
    teacher_gate_ratio: PositiveFloat = 3.0
    """Largest Frechet distance of the teacher's windows to SHORT, in units of SHORT's own floor."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """What training asks of Ray (pipelines/training/trainer.py)."""

    num_workers: PositiveInt = 1
    """Data-parallel training workers."""
    use_gpu: bool = False
    """One GPU a worker, bfloat16, Triton kernels."""
    activation_checkpointing: bool = False
    """Compute the activations of a block again in the backward pass instead of keeping them: a fraction of
    the memory, a third more time."""
    max_failures: NonNegativeInt = 2
    """Worker failures a stage survives, from its last checkpoint."""
    logical_cpus: int | None = None
    """CPUs a local Ray counts; None is the machine's, at least 4, so that controllers never wait."""
