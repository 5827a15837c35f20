"""Kill the making of a dataset wherever it stands: the command, given again, ends with the same bytes."""

import json
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from pipelines.storage import file_sha256
from pipelines.synthesis import METADATA
from tests.command import copy_runs, kill, start, succeed

pytestmark = [pytest.mark.kill, pytest.mark.long, pytest.mark.timeout(1500)]

COUNT, KILLS = 750, 5
MOST = 300
"""A command is killed after at most so many clips, and so in its first part or in the second."""
WORDS = ("sample", "--config", "ci", "--count", str(COUNT), "--captions-from", "world", "--dataset", "made")


def test_a_dataset_killed_five_times_is_the_unbroken_one(finished_quickstart: Path, tmp_path: Path) -> None:
    broken = copy_runs(finished_quickstart, tmp_path / "broken", "evaluation")
    moments = random.Random(20)
    for _ in range(KILLS):
        process = start(broken, *WORDS)
        wait_for_clips(process, broken / "made", moments.randint(1, MOST))
        time.sleep(moments.uniform(0.0, 0.2))
        assert process.poll() is None, "it ended before it could be killed"
        kill_all(process)
    assert not (broken / "made" / METADATA).exists()
    succeed(broken, *WORDS, timeout_s=600)

    unbroken = copy_runs(finished_quickstart, tmp_path / "unbroken", "evaluation")
    succeed(unbroken, *WORDS, timeout_s=600)
    made = checksums(broken / "made")
    assert made == checksums(unbroken / "made")
    rows = [json.loads(line) for line in (broken / "made" / METADATA).read_text().splitlines()]
    assert [row["sample"] for row in rows] == list(range(COUNT))
    assert {row["file_name"] for row in rows} == {name for name in made if name.endswith(".mp4")}


def wait_for_clips(process: subprocess.Popen[str], folder: Path, count: int, seconds: float = 280) -> None:
    """Until a running command has written so many clips below `folder`."""
    begun, deadline = time.time(), time.monotonic() + seconds
    while sum(path.stat().st_mtime > begun for path in folder.glob("clips/*/*.mp4")) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "too little was made"
        time.sleep(0.05)


def kill_all(process: subprocess.Popen[str], seconds: float = 60) -> None:
    """Kill a command, and wait for its workers, which write on until they see that their Ray is gone."""
    workers = psutil.Process(process.pid).children(recursive=True)
    kill(process)
    _, left = psutil.wait_procs(workers, timeout=seconds)
    assert not left


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file by its path, hidden and unfinished ones included."""
    return {
        path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()
    }
