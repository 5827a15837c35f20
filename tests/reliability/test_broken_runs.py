"""Runs that are broken on purpose are named within a fifth of their steps, in what training leaves behind."""

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from pipelines.storage import Storage
from pipelines.training.monitors.series import ABOUT, FOLDER, read_series
from pipelines.training.monitors.verdicts import Facts, judge
from tests.command import copy_runs, sostenuto, succeed

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

STEPS = 40
QUICK = ("steps={}", "log_every=2", "watch_every=2", "preview_every=0", "checkpoint_every=1000")
BROKEN = {
    "critic rate 0": ("distill", ("distill.critic_learning_rate=1e-12",), "critic_moves"),
    "critic rate x 100": ("distill", ("distill.critic_learning_rate=5e-2",), "critic_loss"),
    "no FM loss": (
        "distill",
        ("loss.flow_matching_weight=0", "loss.anchor_weight=0", "distill.learning_rate=1e-3"),
        "layout_loss",
    ),
    "guidance 200": ("distill", ("loss.guidance_scale=200",), "guidance"),
    "times of a toy": ("sft", ("sft.t_mean=6",), "shift"),
    "teacher too poor": ("distill", ("distill.teacher_gate_ratio=0.1",), "teacher"),
}
"""What is wrong: the stage, its settings, and the verdict that names it. This teacher hardly knows captions
yet, so guidance has to be that strong."""


def train(folder: Path, stage: str, *settings: str, steps: int = STEPS) -> None:
    """With enough windows for the critic that its loss is no matter of chance."""
    settings = ("distill.critic_batch=32", *settings)
    given = [*(f"{stage}.{setting.format(steps)}" for setting in QUICK), *settings]
    succeed(folder, "train", stage, "--config", "ci", "--fresh", *(w for s in given for w in ("--set", s)))


def named(folder: Path, stage: str) -> set[str]:
    """What is not well after a fifth of the stage's steps."""
    own = Storage(folder / f"runs/ci/seed-0/{stage}")
    facts, series = Facts(**own.read_json(f"{FOLDER}/{ABOUT}")), read_series(own)
    series.forget(facts.steps // 5)
    return {verdict.name for verdict in judge(facts, series.curves) if not verdict.well}


def logged(folder: Path) -> Counter[int]:
    """How often MLflow was told each step's loss of a distillation."""
    with closing(sqlite3.connect(folder / "runs/mlflow.db")) as store:
        found = store.execute(
            "select step from metrics join runs using (run_uuid) "
            "where name = 'ci/seed-0/distill' and key = 'train/loss'"
        )
        return Counter(step for (step,) in found)


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(name: str, prepared: Path, tmp_path: Path) -> None:
    stage, settings, verdict = BROKEN[name]
    copy_runs(prepared, tmp_path)
    train(tmp_path, stage, *settings)
    assert verdict in named(tmp_path, stage)
    shown = json.loads(succeed(tmp_path, "watch", "--config", "ci", "--stage", stage, "--json"))
    assert shown["stages"][0]["step"] == STEPS


def test_a_sound_run_is_not_blamed(prepared: Path, tmp_path: Path) -> None:
    copy_runs(prepared, tmp_path)
    train(tmp_path, "distill")
    assert not named(tmp_path, "distill") & {verdict for _, _, verdict in BROKEN.values()}


def test_a_verdict_of_stop_on_ends_a_stage_that_goes_on_without_it(prepared: Path, tmp_path: Path) -> None:
    copy_runs(prepared, tmp_path)
    words = (
        "train",
        "distill",
        "--config",
        "ci",
        "--set",
        "distill.steps=8",
        "--set",
        "loss.guidance_scale=200",
    )
    stopped = sostenuto(tmp_path, *words, "--set", "distill.stop_on=[guidance]")
    assert stopped.returncode == 1
    assert "distill has stopped after step 1, for it is not well" in stopped.stderr
    assert "lower loss.guidance_scale" in stopped.stderr
    before = logged(tmp_path)
    succeed(tmp_path, *words)
    after = logged(tmp_path)
    assert after[1] == before[1], "it does not begin anew"
    assert after[8] == before[8] + 1


def test_one_batch_again_and_again_is_learned_by_heart(prepared: Path, tmp_path: Path) -> None:
    """As many SHORT windows as a batch has, the others held out."""
    copy_runs(prepared, tmp_path)
    data = ("--config", "ci", "--set", "data.holdout=0.7")
    succeed(tmp_path, "ingest", *data)
    train(tmp_path, "teacher", "data.holdout=0.7", "teacher.short_batch=4", steps=500)
    assert "held_out_loss" in named(tmp_path, "teacher")
