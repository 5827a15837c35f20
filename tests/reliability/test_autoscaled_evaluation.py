"""An evaluation on a cluster that grows for it, loses an actor and a node, and shrinks: no digit changes."""

import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipelines.evaluation.kept import MEASURED
from tests.command import copy_runs, kill, start, succeed
from tests.head import Head, end_head, start_head
from tests.reliability.evaluation import WORDS, figures

pytestmark = [pytest.mark.long, pytest.mark.kill]

NODES = {"evaluate": {"resources": {"CPU": 1, "object_store_memory": 80 << 20}, "max_workers": 3}}
ACTORS = ("--set", "evaluation.min_actors=2", "--set", "evaluation.max_actors=3")


@pytest.fixture
def head() -> Iterator[Head]:
    """A head that takes no work, on a cluster of nodes with a CPU each."""
    found = start_head(Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp")), secrets.token_hex(32), NODES)
    yield found
    end_head(found)


def alive(head: Head) -> dict[int, psutil.Process]:
    """The raylets of the head's nodes, without its own."""
    found = {}
    for process in psutil.Process(head.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            own = process.ppid() == head.pid
            if process.name() == "raylet" and not own and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
    return found


def actors(raylet: psutil.Process) -> list[psutil.Process]:
    """Evaluation's actors on a node."""
    with suppress(psutil.NoSuchProcess):
        return [one for one in raylet.children(recursive=True) if "MapWorker" in " ".join(one.cmdline())]
    return []


def wait_until(done: Callable[[], bool], what: str, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.timeout(2400)
def test_a_cluster_grows_for_an_evaluation_and_what_it_loses_changes_no_digit(
    finished_quickstart: Path, tmp_path: Path, head: Head
) -> None:
    folder = copy_runs(finished_quickstart, tmp_path / "cluster", "evaluation")
    measured = folder / "runs/ci/seed-0/evaluation" / MEASURED
    assert not alive(head), "nothing is asked for yet"
    process = start(folder, *WORDS, *ACTORS, **head.variables)
    most, over = [0], threading.Event()

    def count() -> None:
        while not over.wait(0.2):
            most[0] = max(most[0], len(alive(head)))

    counter = threading.Thread(target=count, daemon=True)
    counter.start()

    def batches() -> int:
        assert process.poll() is None, process.stdout and process.stdout.read()
        return len(list(measured.glob("*.safetensors")))

    def busy() -> list[psutil.Process]:
        return [raylet for raylet in alive(head).values() if actors(raylet)]

    try:
        wait_until(lambda: batches() >= 5 and bool(busy()), "nothing was measured")
        actors(busy()[0])[0].kill()
        before = batches()
        wait_until(lambda: batches() >= before + 5 and bool(busy()), "nothing came after an actor was lost")
        busy()[0].kill()
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    finally:
        over.set()
        if process.poll() is None:
            kill(process)
    counter.join()
    assert 2 <= most[0] <= NODES["evaluate"]["max_workers"]
    wait_until(lambda: not alive(head), "idle nodes stayed")

    undisturbed = copy_runs(finished_quickstart, tmp_path / "undisturbed", "evaluation")
    succeed(undisturbed, *WORDS, timeout_s=900)
    assert figures(folder) == figures(undisturbed)
