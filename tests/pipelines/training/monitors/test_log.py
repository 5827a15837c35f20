"""What people are told of a stage while it trains."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.storage import Storage
from pipelines.tracking import NullTracker
from pipelines.training.config import VerdictName
from pipelines.training.monitors.log import Log
from pipelines.training.monitors.phases import Phases, Plan
from pipelines.training.monitors.series import read_series
from pipelines.training.recipes import Recipe
from tests.pipelines.training.makers import DISTILL, recipe


class Tracker(NullTracker):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.seen: dict[str, list[tuple[int, float]]] = {}
        self.tagged: dict[str, str] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:  # type: ignore[override]
        for name, value in values.items():
            self.seen.setdefault(name, []).append((step, value))

    def tags(self, values: dict[str, str]) -> None:  # type: ignore[override]
        self.tagged |= values


def made(root: Path) -> Recipe:
    stage = dataclasses.replace(DISTILL, steps=40, log_every=4)
    return dataclasses.replace(recipe(stage, {"student": "x"}), root=str(root))


def step(number: int, loss: float) -> dict[str, float]:
    """Metrics of a step whose exit is the step modulo four, and whose loss says so."""
    exit_step = number % 4
    return {
        "reverse_kl": loss + exit_step,
        f"reverse_kl_exit_{exit_step}": loss + exit_step,
        "critic_loss": 0.5,
    }


def test_curves_are_means_that_hide_the_dice(tmp_path: Path) -> None:
    lines: list[tuple[object, ...]] = []
    tracker = Tracker()
    log = Log(made(tmp_path), 1, Phases(), Plan(1e9, 1e10), tracker, lambda *told: lines.append(told), 0)
    for number in range(1, 9):
        log.add(number, step(number, 1.0), {})
    for number in range(9, 13):
        log.add(number, step(0, 3.0), {"sharpness": 1.1} if number == 10 else {})
    curves = read_series(Storage(tmp_path).child("stage")).curves
    assert curves["reverse_kl_even"].steps == [4, 8, 12]
    assert curves["reverse_kl_even"].values == pytest.approx([2.5, 2.5, 3.0]), "(3 + 2 + 3 + 4) / 4"
    assert curves["reverse_kl"].values == [2.5, 2.5, 3.0]
    assert curves["sharpness"].steps == [10]
    assert [number for number, _ in tracker.seen["train/reverse_kl"]] == list(range(1, 13))
    assert {"time/step", "time/flops", "verdict/critic_loss"} <= set(tracker.seen)
    assert [line[1] for line in lines] == [4, 8, 12]
    assert "reverse_kl_even 3, critic_loss 0.5" in str(lines[-1])
    assert "s/step (other 100 %)" in str(lines[-1])


def test_a_verdict_is_told_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, log = Tracker(), None
    log = Log(made(tmp_path), 1, Phases(), None, tracker, None, 0)
    for number in range(1, 21):
        log.add(number, {"critic_loss": 9.0 if 5 <= number <= 12 else 0.5}, {})
    assert [value for _, value in tracker.seen["verdict/critic_loss"]] == [1, 0, 0, 1, 1]
    (message,) = caplog.messages
    assert message.startswith("stage, step 8: the critic's loss is 9.00")
    assert "lower distill.critic_learning_rate" in message
    assert tracker.tagged["verdict.critic_loss"] == "the critic's loss is 0.50, 0.1 times its median so far"


@pytest.mark.parametrize(("stop_on", "stops"), [((), False), (("shift",), False), (("critic_loss",), True)])
def test_only_what_stop_on_names_ends_a_stage(
    stop_on: tuple[VerdictName, ...], stops: bool, tmp_path: Path
) -> None:
    recipe = made(tmp_path)
    recipe = dataclasses.replace(recipe, stage=dataclasses.replace(recipe.stage, stop_on=stop_on))
    log = Log(recipe, 1, Phases(), None, NullTracker(), None, 0)
    for number in range(1, 9):
        assert log.unwell is None
        log.add(number, {"critic_loss": 9.0 if number > 4 else 0.5}, {})
    assert (log.unwell is not None) == stops


def test_a_session_that_resumes_does_not_repeat_verdicts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(made(tmp_path), 1, Phases(), None, NullTracker(), None, 0)
    for number in range(1, 9):
        log.add(number, {"critic_loss": 9.0}, {})
    assert len(caplog.messages) == 1
    hours = log.pace.hours
    again = Log(made(tmp_path), 1, Phases(), None, NullTracker(), None, 8)
    for number in range(9, 13):
        again.add(number, {"critic_loss": 9.0}, {})
    assert len(caplog.messages) == 1
    assert again.pace.hours >= hours > 0
