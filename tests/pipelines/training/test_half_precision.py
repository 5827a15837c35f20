"""Steps in bfloat16, on the CPU and on a GPU."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from models.blocks import checkpoint_blocks
from models.ddt import Student
from models.device import half_precision
from models.rng import Key
from pipelines.training.distill import DistillStage
from pipelines.training.state import Rollout, TrainState, load_state, save_state
from tests.pipelines.training import makers

ON_A_GPU = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
)
DEVICES = pytest.mark.parametrize("device", ["cpu", ON_A_GPU])


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return makers.trained_starts(tmp_path_factory.mktemp("starts"))


def _distilled(
    starts: dict[str, str], device: str, steps: int, checkpointed: bool = False, **changed: int
) -> tuple[TrainState, list[dict[str, float]]]:
    stage = DistillStage(
        makers.recipe(dataclasses.replace(makers.DISTILL, **changed), starts), makers.CAPTIONS
    )
    state = stage.init(device)
    if checkpointed:
        for module in state.modules.values():
            checkpoint_blocks(module)
    return state, [_step(stage, state, device) for _ in range(steps)]


def _step(stage: DistillStage, state: TrainState, device: str) -> dict[str, float]:
    batches = makers.batches(state.step, stage.workers)
    assert batches.long is not None
    long = dataclasses.replace(batches.long, latents=batches.long.latents.to(device))
    key = Key(0, state.step, purpose="step")
    with half_precision(torch.device(device)):
        return stage.step(state, dataclasses.replace(batches, long=long), key).metrics


@DEVICES
def test_every_update_of_the_critic_sees_the_one_before(starts: dict[str, str], device: str) -> None:
    """Four updates within one region are four updates in a region each."""
    stage = DistillStage(makers.recipe(makers.DISTILL, starts), makers.CAPTIONS)
    key, bfloat16 = Key(0, purpose="test"), partial(half_precision, torch.device(device))

    def losses(around_all: AbstractContextManager[Any], around_one: Callable[[], Any]) -> list[float]:
        state = stage.init(device)
        student = state.modules["student"]
        assert isinstance(student, Student)
        captions = stage.rollouts.captions_at(key)
        rollout = stage.rollouts.make(student, makers.LONG, key, range(len(captions)), captions, 1)
        state.pool = [Rollout(rollout.video.detach(), tuple(captions), 1)]
        seen = []
        with around_all:
            for _ in range(4):
                with around_one():
                    seen.append(stage._teach_critic(state, key)["critic_loss"])
        return seen

    assert losses(bfloat16(), nullcontext) == losses(nullcontext(), bfloat16)


@DEVICES
def test_steps_of_distillation_are_finite_and_move_all_that_trains(
    starts: dict[str, str], device: str
) -> None:
    fresh, _ = _distilled(starts, device, 0)
    state, metrics = _distilled(starts, device, 3, critic_updates=2)
    assert all(torch.isfinite(torch.tensor(list(m.values()))).all() for m in metrics)
    for role, module in state.modules.items():
        before = dict(fresh.modules[role].named_parameters())
        still = [n for n, p in module.named_parameters() if torch.equal(p, before[n])]
        assert len(still) < len(before) / 4, still


@DEVICES
def test_blocks_that_are_computed_again_take_the_same_steps(starts: dict[str, str], device: str) -> None:
    plain, first = _distilled(starts, device, 2)
    again, second = _distilled(starts, device, 2, checkpointed=True)
    for one, two in zip(first, second, strict=True):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)
    for role, module in plain.modules.items():
        other = dict(again.modules[role].named_parameters())
        assert all(torch.allclose(p, other[n], atol=3e-4) for n, p in module.named_parameters())


@DEVICES
def test_a_resumed_distillation_takes_its_next_step(
    starts: dict[str, str], device: str, tmp_path: Path
) -> None:
    """On the device of the networks, whose pool of rollouts comes from a file."""
    stage = DistillStage(makers.recipe(makers.DISTILL, starts), makers.CAPTIONS)
    state, _ = _distilled(starts, device, 2)
    save_state(state, stage.spec, tmp_path)
    again = stage.init(device)
    load_state(again, tmp_path)
    assert {r.latents.device.type for r in again.pool} == {torch.device(device).type}
    for one in (state, again):
        _step(stage, one, device)
    for role, module in state.modules.items():
        other = dict(again.modules[role].named_parameters())
        assert all(torch.allclose(p, other[n], atol=3e-4) for n, p in module.named_parameters())
