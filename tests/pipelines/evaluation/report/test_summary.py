"""Tables, remarks, plots and pages of made-up evaluations of several seeds; no Ray."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipelines.distances import Distance
from pipelines.evaluation.over_time import Finding
from pipelines.evaluation.report.page import frames_side_by_side, write_report
from pipelines.evaluation.report.plots import plots
from pipelines.evaluation.report.summary import (
    CLIP_COLUMNS,
    MINUTE_COLUMNS,
    MINUTE_KEYS,
    SUBJECT_COLUMNS,
    WORLD_COLUMNS,
    WORLD_KEYS,
    cell,
    columns,
    has_withheld,
    is_world,
    over_time,
    remarks,
    summary_keys,
    systems,
    table,
    values,
    write_summary,
)
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Scores
from pipelines.evaluation.temporal import METRICS
from pipelines.media.video import read_mp4, write_mp4

DISTANCES = ("window_frechet", "video_frechet", "pixel_window_frechet", "unseen_window_frechet")


def row(level, *, withheld=None):
    metrics = dict.fromkeys((*WORLD_KEYS, *METRICS, "rise", "story_frechet", "rule_strict"), level)
    metrics |= {"corpus_window_frechet": 100 - level, "same_colour_withheld": withheld}
    metrics["texture_error_by_eighth"] = [level + i / 10 for i in range(8)]
    distances = {name: Distance(level, 1500, 3000, 0.5, 32, "factors-32/1 of 104") for name in DISTANCES}
    return Scores(metrics, distances)


def evaluation(seed=0, *, withheld=None, clips=None, notes=(), rows=("mmm_4", "sft_50", "ideal")):
    made = {name: row(1.0 + seed + i, withheld=withheld) for i, name in enumerate(rows)}
    return Evaluation(seed, made, clips or {}, ("a bay",) if clips else (), tuple(notes), 1.0)


def clip_evaluation():
    names = [*CLIP_COLUMNS.values(), *METRICS]
    rows = {name: Scores(dict.fromkeys(names, 0.5)) for name in ("mmm_4", "corpus_long")}
    return Evaluation(0, rows, {}, (), (), 1.0)


@pytest.mark.parametrize(
    ("made", "shown", "keys"),
    [
        (evaluation(), WORLD_COLUMNS, set(WORLD_KEYS)),
        (evaluation(withheld=0.9), WORLD_COLUMNS | MINUTE_COLUMNS, {*WORLD_KEYS, *MINUTE_KEYS}),
        (clip_evaluation(), CLIP_COLUMNS, {*CLIP_COLUMNS.values(), *METRICS}),
    ],
    ids=["world", "minute", "clips"],
)
def test_columns_and_keys_follow_the_kind_of_evaluation(made, shown, keys):
    assert columns(made) == shown
    assert set(summary_keys(made)) == keys
    assert is_world(made) == ("ideal" in made.rows)
    assert has_withheld(made) == (set(MINUTE_KEYS) <= keys)


def test_an_animal_has_columns_and_a_remark_where_one_is_looked_for():
    names = [*CLIP_COLUMNS.values(), *SUBJECT_COLUMNS.values(), "subject.one_in_short"]
    made = Evaluation(0, {"corpus_long": Scores(dict.fromkeys(names, 0.5))}, {}, (), (), 1.0)
    assert columns(made) == CLIP_COLUMNS | SUBJECT_COLUMNS
    [told] = [remark for remark in remarks([made]) if remark.startswith("one animal")]
    assert "SHORT itself 0.5;" in told
    assert not any(remark.startswith("one animal") for remark in remarks([clip_evaluation()]))


def test_values_are_a_list_over_seeds_with_none_where_a_seed_lacks_the_system():
    seeds = [evaluation(0), evaluation(1, rows=("mmm_4", "ideal"))]
    assert values(seeds, "mmm_4", "rule") == [1.0, 2.0]
    assert values(seeds, "sft_50", "rule") == [2.0, None]
    assert systems(seeds) == ["mmm_4", "sft_50", "ideal"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ([None], "-"),
        ([], "-"),
        ([0.12345], "0.123"),
        ([1.0, 3.0], "2 +-1.4"),
        ([None, 2.0], "2"),
        ([123.4], "123"),
    ],
)
def test_cell(found, text):
    assert cell(found) == text


def test_table_shows_mean_and_deviation_of_the_seeds():
    console = Console(width=260, record=True, file=io.StringIO())
    console.print(table([evaluation(0), evaluation(2)], "three systems"))
    text = console.export_text()
    assert "three systems" in text
    assert "2 +-1.4" in text
    assert len([line for line in text.splitlines() if "mmm_4" in line]) == 1


def test_remarks_begin_with_what_low_grade_means_and_repeat_no_note():
    told = remarks([evaluation(0, notes=["few"]), evaluation(1, notes=["few", "other"])])
    assert told[0].startswith("LONG is low-grade by design")
    assert "98.5 +-0.71" in told[0]
    assert "97.5 +-0.71" in told[0]
    assert told.count("few") == told.count("other") == 1
    assert "window_frechet: factors-32/1 of 104, n 1500 against 3000, floor 0.5" in told


def test_remarks_without_both_systems_do_not_compare_them():
    told = remarks([evaluation(rows=("mmm_4", "ideal"))])
    assert not any("low-grade" in note for note in told)


def test_what_videos_do_over_time_is_a_sentence_a_seed():
    seeds = [evaluation(0), evaluation(1)]
    assert over_time(seeds) == {}
    finding = Finding("self_repeat", "high", 40, 60, 0.5, (0.0, 0.1), 1e-9)
    for seed in seeds:
        for name, row in seed.rows.items():
            row.distances["temporal_distance.2s"] = Distance(0.1, 60, 60, 0.01, 1, "temporal_ssim.2s/1")
            seed.rows[name] = dataclasses.replace(row, findings=(finding,) if name == "mmm_4" else ())
    told = over_time(seeds)
    assert told["mmm_4"] == f"seed 0: {finding}. seed 1: {finding}"
    assert (
        told["ideal"] == "seed 0: like real videos in every figure. seed 1: like real videos in every figure"
    )
    assert over_time(seeds[:1])["sft_50"] == "like real videos in every figure"


def test_summary_is_plain_json(tmp_path):
    seeds = [evaluation(0, withheld=0.9), evaluation(1, withheld=0.8)]
    path = write_summary(
        seeds, str(tmp_path), wall_seconds=9.0, peak_rss_bytes=1, config_hash="h", config={"a": [1, 2]}
    )
    found = json.loads(Path(path).read_text())
    assert found["mmm_4"]["same_colour_withheld"] == [0.9, 0.8]
    assert found["mmm_4"]["texture_error_by_eighth"][1] == [2.0 + i / 10 for i in range(8)]
    assert found["seeds"] == [0, 1]
    assert found["config"] == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (evaluation(), {"distances.png", "similarity.png", "drift.png", "eighths.png"}),
        (clip_evaluation(), {"similarity.png", "drift.png"}),
    ],
    ids=["world", "clips"],
)
def test_plots_are_pictures(made, names):
    pictures = plots([made])
    assert names <= set(pictures)
    for name in names:
        picture = Image.open(io.BytesIO(pictures[name]))
        assert picture.width > 300
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def solid(path, value, frames=6, size=(32, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, (np.full((*size, 3), value, np.uint8) for _ in range(frames)), 8.0)
    return str(path)


def test_side_by_side_puts_each_video_under_its_label_and_ends_with_the_shortest(tmp_path):
    clips = {f"s{i}": solid(tmp_path / f"{i}.mp4", 40 * i, frames=4 + i) for i in range(1, 7)}
    frames = list(frames_side_by_side(clips))
    assert len(frames) == 5
    assert frames[0].shape == (2 * (32 + 14), 5 * 48, 3)
    for i in range(5):
        assert abs(int(frames[0][14 + 16, 48 * i + 24, 0]) - 40 * (i + 1)) < 4
    assert abs(int(frames[0][46 + 14 + 16, 24, 0]) - 240) < 4
    assert frames[0][:14, :48].max() > 150


def test_report_is_one_page_with_relative_videos(tmp_path):
    clips = {
        name: (solid(tmp_path / f"seed-0/clips/{name}/000.mp4", 90),) for name in ("mmm_4", "sft_50", "ideal")
    }
    seeds = [evaluation(0, clips=clips), evaluation(1, clips=clips)]
    sizes = Distance(0.1, 60, 60, 0.01, 1, "temporal_ssim.2s/1")
    seeds[0].rows["mmm_4"].distances["temporal_distance.2s"] = sizes
    report = write_report(seeds, str(tmp_path), "<Run>", 8.0)
    page = Path(report.html).read_text()
    assert "<h1>&lt;Run&gt;</h1>" in page
    assert "Seeds 0, 1" in page
    assert "<td>seed 0: like real videos in every figure</td>" in page
    assert 'src="seed-0/clips/mmm_4/000.mp4"' in page
    assert 'src="report/side-by-side-0.mp4"' in page
    assert str(tmp_path) not in page
    assert read_mp4(report.clips[0]).shape == (6, 46, 144, 3)
