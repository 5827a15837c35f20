"""What a machine does, measured from time to time."""

from jobs import machine, tracking
from tests.jobs.test_tracking import eventually, history, run_of


def test_the_machine_is_measured_at_once_and_then_in_turn(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(machine.time, "monotonic", lambda: clock[0])
    watched = machine.Machine()
    step, values = watched.due()
    assert step == 1
    assert set(values) >= {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
    assert 0 < values["system/system_memory_usage_percentage"] < 100
    assert watched.due() == (1, {})
    clock[0] += machine.EVERY_S
    assert watched.due()[0] == 2


def test_a_run_records_its_machine_where_that_is_asked(run_config, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.02)
    monkeypatch.setattr(machine, "EVERY_S", 0.05)
    watched, plain = (tracking.open_run(run_config, name, machine=name == "a") for name in "ab")
    trackers = [watched(), plain()]
    name = "system/cpu_utilization_percentage"
    eventually(lambda: len(history(watched, name)) > 2)
    for tracker in trackers:
        tracker.close()
    assert [step for step, _ in history(watched, name)][:3] == [1, 2, 3]
    assert not run_of(plain).data.metrics
