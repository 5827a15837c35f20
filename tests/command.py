"""Commands as a user gives them, in their own processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def environment(home: Path) -> dict[str, str]:
    """A user's environment with an empty home and no cluster."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    home.mkdir(exist_ok=True)
    return kept | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def longtake(folder: Path, *words: str, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
    """`longtake <words>` in `folder`, waited for; output and exit code are the caller's to judge."""
    return subprocess.run(
        [sys.executable, "-m", "jobs", *words],
        cwd=folder,
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def succeed(folder: Path, *words: str) -> str:
    """`longtake <words>` that must end well; its output."""
    done = longtake(folder, *words)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`longtake <words>` in its own process group, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *words],
        cwd=folder,
        env=environment(folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver and all it started in its group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
