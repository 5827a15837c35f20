"""One ingest at a time writes a dataset, and a dead one holds nobody up for long."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from models.errors import ClusterError
from pipelines.data.ingest import lease as module
from pipelines.data.ingest.lease import LEASE_FILE, hold_lease
from pipelines.storage import Storage


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(tmp_path if request.param == "folder" else f"memory://{tmp_path.name}")


def put(storage: Storage, host: str, pid: int, namespace: str = "") -> None:
    owner = {"host": host, "pid": pid, "namespace": namespace or os.readlink("/proc/self/ns/pid")}
    storage.write_json(LEASE_FILE, owner | {"beat": 0})


def ended() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_lease_is_there_as_long_as_the_work_lasts(storage: Storage) -> None:
    with hold_lease(storage):
        assert storage.read_json(LEASE_FILE)["pid"] == os.getpid()
    assert storage.list() == []
    with pytest.raises(RuntimeError), hold_lease(storage):
        raise RuntimeError
    assert storage.list() == []


def test_a_lease_that_another_has_taken_over_is_left_to_it(storage: Storage) -> None:
    with hold_lease(storage):
        put(storage, "elsewhere", 1)
    assert storage.read_json(LEASE_FILE)["host"] == "elsewhere"


def test_a_store_that_fails_at_the_end_does_not_hide_what_ended_the_work(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise ClusterError("the store is away", "Wait")

    def work() -> None:
        with hold_lease(storage):
            monkeypatch.setattr(Storage, "delete", fails)
            raise RuntimeError("the work")

    with pytest.raises(RuntimeError, match="the work"):
        work()


def test_a_second_one_is_refused_while_the_first_lives(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    with hold_lease(storage):
        with pytest.raises(ClusterError, match=f"process {os.getpid()} on") as caught, hold_lease(storage):
            pass
        assert "Wait" in caught.value.remedy
        assert storage.exists(LEASE_FILE), "the first one's"


def test_a_process_of_this_machine_that_has_ended_is_not_waited_for(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: pytest.fail("it waits"))
    put(storage, socket.gethostname(), ended())
    with hold_lease(storage):
        assert storage.read_json(LEASE_FILE)["pid"] == os.getpid()


@pytest.mark.parametrize(("host", "namespace"), [("elsewhere", ""), (socket.gethostname(), "pid:[1]")])
def test_another_machines_is_taken_over_when_its_heart_stands_still(
    host: str, namespace: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or another container's: nobody here can tell whether such a process lives."""
    naps: list[float] = []
    monkeypatch.setattr(module.time, "monotonic", lambda: float(sum(naps)))
    monkeypatch.setattr(module.time, "sleep", naps.append)
    put(storage, host, ended(), namespace)
    with hold_lease(storage):
        assert module.STALE_S <= sum(naps) <= module.STALE_S + module.BEAT_S


def test_one_that_ends_meanwhile_makes_way(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: storage.delete(LEASE_FILE))
    put(storage, "elsewhere", 1)
    with hold_lease(storage):
        assert storage.read_json(LEASE_FILE)["pid"] == os.getpid()
