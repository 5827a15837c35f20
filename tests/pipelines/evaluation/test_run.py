"""A whole evaluation on Ray: rows, kept references, report and summary."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from models.config import SamplingConfig, TextConfig
from models.errors import CheckpointError, ConfigError
from pipelines.checkpoints import MANIFEST_FILE
from pipelines.evaluation import generate as generating
from pipelines.evaluation import reference as references
from pipelines.evaluation import run as running
from pipelines.evaluation.claims import Claim, judge
from pipelines.evaluation.kept import MEASURED, forget
from pipelines.evaluation.report.page import write_report
from pipelines.evaluation.report.summary import MINUTE_KEYS, WORLD_KEYS, cell, remarks, table, write_summary
from pipelines.evaluation.run import Evaluation, evaluate
from pipelines.evaluation.settings import System
from pipelines.media.video import read_mp4
from pipelines.world.captions import COLOURS


def systems_of(networks):
    return [
        System("mmm_4", networks["student"], "dm", "few_step", 4, 2),
        System("sft_50", networks["student"], "fm", "ode", 5),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def phases():
    return []


@pytest.fixture(scope="module")
def result(ray_local, settings, networks, folder, phases):
    out = str(folder / "seed-0/evaluation")
    return evaluate(systems_of(networks), settings, out, lambda *told: phases.append(told))


def test_every_system_and_the_real_videos_have_a_row(result):
    assert list(result.rows) == ["mmm_4", "sft_50", "corpus_long", "ideal"]
    for name in ("mmm_4", "sft_50", "ideal"):
        assert all(result.rows[name].metrics[key] is not None for key in WORLD_KEYS)
    assert result.rows["ideal"].metrics["rule"] == 1
    assert result.rows["corpus_long"].metrics["rule"] >= 0.8
    assert result.rows["ideal"].metrics["sharpness"] == pytest.approx(1, abs=0.03)
    assert result.rows["mmm_4"].metrics["nfe"] == 4
    assert result.rows["sft_50"].metrics["nfe"] == 5
    assert result.rows["mmm_4"].metrics["window_frechet"] > 3 * result.rows["ideal"].metrics["window_frechet"]


def test_few_videos_are_told(result):
    assert any("mostly bias" in note for note in result.notes)


def test_every_showcase_video_is_there(result):
    for paths in result.clips.values():
        assert [read_mp4(path).shape for path in paths] == [(32, 64, 64, 3)] * 2


def test_the_result_survives_json(result):
    stored = json.loads(json.dumps(result.to_json()))
    assert Evaluation.from_json(stored) == result


@pytest.fixture
def in_this_process(monkeypatch):
    """Work of an evaluation is done here, in turn, and not by workers of Ray."""
    for module in (generating, references, running):
        monkeypatch.setattr(module, "ray_map_all", lambda work, items, *_: [work(item) for item in items])
    generating._generator.cache_clear()
    yield
    generating._generator.cache_clear()


def figures(made):
    """All numbers of an evaluation but times."""
    return {
        name: (
            {key: value for key, value in row.metrics.items() if "seconds" not in key},
            row.distances,
            row.findings,
            {key: value for key, value in row.resampled.items() if "seconds" not in key},
        )
        for name, row in made.rows.items()
    }


def test_what_a_stopped_evaluation_has_measured_is_not_measured_again(
    in_this_process, settings, networks, tmp_path
):
    """The second system cannot be read; when it can, the first one's weights are gone and not missed."""
    for name in ("first", "second"):
        shutil.copytree(networks["student"], tmp_path / name)
    first = System("first", str(tmp_path / "first"), "fm", "ode", 5)
    second = System("second", str(tmp_path / "second"), "dm", "few_step", 4)
    counted = dataclasses.replace(
        settings, evaluation=dataclasses.replace(settings.evaluation, draws=1, resamples=2)
    )
    whole = evaluate([first, second], counted, str(tmp_path / "whole"))
    weights = {name: tmp_path / name / "student.average.safetensors" for name in ("first", "second")}
    held = weights["second"].read_bytes()
    weights["second"].write_bytes(b"")
    out = str(tmp_path / "stopped")
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate([first, second], counted, out)
    kept = list((tmp_path / "stopped" / MEASURED).iterdir())
    assert {path.name.split("-")[0] for path in kept} == {"first"}
    weights["second"].write_bytes(held)
    weights["first"].write_bytes(b"")
    assert figures(evaluate([first, second], counted, out)) == figures(whole)
    assert {path.name.split("-")[0] for path in (tmp_path / "stopped" / MEASURED).glob("*.json")} == {
        "first",
        "second",
        "corpus_long",
        "ideal",
    }
    weights["second"].write_bytes(b"")
    assert figures(evaluate([first, second], counted, out)) == figures(whole), "nothing is left to do"
    for other in (
        dataclasses.replace(counted, seed=1),
        dataclasses.replace(counted, evaluation=dataclasses.replace(counted.evaluation, temporal_videos=3)),
    ):
        with pytest.raises(CheckpointError, match="damaged"):
            evaluate([first], other, out)
    with (tmp_path / "first" / MANIFEST_FILE).open("a") as manifest:
        manifest.write("\n")
    with pytest.raises(CheckpointError, match="damaged"):
        evaluate([first], counted, out)
    forget(out)
    assert not (tmp_path / "stopped" / MEASURED).exists()


def test_progress_counts_to_the_whole(result, phases):
    for name in ("real videos", "videos"):
        _, done, whole = [told for told in phases if told[0] == name][-1]
        assert done == whole > 0


class Seen:
    """In place of I3D: noise around the mean colour of each window."""

    dim = 400

    def __init__(self, rule):
        self.rule, self.shape = rule, (rule.count, 400)

    def __call__(self, frames):
        windows = [frames.numpy()[numbers] / 255.0 for numbers in self.rule.windows(len(frames))]
        return np.array([np.resize(w.mean((0, 1, 2)), 400) + w.std() for w in windows], dtype=np.float32)


def test_i3d_sees_systems_and_real_videos_where_it_is_wanted(
    result, settings, networks, folder, in_this_process, monkeypatch, tmp_path
):
    for module in (generating, references):
        monkeypatch.setattr(module, "i3d_features", lambda plan, device: Seen(plan.rule))
    wanted = dataclasses.replace(settings.evaluation, fvd=True, fvd_videos=5, few=True, draws=1)
    seeing = dataclasses.replace(settings, evaluation=wanted, references=str(tmp_path))
    made = evaluate(systems_of(networks)[:1], seeing, str(folder / "i3d"))
    for row in made.rows.values():
        for name in ("fvd", "kvd", "mmd_jedi", "inception_score"):
            found = row.distances[name]
            assert (found.n, found.reference) == (10, 10)
            assert found.floor == made.rows["ideal"].metrics[name]
            assert row.metrics[f"{name}.floor"] == found.floor
        assert len(row.metrics["kvd_by_position"]) == 2
    assert made.rows["mmm_4"].metrics["fvd"] > made.rows["ideal"].metrics["fvd"]
    assert Evaluation.from_json(json.loads(json.dumps(made.to_json()))).rows.keys() == made.rows.keys()


def test_references_are_kept_and_more_actors_change_nothing(result, settings, networks, folder, phases):
    phases.clear()
    more = dataclasses.replace(
        settings, evaluation=dataclasses.replace(settings.evaluation, max_actors=2, batch_size=5, showcase=2)
    )
    again = evaluate(systems_of(networks), more, str(folder / "again"), lambda *told: phases.append(told))
    assert not [told for told in phases if told[0] == "real videos"]
    for name, row in result.rows.items():
        for metric in set(WORLD_KEYS) - {"seconds_per_video_second"}:
            value, other = row.metrics[metric], again.rows[name].metrics[metric]
            assert other == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-4)), (
                name,
                metric,
            )


def test_intervals_are_taken_from_the_same_videos_on_ray(ray_local, settings, networks, folder):
    wanted = dataclasses.replace(settings.evaluation, resamples=3, draws=1)
    made = evaluate(
        systems_of(networks)[1:], dataclasses.replace(settings, evaluation=wanted), str(folder / "intervals")
    )
    row = made.rows["sft_50"]
    assert len(set(row.resampled["window_frechet"])) == 3
    assert Evaluation.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_rows_are_taken_and_joined_in_order(result):
    part = result.of(["ideal", "mmm_4"])
    assert list(part.rows) == list(part.clips) == ["ideal", "mmm_4"]
    newer = dataclasses.replace(result.of(["sft_50", "ideal"]), seed=5)
    whole = part.joined(newer, ["mmm_4", "sft_50", "other"])
    assert list(whole.rows) == ["mmm_4", "sft_50", "ideal"]
    assert (whole.seed, whole.seconds) == (5, 2 * result.seconds)
    assert set(part.notes) <= set(whole.notes)


def test_withheld_words_are_evaluated_where_training_withheld_them(
    in_this_process, settings, networks, folder
):
    few = dataclasses.replace(settings, text=TextConfig(withheld_words=COLOURS))
    made = evaluate(systems_of(networks)[:1], few, str(folder / "withheld"))
    assert 0 <= made.rows["mmm_4"].metrics["same_colour_withheld"] <= 1
    path = write_summary(
        [made], str(folder / "withheld"), wall_seconds=1.0, peak_rss_bytes=2, config_hash="c", config={}
    )
    summary = json.loads(Path(path).read_text())
    assert set(summary["mmm_4"]) == {*WORLD_KEYS, *MINUTE_KEYS}
    assert len(summary["mmm_4"]["texture_error_by_eighth"][0]) == 8


@pytest.mark.parametrize(
    ("system", "error"),
    [
        (lambda n: System("x", n["teacher"], "dm", "few_step", 4), ConfigError),
        (lambda n: System("x", n["student"], "teacher", "windows", 4), ConfigError),
        (lambda n: System("x", n["sft"], "dm", "few_step", 4), ConfigError),
        (lambda n: System("x", n["student"] + "/nowhere", "fm", "ode", 4), CheckpointError),
    ],
    ids=["no DM head", "no teacher", "untrained DM head", "no checkpoint"],
)
def test_what_cannot_be_sampled_is_refused_before_work_begins(settings, networks, folder, system, error):
    with pytest.raises(error):
        evaluate([system(networks)], settings, str(folder / "refused"))
    assert not (folder / "refused").exists()


def test_a_users_clips_get_pixel_rows(in_this_process, settings, networks, folder):
    clips = dataclasses.replace(settings, world=None)
    made = evaluate(systems_of(networks)[:1], clips, str(folder / "clips"))
    assert list(made.rows) == ["mmm_4", "corpus_long"]
    metrics = made.rows["mmm_4"].metrics
    assert {
        "fvd.rand3d-diff",
        "kvd.rand3d-diff",
        "fvd.st-stats",
        "fvd.rand3d-diff.short",
        "diversity",
    } <= set(metrics)
    assert "rule" not in metrics
    assert metrics["fvd.rand3d-diff"] > made.rows["corpus_long"].metrics["fvd.rand3d-diff"]
    assert made.rows["mmm_4"].distances["fvd.rand3d-diff"].too_few
    report = write_report([made], str(folder / "clips"), "Clips", 8.0)
    assert "FD rand3d-diff" in Path(report.html).read_text()


def test_report_holds_the_table_and_plays_the_videos(result, folder):
    report = write_report([result, dataclasses.replace(result, seed=1)], str(folder), "A <test>", 8.0)
    page = (folder / "report.html").read_text()
    assert "A &lt;test&gt;" in page
    assert "LONG is low-grade by design" in page
    assert 'src="seed-0/evaluation/clips/mmm_4/000.mp4"' in page
    assert page.count("data:image/png;base64,") == len(report.plots) == 4
    assert len(report.clips) == 2
    frames = read_mp4(report.clips[0])
    assert frames.shape[0] == 32
    assert frames.shape[2] == 4 * 64
    for path in report.plots:
        assert Path(path).read_bytes()[:4] == b"\x89PNG"


def test_a_report_of_a_comparison_has_its_claims(result, folder):
    claim = Claim("sharper <than> it", "mmm_4", "sft_50", "window_frechet", "less", 0.5)
    judged = judge([claim], [result])
    report = write_report([result], str(folder / "claims"), "Comparison", 8.0, judged, judged)
    page = Path(report.html).read_text()
    assert page.count("sharper &lt;than&gt; it") == 2
    assert judged[0].gain.percent in page
    assert "Where MMM does not clearly win" in page
    assert "Claims" not in (folder / "report.html").read_text()


def test_terminal_table_has_a_row_a_system(result):
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(table([result], "evaluation"))
    text = console.export_text()
    assert all(name in text for name in result.rows)
    assert "window FD" in text


def test_remarks_give_n_and_floor(result):
    told = remarks([result])
    assert any(
        note.startswith("window_frechet: factors-32/1 of 104, n 40 against 50, floor") for note in told
    )
    assert any(note.startswith("pixel_window_frechet: rand3d-diff") for note in told)


def test_summary_has_the_keys_of_each_system_and_a_list_over_seeds(result, folder):
    path = write_summary(
        [result, result],
        str(folder),
        wall_seconds=1.5,
        peak_rss_bytes=7,
        config_hash="abc",
        config={"name": "x"},
    )
    summary = json.loads(Path(path).read_text())
    assert set(summary) == {*result.rows, "wall_seconds", "peak_rss_bytes", "seeds", "config_hash", "config"}
    for name in result.rows:
        assert set(summary[name]) == set(WORLD_KEYS)
        assert all(len(series) == 2 for series in summary[name].values())
    assert summary["seeds"] == [0, 0]
    assert summary["corpus_long"]["unseen_rule"] == [None, None]


def test_cells():
    assert cell([None]) == "-"
    assert cell([0.12345]) == "0.123"
    assert cell([1.0, 3.0]) == "2 +-1.4"


def test_the_table_counts_guidance(in_this_process, settings, networks, folder):
    guided = dataclasses.replace(settings, sampling=SamplingConfig(guidance_scale=3.0))
    made = evaluate(systems_of(networks), guided, str(folder / "guided"))
    assert {name: made.rows[name].metrics["nfe"] for name in ("mmm_4", "sft_50")} == {
        "mmm_4": 4,
        "sft_50": 10,
    }
