"""Kill an evaluation: the same command, given again, measures only what is missing, to the same figures."""

import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.evaluation.kept import MEASURED
from tests.command import copy_runs, kill, start, succeed
from tests.reliability.evaluation import WORDS, figures

pytestmark = pytest.mark.long

ENOUGH = 10
"""Batches that are measured when the driver and all of its workers are killed."""


@pytest.mark.timeout(1500)
def test_a_killed_evaluation_keeps_what_it_has_measured(finished_quickstart: Path, tmp_path: Path) -> None:
    folder = copy_runs(finished_quickstart, tmp_path / "killed", "evaluation")
    measured = folder / "runs/ci/seed-0/evaluation" / MEASURED
    process = start(folder, *WORDS)
    deadline = time.monotonic() + 300
    while len(list(measured.glob("*.safetensors"))) < ENOUGH:
        assert time.monotonic() < deadline, "nothing was measured"
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    kill(process)
    assert not (measured.parent / "evaluation.json").exists()
    held = {path: path.stat().st_mtime_ns for path in measured.glob("*.safetensors")}

    seen = defaultdict[Path, set[int]](set)
    again = start(folder, *WORDS)
    while again.poll() is None:
        for path in measured.glob("*.safetensors"):
            with suppress(FileNotFoundError):
                seen[path].add(path.stat().st_mtime_ns)
        time.sleep(0.02)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert {path: seen[path] for path in held} == {path: {stamp} for path, stamp in held.items()}
    assert len(seen) > len(held)
    assert not measured.exists(), "it is stored with the result"

    undisturbed = copy_runs(finished_quickstart, tmp_path / "undisturbed", "evaluation")
    succeed(undisturbed, *WORDS, timeout_s=600)
    assert figures(folder) == figures(undisturbed)
