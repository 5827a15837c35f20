"""The adversarial term in a step of distillation."""

import pytest
import torch

from pipelines.training.state import TrainState
from tests.models.builders import randomize
from tests.pipelines.training.makers import distill_stage, run, tensors_of

LATE = (0.0, 1.0, 1.0, 1.0)


def steps(
    starts: dict[str, str], count: int, weight: float = 0.03
) -> tuple[list[dict[str, float]], TrainState]:
    stage = distill_stage(starts, loss={"adversarial_weight": weight}, short_batch=4, exit_shares=LATE)
    state = stage.init("cpu")
    return run(stage, state, count, short=4), state


def test_both_sides_learn_and_the_teacher_does_not(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, loss={"adversarial_weight": 0.03}, short_batch=4, exit_shares=LATE)
    state = stage.init("cpu")
    before, teacher = tensors_of(state), {n: t.clone() for n, t in stage.teacher.state_dict().items()}
    told = run(stage, state, 2, short=4)
    after = tensors_of(state)
    assert any(name.startswith("adversary.") and not torch.equal(before[name], after[name]) for name in after)
    assert all(torch.equal(t, teacher[n]) for n, t in stage.teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in stage.teacher.parameters())
    assert told[0]["adversarial"] == pytest.approx(0.6931, abs=1e-4), "undecided at first"
    assert told[0]["adversary_loss"] == pytest.approx(2 * 0.6931, abs=1e-3)


def test_an_adversary_that_is_undecided_changes_nothing_for_the_student(starts: dict[str, str]) -> None:
    """Its first step is the step without it."""
    with_it, _ = steps(starts, 1)
    without, state = steps(starts, 1, weight=0.0)
    assert "adversary" not in state.modules
    assert with_it[0]["gradient_norm"] == pytest.approx(without[0]["gradient_norm"], rel=1e-6)
    assert with_it[0]["critic_loss"] == without[0]["critic_loss"]


def test_the_student_is_led_by_it(starts: dict[str, str]) -> None:
    norms = []
    for weight in (1e-9, 1.0):
        stage = distill_stage(starts, loss={"adversarial_weight": weight}, short_batch=4, exit_shares=LATE)
        state = stage.init("cpu")
        randomize(state.modules["adversary"], std=1.0)
        norms.append(run(stage, state, 1, short=4)[0]["gradient_norm"])
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


def test_the_warm_up_has_no_adversary(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, critic_only=True, loss={"adversarial_weight": 0.03}, short_batch=4)
    assert list(stage.init("cpu").modules) == ["student", "critic"]
