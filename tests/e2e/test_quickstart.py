"""Two folders of video in; a generator, its samples and its tracked table out."""

import json
import sqlite3
from pathlib import Path

import pytest

from pipelines.media.video import read_mp4
from tests.command import succeed

SYSTEMS = (
    "mmm_4 mmm_fm_50 sft_50 sft_4 sft_50_longer mixed_50 mixed_50_longer teacher_rollout corpus_long ideal"
).split()
METRICS = (
    "texture_error motion_error sharpness rule caption_accuracy diversity window_frechet video_frechet "
    "pixel_window_frechet unseen_window_frechet unseen_rule nfe seconds_per_video_second"
).split()


@pytest.fixture
def folder(finished_quickstart: Path) -> Path:
    return finished_quickstart


@pytest.mark.timeout(900)
def test_the_summary_holds_every_system_and_metric(folder: Path) -> None:
    summary = json.loads((folder / "runs/ci/summary.json").read_text())
    assert {*SYSTEMS, "wall_seconds", "peak_rss_bytes", "seeds", "config_hash", "config"} == set(summary)
    for system in SYSTEMS:
        assert set(summary[system]) == set(METRICS)
        assert all(len(values) == 1 for values in summary[system].values())
    assert summary["seeds"] == [0]
    assert summary["mmm_4"]["nfe"] == [4]
    assert summary["corpus_long"]["rule"] == [1.0]
    assert 0 < summary["peak_rss_bytes"] < 4 << 30


def test_samples_are_playable_and_have_the_length_of_long(folder: Path) -> None:
    clips = sorted((folder / "runs/ci/samples").glob("*.mp4"))
    assert len(clips) == 6
    assert read_mp4(clips[0]).shape == (32, 64, 64, 3)
    assert (folder / "runs/ci/samples/sheet.png").stat().st_size > 10_000
    captions = [
        json.loads(line) for line in (folder / "runs/ci/samples/metadata.jsonl").read_text().splitlines()
    ]
    assert [c["file_name"] for c in captions] == [c.name for c in clips]


def test_the_output_ends_with_where_to_look(folder: Path) -> None:
    lines = (folder / "output.txt").read_text().splitlines()
    named = {line.split(":")[0] for line in lines[-6:] if ":" in line}
    assert {"clips", "samples", "report", "summary", "runs"} <= named
    assert lines[-1].startswith("done in")
    assert (folder / "runs/ci/report.html").is_file()


def test_every_stage_is_a_run_below_the_quickstart(folder: Path) -> None:
    with sqlite3.connect(folder / "runs/mlflow.db") as store:
        runs = dict(store.execute("select name, status from runs").fetchall())
        logged = {key for (key,) in store.execute("select distinct key from metrics")}
        parameters = {key for (key,) in store.execute("select distinct key from params")}
    stages = ("teacher", "sft", "mixed", "distill", "sft_longer", "mixed_longer")
    assert {f"ci/seed-0/{stage}" for stage in stages} | {"ci/quickstart", "ci/evaluation"} <= set(runs)
    assert set(runs.values()) == {"FINISHED"}
    assert {"train/loss", "train/reverse_kl", "train/diversity"} <= logged
    assert {"loss.reverse_kl_weight", "distill.critic_learning_rate"} <= parameters


def test_every_system_is_a_run_below_the_evaluation_with_the_same_metrics(folder: Path) -> None:
    with sqlite3.connect(folder / "runs/mlflow.db") as store:
        (parent,) = store.execute("select run_uuid from runs where name = 'ci/evaluation'").fetchone()
        children = store.execute(
            "select runs.name, metrics.key, metrics.value from runs join tags using (run_uuid) "
            "join latest_metrics metrics using (run_uuid) "
            "where tags.key = 'mlflow.parentRunId' and tags.value = ?",
            (parent,),
        ).fetchall()
    found: dict[str, dict[str, float]] = {}
    for name, metric, value in children:
        found.setdefault(name, {})[metric] = value
    assert set(found) == {f"ci/seed-0/{system}" for system in SYSTEMS}
    summary = json.loads((folder / "runs/ci/summary.json").read_text())
    for system in SYSTEMS:
        own = found[f"ci/seed-0/{system}"]
        assert own["eval/window_frechet"] == pytest.approx(summary[system]["window_frechet"][0])
        assert own["eval/nfe"] == summary[system]["nfe"][0]


def test_nothing_is_left_in_the_home_folder(folder: Path) -> None:
    fonts = folder / "home" / ".cache" / "matplotlib"
    left = [p for p in (folder / "home").rglob("*") if p.is_file() and fonts not in p.parents]
    assert left == [], "beside matplotlib's list of fonts"


@pytest.mark.timeout(600)
def test_the_same_command_again_does_nothing_twice(folder: Path) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in (folder / "runs/ci").glob("seed-0/*/outcome.json")}
    succeed(folder, "quickstart", "--config", "ci")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


def test_previews_are_filed_with_the_stage_that_made_them(finished_quickstart: Path) -> None:
    filed = {
        p.relative_to(finished_quickstart / "runs/mlartifacts").parts[2:]
        for p in (finished_quickstart / "runs/mlartifacts").rglob("preview/*/*")
    }
    steps = {parts[1] for parts in filed}
    assert {"step-000002", "step-000003"} <= steps
    assert {parts[-1] for parts in filed} >= {"0.mp4", "sheet.png"}
