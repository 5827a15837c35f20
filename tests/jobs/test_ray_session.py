"""A private Ray: enough logical CPUs, a token, and nothing left behind."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import ray_session
from models.errors import ClusterError
from pipelines.storage import temporary_folder
from pipelines.training.config import ClusterConfig
from tests.jobs.conftest import ROOT


def test_small_machines_count_enough_cpus(monkeypatch):
    monkeypatch.setattr(ray_session.os, "cpu_count", lambda: 2)
    assert ray_session.logical_cpus(ClusterConfig()) == 4
    assert ray_session.logical_cpus(ClusterConfig(num_workers=6)) == 8
    assert ray_session.logical_cpus(ClusterConfig(logical_cpus=5)) == 5


def test_workers_get_one_thread_and_the_tracking_server(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    found = ray_session.worker_environment()
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert found["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7", "what the user has set stays"
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.parametrize(
    ("environment", "file", "mode"),
    [
        ({}, False, None),
        ({}, True, "token"),
        ({"RAY_AUTH_TOKEN": "x"}, False, "token"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "disabled"),
    ],
)
def test_the_token_mode_is_set_where_a_token_is_at_hand(tmp_path, monkeypatch, environment, file, mode):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ray_session.Path, "home", lambda: tmp_path)
    if file:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("x")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray_session.require_token_mode()
    assert os.environ.get("RAY_AUTH_MODE") == mode


PRIVATE = """
import os, subprocess, tempfile
import ray
from jobs.ray_session import ray_session
from pipelines.ray_map import Pool, ray_map_all
from pipelines.training.config import ClusterConfig

@ray.remote
def look():
    return os.environ["RAY_AUTH_MODE"], os.environ["OMP_NUM_THREADS"]

@ray.remote(max_retries=1)
def die():
    os._exit(1)

def show():
    print(*ray.get(look.remote()), ray.cluster_resources()["CPU"], ray.get_runtime_context().gcs_address)

with ray_session(ClusterConfig()):
    show()
with ray_session(ClusterConfig()):
    show()
    print(ray_map_all(abs, [-1, 2], Pool(1, 1)))
    try:
        ray.get(die.remote())
    except ray.exceptions.WorkerCrashedError:
        print("told")
print(sorted(os.listdir(os.environ["HOME"])), sorted(os.listdir(tempfile.gettempdir())))
try:
    look.remote()
except Exception as error:
    print(type(error).__name__, ray.is_initialized())
"""
"""Two private Rays, one after the other; in the second a worker dies."""


@contextmanager
def empty_places(home):
    """A user's environment with an empty home and an empty TMPDIR, whose path is short enough for Ray."""
    temporary = tempfile.mkdtemp(prefix="t", dir="/tmp")
    yield {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": temporary, "PYTHONPATH": str(ROOT)}
    shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def own(tmp_path):
    with empty_places(tmp_path) as environment:
        yield environment


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """What PRIVATE prints, on stdout and on stderr, and the processes that it leaves."""
    with empty_places(tmp_path_factory.mktemp("home")) as environment:
        done = subprocess.run(
            [sys.executable, "-c", PRIVATE],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr.splitlines(), processes_with(environment["TMPDIR"])


def test_a_private_ray_asks_for_a_token_and_leaves_nothing(private):
    (first, second, *_, left, late), _, alive = private
    assert first.split()[:2] == second.split()[:2] == ["token", "1"]
    assert float(first.split()[2]) >= 4
    assert left == "[] []"
    assert late.split()[-1] == "False", "a call after the end starts another Ray"
    assert not alive


DIED = "A worker died or was killed while executing a task by an unexpected system error"
OOM = "2 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed"
GONE = "The node with node id: 01ab and address: 10.0.0.7 has been marked dead because it is gone"
TASK = "Task ingest failed. There are 2 retries remaining, so the task will be retried. Error: the node died."


def test_what_befalls_a_worker_is_one_sentence(private):
    (_, _, mapped, caught, *_), (first, *more), _ = private
    assert (mapped, caught) == ("[1, 2]", "told")
    assert first == f"ray: {DIED}"
    assert set(more) <= {"ray: Task die failed", "ray: Task die failed and is tried again"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{DIED}. To troubleshoot the problem, see the logs. Lease ID: 01", DIED),
        (f"{OOM}.\nRefer to the documentation", OOM),
        (GONE, GONE),
        (TASK, "Task ingest failed and is tried again"),
    ],
)
def test_ray_speaks_in_sentences_and_each_once(text, sentence, capsys, monkeypatch):
    speak = ray_session.Sentences()
    for _ in range(3):
        speak({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capsys.readouterr().err == f"ray: {sentence}\n"
    monkeypatch.setattr(ray_session, "SPOKEN_AGAIN_S", 0.0)
    speak({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capsys.readouterr().err == f"ray: {sentence}\n", "later it is news"


KILLED = """
import os, signal
from jobs.ray_session import ray_session
from pipelines.training.config import ClusterConfig

with ray_session(ClusterConfig()):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
def test_what_a_killed_command_leaves_goes_when_its_ray_has_ended(own):
    temporary = own["TMPDIR"]
    subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=own, timeout=180, check=False)
    assert len(os.listdir(temporary)) == 2
    deadline = time.monotonic() + 120
    while os.listdir(temporary):
        assert time.monotonic() < deadline
        with temporary_folder(temporary):
            time.sleep(0.5)
        assert os.listdir(temporary) or not processes_with(temporary), "a living Ray keeps its folder"


def test_what_libraries_write_while_ray_starts_is_not_lost(capfd):
    with ray_session._stderr_without("Set ray log level"):
        os.write(2, b"I: Set ray log level to 3\nF: a check failed\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "F: a check failed\nafterwards\n"


def processes_with(word):
    """Processes whose command line holds a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += [path.parent.name] if word in path.read_text(errors="replace") else []
        except OSError:
            continue
    return found


def test_a_cluster_that_is_not_there_is_a_line_with_the_remedy(monkeypatch):
    def refuse(**_named):
        raise ConnectionError("no route")

    import ray

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(ClusterError, match=r"10\.0\.0\.1:6379 cannot be joined: no route"),
        ray_session.ray_session(ClusterConfig()),
    ):
        pass
