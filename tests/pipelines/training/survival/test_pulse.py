"""Who keeps the others waiting is found by the exchanges that each worker has begun."""

import dataclasses
import subprocess
import sys

import pytest

from pipelines.training.collectives import Workers
from pipelines.training.survival import pulse as pulses
from pipelines.training.survival.guard import Beat, Guard, Order
from pipelines.training.survival.pulse import Pulse

PATIENCE = 60.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(pulses.time, "monotonic", lambda: now[0])
    return now


def beat(rank: int, exchanges: int, still_s: float) -> Beat:
    return Beat(rank, exchanges, still_s, 11, f"worker {rank}", f"distill.py:{rank}")


def orders(guard: Guard, *beats: Beat) -> list[Order]:
    """What each is told, in the second round: in the first the guard learns of all."""
    for one in beats:
        guard.beat(dataclasses.replace(one, still_s=0.0), len(beats))
    return [guard.beat(one, len(beats)) for one in beats]


def test_workers_that_come_on_are_left_alone(clock: list[float]) -> None:
    told = orders(Guard(PATIENCE), beat(0, 7, 59.0), beat(1, 6, 59.0), beat(2, 7, 100.0))
    assert told == [Order()] * 3


def test_the_one_that_has_begun_fewer_exchanges_is_named_and_ended(clock: list[float]) -> None:
    first, second = orders(Guard(PATIENCE), beat(0, 7, 61.0), beat(1, 6, 62.0))
    assert first == Order()
    assert second.end
    for word in ("worker 1", "step 12", "distill.py:1", "1 minutes", "hang_minutes"):
        assert word in second.say


def test_it_is_ended_once_and_a_new_group_begins_with_a_clean_record(clock: list[float]) -> None:
    guard = Guard(PATIENCE)
    assert orders(guard, beat(0, 7, 61.0), beat(1, 6, 62.0))[1].end
    assert guard.beat(beat(0, 7, 70.0), 2) == Order()
    guard.begin()
    assert orders(guard, beat(0, 0, 1.0), beat(1, 0, 1.0)) == [Order()] * 2


def test_one_that_cannot_even_beat_is_named_by_one_that_waits(clock: list[float]) -> None:
    guard = Guard(PATIENCE)
    guard.beat(beat(0, 7, 0.0), 2)
    guard.beat(beat(1, 6, 0.0), 2)
    clock[0] += 61
    told = guard.beat(beat(0, 7, 61.0), 2)
    assert told.end
    assert "worker 1" in told.say
    assert "no sign of life" in told.say


def test_workers_that_are_all_still_are_told_of_once_and_not_ended(clock: list[float]) -> None:
    """A long step, or a network that is away: there is no one to blame."""
    guard = Guard(PATIENCE)
    told = orders(guard, beat(0, 7, 61.0), beat(1, 7, 61.0))
    assert [order.end for order in told] == [False, False]
    assert sum("no worker has come on" in order.say for order in told) == 1
    assert orders(Guard(PATIENCE), beat(0, 7, 1e4)) == [Order()]


def test_between_steps_one_worker_may_take_its_time(clock: list[float]) -> None:
    """Rank 0 decodes previews while the others wait for it in the next step."""
    assert orders(Guard(PATIENCE), beat(0, 6, 0.0), beat(1, 7, 1e4)) == [Order()] * 2


def test_a_stop_reaches_every_worker(clock: list[float]) -> None:
    guard = Guard(PATIENCE)
    clock[0] += 7
    assert guard.silent_s() == 7, "a group that begins has not fallen silent"
    guard.begin()
    assert guard.silent_s() == 0
    guard.stop()
    assert [order.stop for order in orders(guard, beat(0, 1, 0.0), beat(1, 1, 0.0))] == [True, True]
    clock[0] += 3
    assert guard.silent_s() == 3


def test_a_beat_tells_how_long_a_worker_has_been_still_and_where(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulses.ray.util, "get_node_ip_address", lambda: "10.0.0.5")
    workers = Workers(1, 2)
    pulse = Pulse(None, workers)
    assert pulse._now().still_s == 0
    with pulse.step(11):
        pulse._now()
        clock[0] += 5
        assert pulse._now().still_s == 5
        workers.exchanges.begun += 1
        now = pulse._now()
        assert (now.still_s, now.step, now.exchanges) == (0, 11, 1)
    clock[0] += 5
    assert pulse._now().still_s == 0
    assert "10.0.0.5" in now.name
    assert now.place.startswith("pipelines/training/survival/pulse.py")


def test_a_guard_brings_no_package_into_the_process_that_ray_starts_for_it() -> None:
    script = (
        "import sys, pipelines.training.survival.guard; print({'ray', 'torch', 'numpy'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "set()"
