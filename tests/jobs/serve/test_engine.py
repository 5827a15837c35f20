"""Ray Serve makes the clips, and a replica that is killed loses none."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.serve.engine import deployed
from jobs.serve.queue import Make
from tests.jobs.serve.tiny_run import LONG, ended, serving, wanted

pytestmark = [pytest.mark.slow, pytest.mark.kill, pytest.mark.timeout(900)]
BEFORE = 24
"""Clips of a request that is killed in its middle."""


@pytest.fixture
def make(run: RunConfig, ray_local: None) -> Iterator[Make]:
    with deployed(run) as make:
        yield make


def replicas() -> list[psutil.Process]:
    """Processes that hold a Studio."""
    every = psutil.process_iter(["cmdline"])  # no words of a process that has just ended
    return [one for one in every if "ServeReplica" in "".join((one.info["cmdline"] or [])[:1])]


def test_a_killed_replica_loses_nothing(run: RunConfig, make: Make) -> None:
    with serving(run, make) as client:
        long = client.post("/api/jobs", json=wanted(systems=["sft"], seeds=BEFORE, steps=60)).json()["id"]
        next_one = client.post("/api/jobs", json=wanted()).json()["id"]
        folder = Path(RunPaths.of(run).serve) / "jobs" / long
        deadline = time.monotonic() + 200
        while not (made := sorted(folder.glob("sft-*.json"))):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        before = {path: path.stat().st_mtime_ns for path in made}
        (replica,) = replicas()
        os.kill(replica.pid, signal.SIGKILL)
        told = ended(client, long, 400)
        assert told["state"] == "done", told
        assert [clip["frames"] for clip in told["clips"]] == [LONG] * BEFORE
        assert {path: path.stat().st_mtime_ns for path in made} == before
        assert len(before) < BEFORE, "it was killed too late to be taken up again"
        assert ended(client, next_one, 100)["state"] == "done"
        (after,) = replicas()
        assert after.pid != replica.pid
