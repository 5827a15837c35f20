"""Requests keep their order, none is lost, and what dies is taken up again or told."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.serve.history import CANCEL, History
from jobs.serve.queue import ATTEMPTS
from jobs.serve.studio import Outcome
from models.errors import ClusterError
from tests.jobs.serve.tiny_run import ended, make_run, serving, wanted


class Replica:
    """Stands for Ray Serve: makes nothing, and dies as often as it is told to."""

    def __init__(self, deaths: int = 0) -> None:
        self.began: list[str] = []
        self.deaths = deaths
        self.go_on = threading.Event()
        self.go_on.set()

    async def __call__(self, job: str, _: str) -> Outcome:
        self.began.append(job)
        await asyncio.to_thread(self.go_on.wait, 30)
        if self.deaths:
            self.deaths -= 1
            raise RuntimeError("the actor died because its worker process was killed")
        return "done", ""


def test_fifty_at_once_are_all_made_in_their_order(run: RunConfig) -> None:
    replica = Replica()
    with serving(run, replica) as client, ThreadPoolExecutor(50) as people:
        asked = range(50)
        answers = list(people.map(lambda seed: client.post("/api/jobs", json=wanted(seed=seed)), asked))
        assert [answer.status_code for answer in answers] == [201] * 50
        told = [ended(client, answer.json()["id"]) for answer in answers]
        assert {one["state"] for one in told} == {"done"}
        assert sorted(one["wanted"]["seed"] for one in told) == list(asked)
        order = [one["id"] for one in sorted(told, key=lambda one: one["number"])]
        assert replica.began == order
        assert [one["id"] for one in client.get("/api/jobs?count=100").json()] == order[::-1]
        second = client.get(f"/api/jobs?count=20&before={told[0]['number'] + 1}").json()
        assert second[0]["id"] == told[0]["id"]


def test_those_that_wait_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    replica = Replica()
    replica.go_on.clear()
    with serving(make_run(tmp_path, "serve.queue_length=2"), replica) as client:
        first = client.post("/api/jobs", json=wanted()).json()["id"]
        while not replica.began:
            client.get("/api")
        places = [client.post("/api/jobs", json=wanted()).json()["position"] for _ in range(2)]
        full = client.post("/api/jobs", json=wanted())
        assert places == [0, 1]
        assert (full.status_code, "2 requests are waiting" in full.json()["error"]) == (429, True)
        replica.go_on.set()
        assert ended(client, first)["state"] == "done"


def test_a_request_of_a_dead_replica_is_taken_up_again_before_others(run: RunConfig) -> None:
    replica = Replica(deaths=1)
    replica.go_on.clear()
    with serving(run, replica) as client:
        first, second = (client.post("/api/jobs", json=wanted()).json()["id"] for _ in range(2))
        replica.go_on.set()
        assert ended(client, second)["state"] == "done"
        assert replica.began == [first, first, second]


def test_a_request_that_kills_every_replica_fails_with_why(run: RunConfig) -> None:
    replica = Replica(deaths=ATTEMPTS)
    with serving(run, replica) as client:
        told = ended(client, client.post("/api/jobs", json=wanted()).json()["id"])
        assert told["state"] == "failed"
        assert "died 2 times: the actor died because its worker process was killed" in told["error"]
        assert ended(client, client.post("/api/jobs", json=wanted()).json()["id"])["state"] == "done"


@pytest.fixture
def waiting(run: RunConfig) -> Iterator[tuple[Replica, RunConfig]]:
    replica = Replica()
    replica.go_on.clear()
    yield replica, run
    replica.go_on.set()


def test_what_waits_or_is_made_can_be_cancelled(waiting: tuple[Replica, RunConfig]) -> None:
    replica, run = waiting
    with serving(run, replica) as client:
        first, second = (client.post("/api/jobs", json=wanted()).json()["id"] for _ in range(2))
        assert client.post(f"/api/jobs/{second}/cancel").json()["state"] == "cancelled"
        assert client.delete(f"/api/jobs/{first}").status_code == 409
        client.post(f"/api/jobs/{first}/cancel")
        marker = Path(RunPaths.of(run).serve) / "jobs" / first / CANCEL
        assert marker.exists(), "the replica looks for it at every evaluation"
        replica.deaths = 1
        replica.go_on.set()
        assert ended(client, first)["state"] == "cancelled", "a replica that dies then is not tried again"
        assert not marker.exists()
        assert replica.began == [first]
        assert client.delete(f"/api/jobs/{second}").status_code == 204
        assert client.get(f"/api/jobs/{second}").status_code == 404


def test_one_server_holds_a_history(tmp_path: Path) -> None:
    history = History(tmp_path)
    with pytest.raises(ClusterError, match="another server works in"):
        History(tmp_path)
    history.close()
    History(tmp_path).close()
