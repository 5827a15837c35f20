"""The times at which windows are scored, over training progress."""

import dataclasses

import pytest
import torch

from models.config import FlowConfig, LossConfig
from models.rng import Key
from pipelines.training.distillation.scoring import score_times
from tests.pipelines.training.makers import DISTILL, recipe

ROWS = range(400)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_falling_times_begin_as_uniform_ones_and_end_below_the_middle(shift: float) -> None:
    made = recipe(dataclasses.replace(DISTILL, steps=100), {"student": "x"})
    made = dataclasses.replace(made, flow=FlowConfig(timestep_shift=shift))
    falling = dataclasses.replace(made, loss=LossConfig(score_time="falling"))
    times = [score_times(falling, Key(0), ROWS, step) for step in (0, 50, 99)]
    assert torch.equal(times[0], score_times(made, Key(0), ROWS, 0))
    assert torch.equal(times[0], score_times(made, Key(0), ROWS, 99))
    for found, largest in zip(times, (0.98, 0.74, 0.505), strict=True):
        assert largest - 0.02 < float(found.max()) <= largest
        assert 0.02 <= float(found.min()) < 0.2
    warm_up = dataclasses.replace(falling, critic_only=True)
    assert torch.equal(score_times(warm_up, Key(0), ROWS, 99), times[0])
