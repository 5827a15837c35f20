"""A cluster from end to end: distillation is submitted, followed, stopped, gone on with, and evaluated."""

import json
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from tests.command import MADE_BY_DISTILLATION, REPOSITORY, copy_runs, environment
from tests.docs.conftest import QUIET, run

STEPS = 40


@pytest.fixture
def runs(finished_quickstart, tmp_path):
    """A storage root in which nothing has been distilled yet."""
    return copy_runs(finished_quickstart, tmp_path, *MADE_BY_DISTILLATION) / "runs"


@pytest.fixture
def submit(head, home, runs):
    """Sends a command as a job; its options come first."""

    def send(*words: str) -> str:
        common = ["--config", "ci", "--set", f"storage.root={runs}", "--set", "tracking.experiment=example"]
        command = [sys.executable, "-m", "jobs", "submit", "--address", head.address, *words, *common]
        return run(command, REPOSITORY, home).stdout

    return send


def saved(runs) -> list[int]:
    """Steps of the checkpoints that are complete."""
    return sorted(int(p.parent.name[5:]) for p in runs.glob("ci/seed-0/distill/step-*/manifest.json"))


def steps_recorded(runs) -> list[int]:
    """Steps whose loss is in MLflow, in the order of recording."""
    chosen = "e.name = 'example' and r.name = 'ci/seed-0/distill' and m.key = 'train/loss'"
    joined = "metrics m join runs r using (run_uuid) join experiments e using (experiment_id)"
    with closing(sqlite3.connect(runs / "mlflow.db")) as store:
        found = store.execute(f"select m.step from {joined} where {chosen} order by m.timestamp").fetchall()
    return [step for (step,) in found]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_stopped_distillation_goes_on_as_another_job_and_is_evaluated(head, home, runs, submit):
    distill = ["train", "distill", "--set", f"distill.steps={STEPS}", "--set", "distill.checkpoint_every=2"]
    submit("--no-wait", "--submission-id", "example-1", *distill)
    follower = subprocess.Popen(
        ["ray", "job", "logs", "--follow", "--address", head.address, "example-1"],
        env=environment(home) | QUIET | {"RAY_AUTH_MODE": "token"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 400
    while len(saved(runs)) < 2:
        assert time.monotonic() < deadline, "no checkpoints appeared"
        assert head.status("example-1") in ("PENDING", "RUNNING")
        time.sleep(0.1)
    head.ask("jobs/example-1/stop", "POST")
    assert head.wait("example-1") == "STOPPED"
    followed, _ = follower.communicate(timeout=120)
    assert re.search(rf"^distill +\d+/{STEPS} ", followed, re.MULTILINE), followed
    assert not (runs / "ci/seed-0/distill/outcome.json").exists()

    kept = saved(runs)[0]
    assert 2 <= kept < STEPS
    output = submit(*distill)
    assert " succeeded" in output
    shown = [int(done) for done in re.findall(rf"^distill +(\d+)/{STEPS} ", output, re.MULTILINE)]
    assert shown[0] >= kept
    assert shown[-1] == STEPS
    recorded = steps_recorded(runs)
    assert recorded[-1] == STEPS
    assert all(recorded.count(step) <= 1 for step in range(1, kept + 1)), "a step was taken twice"
    assert set(range(shown[0], STEPS + 1)) <= set(recorded)

    outcome = json.loads((runs / "ci/seed-0/distill/outcome.json").read_text())
    assert outcome["summary"]["steps"] == STEPS
    assert outcome["checkpoint"].endswith(f"step-{STEPS:06d}")

    table = submit("evaluate")
    assert "mmm_4" in table
    assert " succeeded" in table
    rows = json.loads((runs / "ci/seed-0/evaluation/evaluation.json").read_text())["rows"]
    assert {"mmm_4", "sft_50", "teacher_rollout"} <= set(rows)
    assert rows["mmm_4"]["metrics"]["texture_error"] > 0
    assert (runs / "ci/report.html").stat().st_size > 10_000
