"""What the tests of the commands share: a clean environment, a ready MLflow file, free ports."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.config import load as configs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    """No address, token or tracking server of the machine that tests."""
    for name in (
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
        "RAY_API_SERVER_ADDRESS",
        "MLFLOW_TRACKING_URI",
        "SOSTENUTO_COMMIT",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def root(tmp_path, mlflow_template):
    """A storage root whose MLflow file is ready."""
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture
def run_config(root):
    """The `ci` preset in a storage root of its own."""
    return configs.load("ci", [f"storage.root={root}"])


@pytest.fixture
def sostenuto(tmp_path):
    """Runs `python -m jobs` as a user would, in a home of its own; returns the finished process."""

    def run(*words, timeout=120, **environment):
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        variables = os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | environment
        return subprocess.run(
            [sys.executable, "-m", "jobs", *words],
            cwd=ROOT,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
