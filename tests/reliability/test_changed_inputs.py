"""What was made from other inputs is refused by name; after a divergence the printed command goes on."""

import json
import re
import shlex
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.command import copy_runs, sostenuto, succeed
from tests.reliability.distillation import last_checkpoint

pytestmark = pytest.mark.long

MADE_OF_THE_TEACHER = ["sft", "mixed", "distill", "sft_longer", "mixed_longer"]


@pytest.mark.timeout(600)
def test_a_stale_chain_is_refused_with_its_names_in_order(finished_quickstart: Path, tmp_path: Path) -> None:
    folder = copy_runs(finished_quickstart, tmp_path)
    anew = ("train", "teacher", "--config", "ci", "--set", "teacher.learning_rate=1e-4")
    assert "other settings" in sostenuto(folder, *anew).stderr
    succeed(folder, *anew, "--fresh")
    for words in (("train", "distill"), ("evaluate",), ("sweep",)):
        refused = sostenuto(folder, *words, "--config", "ci")
        assert refused.returncode == 1
        named = re.findall(r"(\w+) \(", refused.stderr.split("stale in ")[1])
        assert named == MADE_OF_THE_TEACHER
        assert "sft (teacher was trained again since)" in refused.stderr
        assert "--fresh" in refused.stderr
        assert "--allow-stale" in refused.stderr
    listed = json.loads(succeed(folder, "runs", "--config", "ci", "--json"))["stages"]
    assert [state["stage"] for state in listed if state["stale"]] == MADE_OF_THE_TEACHER
    assert "finished (stale)" in succeed(folder, "runs", "--config", "ci")
    succeed(folder, "train", "distill", "--config", "ci", "--allow-stale")
    succeed(folder, "train", "sft", "--config", "ci", "--fresh")
    renewed = sostenuto(folder, "train", "distill", "--config", "ci").stderr
    assert "stale in" in renewed
    assert "sft (" not in renewed


@pytest.mark.timeout(600)
def test_after_a_divergence_the_printed_command_goes_on(prepared: Path, tmp_path: Path) -> None:
    folder, began_ms = copy_runs(prepared, tmp_path), 1000 * int(time.time())
    words = ("train", "distill", "--config", "ci", "--set", "distill.checkpoint_every=4")
    words = (*words, "--set", "distill.skip_steps=[2]", "--set", "distill.steps=4")
    succeed(folder, *words)
    diverging = (*words, "--set", "distill.steps=8", "--set", "distill.learning_rate=10")
    refused = sostenuto(folder, *diverging)
    assert "distill.learning_rate was 5e-05, now 10.0" in refused.stderr
    assert "--resume-changed" in refused.stderr
    diverged = sostenuto(folder, *diverging, "--resume-changed")
    assert diverged.returncode == 1
    told = json.loads((folder / "runs/ci/seed-0/distill/diverged.json").read_text())
    assert (
        f"is not finite at step {told['step']} (windows: long {told['windows']['long'][0]}" in diverged.stderr
    )
    slower, skipping = re.findall(r"sostenuto (train .*?--resume-changed)", diverged.stderr)
    assert f"distill.skip_steps=[2, {told['step']}]" in skipping
    succeed(folder, *shlex.split(slower))
    last = last_checkpoint(folder)
    assert last.name == "step-000008"
    assert json.loads((last / "config.json").read_text())["distill"]["learning_rate"] == 1.0
    changes = json.loads((last / "lineage.json").read_text())["changes"]
    assert [entry["step"] for entry in changes] == [4, 4]
    assert changes[1]["changed"] == {"distill.learning_rate": [10.0, 1.0]}
    with closing(sqlite3.connect(folder / "runs/mlflow.db")) as store:
        tags = dict(store.execute("select key, value from tags where key like '%changed%'"))
        first = store.execute(
            "select value from params where key = 'distill.learning_rate' and value = '5e-05'"
        )
        assert first.fetchall()
        changed = "select run_uuid from tags where key = 'sostenuto.changed.step-000004'"
        steps = f"select step from metrics where key = 'train/loss' and run_uuid in ({changed}) "
        steps += f"and timestamp >= {began_ms}"
        logged = {step for (step,) in store.execute(steps)}
    assert tags["changed.distill.learning_rate"] == "1.0"
    assert "distill.learning_rate was 10.0, now 1.0" in tags["sostenuto.changed.step-000004"]
    assert {1, 2, 4} <= logged
    assert 3 not in logged
