"""The stopwatch, and what it makes of seconds."""

from typing import ClassVar

import pytest
import torch

from pipelines.training.monitors import phases
from pipelines.training.monitors.phases import Pace, Phases, Plan, in_words


def test_every_moment_belongs_to_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])
    watch = Phases()
    for name, seconds in (("data", 1), ("fm", 2), ("critic", 3), ("fm", 4)):
        watch.begin(name)
        now[0] += seconds
    assert watch.lap() == {"other": 0, "data": 1, "fm": 6, "critic": 3}
    now[0] += 5
    assert watch.lap() == {"fm": 5}


class Event:
    """A CUDA event on a GPU that works through them when it is told to."""

    clock = 0.0
    done: ClassVar[list["Event"]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Event.clock += 250.0
        self.at = Event.clock

    def query(self) -> bool:
        return self in Event.done

    def elapsed_time(self, end: "Event") -> float:
        assert self.query()
        assert end.query()
        return end.at - self.at


def test_on_a_gpu_only_what_it_has_passed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch = Phases("cuda")
    for name in ("fm", "critic"):
        watch.begin(name)
    marks = [mark for _, mark in watch._marks]
    assert watch.lap() == {}
    Event.done = marks[:2]
    assert watch.lap() == {"other": 0.25}
    Event.done = [mark for _, mark in watch._marks]
    assert watch.lap() == {"fm": 0.25, "critic": 0.5}


def test_shares_add_up_and_hours_go_on_where_an_earlier_session_stopped() -> None:
    pace = Pace(workers=2, steps=100, price=3.0, plan=Plan(flops=8e9, speed=1e10), hours=1.0)
    found = pace.of({"fm": 30.0, "critic": 10.0}, taken=20, step=40)
    assert found["time/step"] == 2.0
    assert found["time/fm"] == 1.5
    assert found["time/fm_share"] + found["time/critic_share"] == 1.0
    assert found["time/flops"] == 4e9
    assert found["time/flops_of_plan"] == pytest.approx(0.2)
    assert found["time/hours"] == pytest.approx(1 + 80 / 3600)
    assert found["time/hours_left"] == pytest.approx(60 * 2 * 2 / 3600)
    assert found["time/cost_left"] == pytest.approx(3 * found["time/hours_left"])
    assert pace.of({"fm": 40.0}, 20, 60)["time/hours"] == pytest.approx(1 + 160 / 3600)
    words = in_words(found)
    assert (
        words
        == "2.000 s/step (fm 75 %, critic 25 %), 4e+09 FLOP/s, 20 % of plan, 240 worker-seconds left for 0.20"
    )


def test_without_plan_and_price_nothing_is_made_up() -> None:
    found = Pace(workers=1, steps=10).of({"fm": 1.0}, 1, 1)
    assert set(found) == {"time/step", "time/hours", "time/hours_left", "time/fm", "time/fm_share"}
