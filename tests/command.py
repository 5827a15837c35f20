"""Commands as a user gives them, in their own processes."""

import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[1]

MADE_BY_DISTILLATION = ("distill", "sft_longer", "mixed_longer", "evaluation", "summary.json", "report.html")
"""What a quickstart has from its distillation on; the rest is finished before it."""


def environment(home: Path) -> dict[str, str]:
    """A user's environment with an empty home and no cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    home.mkdir(exist_ok=True)
    return kept | {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }


def sostenuto(
    folder: Path, *words: str, timeout_s: float = 280, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`sostenuto <words>` in `folder`, waited for; output and exit code are the caller's to judge.

    It runs on a private Ray, unless `variables` are those of a head (tests/head.py).
    """
    return subprocess.run(
        [sys.executable, "-m", "jobs", *words],
        cwd=folder,
        env=environment(folder / "home") | variables,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def succeed(folder: Path, *words: str, timeout_s: float = 280, **variables: str) -> str:
    """`sostenuto <words>` that must end well; its output."""
    done = sostenuto(folder, *words, timeout_s=timeout_s, **variables)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def start(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """`sostenuto <words>` in its own process group, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *words],
        cwd=folder,
        env=environment(folder / "home") | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver and all it started in its group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def end(process: subprocess.Popen[str], seconds: float = 60) -> None:
    """SIGTERM to this one process; whatever it has started has to end with it."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(seconds)
    _, left = psutil.wait_procs(started, timeout=seconds)
    for child in left:
        child.kill()
    assert not left, f"{process.args} left {left}"


def sent(value: T) -> T:
    """A value as another process of this machine gets it."""
    here, there = multiprocessing.Pipe()
    with here, there:
        here.send(value)
        received: T = there.recv()
    return received


def remove(folder: Path, seconds: float = 10) -> None:
    """Remove a folder into which processes that end may still write."""
    deadline = time.monotonic() + seconds
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that nothing listens on; above Ray's worker range of 10002-19999."""
    for _ in range(100):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = int(server.getsockname()[1])
        if port > 20000:
            return port
    raise RuntimeError("no free port above 20000")


def copy_runs(source: Path, folder: Path, *without: str) -> Path:
    """Copy `source`/runs to `folder`/runs, whose outcomes and MLflow runs name their new place.

    Args:
        source: where commands have run.
        folder: where others go on.
        without: names of files and folders that stay behind.

    Returns:
        `folder`.
    """
    shutil.copytree(source / "runs", folder / "runs", ignore=shutil.ignore_patterns(*without))
    for outcome in (folder / "runs").rglob("outcome.json"):
        outcome.write_text(outcome.read_text().replace(str(source), str(folder)))
    places = (str(source), str(folder))
    with closing(sqlite3.connect(folder / "runs" / "mlflow.db")) as store, store:
        store.execute("update experiments set artifact_location = replace(artifact_location, ?, ?)", places)
        store.execute("update runs set artifact_uri = replace(artifact_uri, ?, ?)", places)
    return folder
