"""How windows are scored, and shown to the critic: the times, and the frames that count."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.flow import shift_for, uniform_times
from models.rng import Key
from pipelines.training.config import DistillConfig
from pipelines.training.recipes import Recipe


def score_times(recipe: Recipe, key: Key, samples: Sequence[int], step: int) -> Tensor:
    """Uniform times of windows at a step, shifted as the teacher's own are; [len(samples)]."""
    assert isinstance(recipe.stage, DistillConfig)
    loss, amount = recipe.loss, shift_for(recipe.flow, recipe.stage.window_frames)
    largest = loss.score_t_max
    if loss.score_time == "falling" and not recipe.critic_only:
        largest -= 0.5 * (loss.score_t_max - loss.score_t_min) * min(1.0, step / recipe.stage.steps)
    return uniform_times(key.at(purpose="t"), samples, amount, loss.score_t_min, largest)


def first_masked(starts: Sequence[int], length: int) -> Tensor:
    """Which frames count of windows cut from latents that are not crop-safe, bool [len(starts), length]."""
    frames = torch.ones(len(starts), length, dtype=torch.bool)
    frames[:, 0] = torch.tensor([start == 0 for start in starts])
    return frames
