"""Where the documentation's commands are run: folders with a finished run, a head and a tracking server."""

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command import copy_runs, end, environment, free_port
from tests.docs.shown import all_shown, rewritten
from tests.head import Head

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes of 240 MB that no page needs
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def run(
    command: Sequence[str], folder: Path, home: Path, timeout_s: float = 800, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A command in `folder`, waited for; it has to end well."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(home) | QUIET | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


@pytest.fixture(scope="session")
def home(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the head's token, kept as the documentation says."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(head.token)
    for shown in all_shown():
        if shown.kind in ("token", "chmod"):
            run([word.replace("~", str(home)) for word in shown.words], home, home)
    return home


@pytest.fixture(scope="package")
def folder(finished_quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands, with a finished run in runs/."""
    return copy_runs(finished_quickstart, tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="package")
def own_folder(finished_quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user of two own folders stands; evaluation without the world's truth is another one."""
    return copy_runs(finished_quickstart, tmp_path_factory.mktemp("own"), "evaluation", "summary.json")


@pytest.fixture(scope="package")
def places(folder: Path) -> dict[str, str]:
    """What stands for the documentation's folders, addresses and ports while nothing runs."""
    world, nowhere = folder / "runs" / "ci" / "world", f"http://127.0.0.1:{free_port()}"
    roots = dict.fromkeys(("/mnt/runs", "/tmp/sostenuto-runs", "s3://bucket/runs"), str(folder / "runs"))
    corpora = {"/mnt/short": str(world / "short"), "/mnt/long": str(world / "long")}
    addresses = {"http://127.0.0.1:8265": nowhere, "http://mlflow.internal:5000": nowhere}
    ports = {"5000": str(free_port()), "0.0.0.0": "127.0.0.1"}
    return roots | corpora | addresses | ports | {"/mnt/mlflow": str(folder / "mlflow")}


@contextmanager
def serving(words: Sequence[str], places: dict[str, str], folder: Path, home: Path) -> Iterator[str]:
    """The address of `mlflow ui` or `mlflow server`, which answers for the length of a `with` block."""
    (folder / "mlflow").mkdir(exist_ok=True)
    command = rewritten(words, places)
    command += [] if "--workers" in command else ["--workers", "1"]
    command += [] if "--port" in command else ["--port", str(free_port())]
    address = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    with (folder / "mlflow" / "log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(home) | QUIET, stdout=log, stderr=log, text=True
        )
        try:
            _wait_for(f"{address}/health", process, folder / "mlflow" / "log")
            yield address
        finally:
            end(process)


def _wait_for(address: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@pytest.fixture(scope="package")
def tracking_server(places: dict[str, str], folder: Path, home: Path) -> Iterator[str]:
    """The documentation's `mlflow server`."""
    words = next(shown.words for shown in all_shown() if shown.words[:2] == ["mlflow", "server"])
    with serving(words, places, folder, home) as address:
        yield address
