"""Temporary files are private, gone when closed, and outlive a killed owner only until the next is made."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines import temporary as module
from pipelines.temporary import PREFIX, temporary_file
from tests.command import REPOSITORY


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty; whatever lies there is old enough."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "YOUNG_S", -1.0)
    return tmp_path


def test_a_file_is_private_and_gone_when_it_is_closed(folder: Path) -> None:
    with temporary_file(".mp4") as file:
        path = Path(file.name)
        assert path.parent == folder
        assert path.suffix == ".mp4"
        assert path.stat().st_mode & 0o077 == 0
    assert os.listdir(folder) == []


OWNER = "import sys, time; from pipelines.temporary import temporary_file; file = temporary_file(); "
OWNER += "print(file.name, flush=True); time.sleep(60)"


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(folder: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        held = Path(owner.stdout.readline().strip())
        with temporary_file():
            assert held.exists(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
    assert held.exists(), "nobody has cleared up yet"
    with temporary_file() as file:
        assert os.listdir(folder) == [Path(file.name).name]


def test_a_young_file_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may not have come to lock it."""
    monkeypatch.setattr(module, "YOUNG_S", 60.0)
    (folder / f"{PREFIX}new").touch()
    with temporary_file():
        assert (folder / f"{PREFIX}new").exists()


def test_other_files_and_what_links_point_at_stay(folder: Path) -> None:
    (folder / "sostenuto-ray").touch()
    (folder / f"{PREFIX}link").symlink_to(folder / "sostenuto-ray")
    os.mkfifo(folder / f"{PREFIX}pipe")
    with temporary_file():
        assert (folder / "sostenuto-ray").exists()
