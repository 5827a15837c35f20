"""A critic that knows the student's windows no better than the teacher cannot teach, and that shows."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.ddt import Student
from models.dit import DiT
from models.losses import flow_matching_loss
from models.rng import Key, normal
from models.sampling import Draw, few_step
from pipelines.generation import few_step_times
from pipelines.training.collectives import Workers
from pipelines.training.distill import DistillStage
from pipelines.training.distillation.scoring import score_times
from pipelines.training.monitors.critic_gap import critic_gap, remember_gaps
from pipelines.training.monitors.verdicts import worst_gap
from pipelines.training.state import load_state, save_state
from tests.models.builders import randomize
from tests.pipelines.training.makers import CAPTIONS, DISTILL, recipe, trained_starts

TEXTS = ["blue moon", "red sun", "blue moon"]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return trained_starts(Path(tmp_path_factory.mktemp("starts")))


def test_a_critic_that_is_the_teacher_has_no_gap_and_a_worse_one_a_positive_one(
    starts: dict[str, str],
) -> None:
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    state = stage.init("cpu")
    gaps = critic_gap(stage, state, TEXTS)
    assert gaps == {f"critic_gap_exit_{number}": 0.0 for number in (1, 2, 3)}
    randomize(state.modules["critic"], std=1.0)
    assert all(gap > 0 for gap in critic_gap(stage, state, TEXTS).values())


def test_the_gap_of_the_last_exit_is_that_of_the_samplers_videos(starts: dict[str, str]) -> None:
    loss = dataclasses.replace(recipe(DISTILL).loss, anchor_weight=0.0)
    settings = dataclasses.replace(DISTILL, micro_batch=2, windows_per_video=None)
    stage = DistillStage(dataclasses.replace(recipe(settings, starts), loss=loss), CAPTIONS)
    state = stage.init("cpu")
    student, critic = state.modules["student"], state.modules["critic"]
    assert isinstance(student, Student)
    assert isinstance(critic, DiT)
    randomize(critic)
    gaps = critic_gap(stage, state, TEXTS)
    assert list(gaps) == [f"critic_gap_exit_{number}" for number in range(4)]

    key, shape = Key(0, purpose="critic-gap"), stage.recipe.long_shape
    text = stage.captions.encode(TEXTS, torch.device("cpu"))
    times = few_step_times(stage.recipe.sampling, stage.recipe.flow, shape[0])
    videos = few_step(student.distribution_matching, times, Draw(shape, text, key, range(3)))
    tiling = stage.config.tiling(shape[0])
    expected, rows = 0.0, len(tiling) * 3
    with torch.no_grad():
        for row in range(rows):
            video, place = divmod(row, len(tiling))
            x0 = videos[video : video + 1, tiling[place].start : tiling[place].stop]
            noise = normal(x0.shape[1:], key.at(purpose="noise"), [row])
            t, own = (
                score_times(stage.recipe, key.at(purpose="t"), [row], 0),
                text.select(torch.tensor([video])),
            )
            for sign, model in ((1, critic.told(torch.tensor([3]))), (-1, stage.teacher)):
                expected += sign * float(flow_matching_loss(model, x0, noise, t, own)) / rows
    assert gaps["critic_gap_exit_3"] == pytest.approx(expected, rel=1e-4)


class Told(Workers):
    """A worker that keeps its part of a sum to itself."""

    def _reduce(self, values: Tensor, how: Any = None) -> None:
        pass


@pytest.mark.parametrize("size", [2, 5])
def test_workers_make_equally_many_videos_and_count_each_once(size: int, starts: dict[str, str]) -> None:
    """Of three, by two workers, and by more than there are."""
    stage = DistillStage(recipe(dataclasses.replace(DISTILL, micro_batch=1), starts), CAPTIONS)
    state = stage.init("cpu")
    randomize(state.modules["critic"], std=1.0)
    whole, passes = critic_gap(stage, state, TEXTS), []
    stage.teacher.encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    parts = dict.fromkeys(whole, 0.0)
    for rank in range(size):
        stage.workers, before = Told(rank, size), len(passes)
        for name, value in critic_gap(stage, state, TEXTS).items():
            parts[name] += value
        assert len(passes) - before == len(passes) / (rank + 1)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_a_state_keeps_the_newest_gaps_and_carries_them_over(starts: dict[str, str], tmp_path: Path) -> None:
    """As many as the verdict asks for."""
    stage = DistillStage(recipe(DISTILL, starts), CAPTIONS)
    state, again = stage.init("cpu"), stage.init("cpu")
    for value in (0.1, 0.2, 0.3, 0.4):
        remember_gaps(state, {"critic_gap_exit_2": value, "critic_gap_exit_3": 0.01, "sharpness": 1.0})
    assert state.gaps == {"critic_gap_exit_2": [0.2, 0.3, 0.4], "critic_gap_exit_3": [0.01] * 3}
    assert worst_gap(state.gaps) == ("critic_gap_exit_2", 0.3)
    state.ramped = 7
    save_state(state, stage.spec, tmp_path)
    load_state(again, tmp_path)
    assert (again.gaps, again.ramped) == (state.gaps, 7)
