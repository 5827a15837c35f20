"""The critic's lessons: which windows it sees, and what it is told of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from models.flow import VelocityModel
from models.rng import Key
from pipelines.training.distillation import critic
from pipelines.training.distillation.critic import Lessons, PoolWindow
from pipelines.training.state import Rollout
from tests.pipelines.training.makers import distill_stage, run

LATE = (0.0, 1.0, 1.0, 1.0)
"""Exits whose rollouts the critic sees from the first step on."""


def test_the_critic_leaves_out_the_first_latents_of_inner_windows(
    starts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With latents that are not crop-safe; those of windows that begin a video count."""
    seen: list[tuple[list[int], Tensor | None]] = []
    cut, judge = Lessons.window, critic.flow_matching_errors

    def spy(model: VelocityModel, x0: Tensor, *rest: Any) -> Tensor:
        seen.append((list(drawn), rest[3]))
        drawn.clear()
        return judge(model, x0, *rest)

    def window(self: Lessons, *args: Any) -> PoolWindow:
        found = cut(self, *args)
        drawn.append(found.start)
        return found

    drawn: list[int] = []
    monkeypatch.setattr(Lessons, "window", window)
    monkeypatch.setattr(critic, "flow_matching_errors", spy)
    for crop_safe in (True, False):
        stage = distill_stage(starts, crop_safe=crop_safe, exit_shares=LATE)
        run(stage, stage.init("cpu"), 2)
    assert seen[0][1] is seen[1][1] is None
    for first_frames, frames in seen[2:]:
        assert frames is not None
        assert frames[:, 0].tolist() == [start == 0 for start in first_frames]
        assert frames[:, 1:].all()
    assert {start == 0 for first_frames, _ in seen[2:] for start in first_frames} == {True, False}


@pytest.mark.parametrize(("scored", "starts_at"), [("first", {0}), ("last", {8}), ("all", set(range(9)))])
def test_the_critic_sees_the_windows_that_are_scored(
    scored: str, starts_at: set[int], starts: dict[str, str]
) -> None:
    stage = distill_stage(starts, scored_windows=scored, windows_per_video=None)
    pool = [Rollout(torch.zeros(2, 12, 4, 1, 1), ("red sun", "blue moon"), 1)]
    drawn = {stage.lessons.window(pool, Key(0), sample).start for sample in range(200)}
    assert drawn == starts_at


def test_a_window_belongs_to_the_third_in_which_its_middle_lies(starts: dict[str, str]) -> None:
    stage = distill_stage(starts)
    pool = [Rollout(torch.zeros(2, 12, 4, 1, 1), ("red sun", "blue moon"), 1)]
    windows = [stage.lessons.window(pool, Key(0), sample) for sample in range(200)]
    assert {(window.start, window.third) for window in windows} == {
        (0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2),
    }  # fmt: skip


def test_the_critic_comes_to_rest_with_the_student(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, exit_shares=LATE, steps=6, schedule="cosine", warmup_steps=2)
    state, config = stage.init("cpu"), stage.config
    for share in (0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464):
        run(stage, state, 1)
        rates = {role: optimizer.param_groups[0]["lr"] for role, optimizer in state.optimizers.items()}
        assert rates["student"] == pytest.approx(config.learning_rate * share, rel=1e-3)
        assert rates["critic"] == pytest.approx(config.critic_learning_rate * share, rel=1e-3)


def test_the_critics_loss_is_told_by_third(starts: dict[str, str]) -> None:
    stage = distill_stage(starts, exit_shares=LATE, scored_windows="last", windows_per_video=None)
    for metrics in run(stage, stage.init("cpu"), 2):
        assert metrics["critic_loss_last"] == pytest.approx(metrics["critic_loss"])
        assert not {"critic_loss_first", "critic_loss_middle"} & metrics.keys()
    stage = distill_stage(starts, exit_shares=LATE, critic_batch=64)
    for metrics in run(stage, stage.init("cpu"), 2):
        own = [metrics[f"critic_loss_{name}"] for name in ("first", "middle", "last")]
        assert min(own) < metrics["critic_loss"] < max(own)
