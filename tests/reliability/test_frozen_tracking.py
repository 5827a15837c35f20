"""An MLflow server that stops answering for a minute slows no step, and misses nothing afterwards."""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from jobs import tracking
from tests.command import copy_runs, environment, free_port, start

pytestmark = pytest.mark.long

STEPS, FROZEN_S = 3000, 60
SETTINGS = (f"teacher.steps={STEPS}", f"teacher.checkpoint_every={STEPS}", "teacher.preview_every=0")


@pytest.fixture
def server(tmp_path: Path, mlflow_template: Path) -> Iterator[tuple[str, int]]:
    """Address and process group of a real MLflow server."""
    shutil.copy(mlflow_template, tmp_path / "served.db")
    port = free_port()
    words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--artifacts-destination"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words, str(tmp_path / "artifacts")],
        env=environment(tmp_path / "home") | {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/served.db"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield f"http://127.0.0.1:{port}", process.pid
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.timeout(900)
def test_a_frozen_server_slows_no_step_and_misses_no_value(
    server: tuple[str, int], prepared: Path, tmp_path: Path
) -> None:
    address, group = server
    folder = copy_runs(prepared, tmp_path, "teacher")
    given = [word for text in (*SETTINGS, f"tracking.uri={address}") for word in ("--set", text)]
    client = tracking.client_of(address)
    until(lambda: client.get_experiment_by_name("template") is not None)
    process = start(folder, "train", "teacher", "--config", "ci", *given)

    def points() -> list[tuple[int, int]]:
        (experiment,) = client.search_experiments(filter_string="name = 'sostenuto'") or [None]
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        found = client.get_metric_history(runs[0].info.run_id, "train/loss") if runs else []
        return sorted((point.step, point.timestamp) for point in found)

    until(lambda: len(points()) > 200)
    began = time.time() * 1000
    os.killpg(group, signal.SIGSTOP)
    time.sleep(FROZEN_S)
    os.killpg(group, signal.SIGCONT)
    ended = time.time() * 1000
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "sostenuto track --resend" not in output
    found = points()
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    spans = [(now, now - before) for (_, before), (_, now) in pairwise(found)]
    frozen = [span for now, span in spans if began < now < ended]
    others = [span for now, span in spans if not began < now < ended]
    assert len(frozen) > 100
    assert statistics.mean(frozen) <= 1.1 * statistics.mean(others)
    assert max(frozen) < 2000, "no step waited"


def until(is_so, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while True:
        failure = None
        try:
            if is_so():
                return
        except tracking.failures() as error:
            failure = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {seconds} s") from failure
        time.sleep(0.5)
