"""The comparison as a command: what it plans, what it finds, and what it says where MMM does not win."""

import json
from pathlib import Path

import pytest

from jobs.commands import compare
from jobs.config import load as configs
from jobs.config.comparison import chosen_rows
from jobs.config.paths import RunPaths
from models.errors import ConfigError
from pipelines.distances import Distance
from pipelines.evaluation.claims import CLAIMS, judge, not_won
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Scores
from tests.command import copy_runs, succeed
from tests.head import Head
from tests.jobs.test_comparing import finish

SIX = "teacher sft mixed distill sft_longer mixed_longer".split()


def planned(config, capsys, **options):
    assert compare.compare(config, seeds=3, dry_run=True, **options) is None
    return capsys.readouterr().out


def test_a_dry_run_names_rows_stages_and_minutes_and_does_nothing(run_config, root, capsys):
    before = sorted(root.rglob("*"))
    told = planned(configs.with_values(run_config, {"name": "x"}), capsys)
    assert sorted(root.rglob("*")) == before
    assert "loss.flow_matching_weight=0.0" in told
    assert "shared_head sft" in told
    assert "shared_head teacher" not in told, "it takes over the run's"
    assert "minutes on" in told


def test_a_plan_is_json_whose_parts_add_up(run_config, capsys):
    plan = json.loads(planned(run_config, capsys, systems="mmm_4, dm_only", as_json=True))
    assert [row["name"] for row in plan["systems"]] == ["mmm_4", "dm_only"]
    assert set(plan["training"]) == {"teacher", "sft", "distill", "dm_only distill"}
    costs = sum(plan["training"].values()) + sum(plan["evaluation"].values())
    assert plan["minutes"] == pytest.approx((plan["ingest"] + 3 * costs) / plan["cores"] / 60)
    more = json.loads(planned(run_config, capsys, systems="mmm_4,clean_long", as_json=True))
    assert more["ingest"] == 2 * plan["ingest"]


def test_three_seeds_of_the_small_world_are_planned_for_less_than_90_minutes(capsys):
    plan = json.loads(planned(configs.load("tiny"), capsys, as_json=True))
    assert plan["minutes"] * plan["cores"] < 2 * 90


def test_an_unknown_system_is_refused(run_config):
    with pytest.raises(ConfigError, match="no system 'mmm'"):
        compare.compare(run_config, systems="mmm_4,mmm")


def evaluations(seeds=(0, 1)):
    found = []
    for seed in seeds:
        good = {"window_frechet": 2.0 + 0.1 * seed, "texture_error": 0.3, "nothing": None, "curve": [1.0]}
        rows = {
            "mmm_4": Scores(good, {"window_frechet": Distance(2.0, 40, 50, 1.0, 32, "x")}),
            "sft_50": Scores({"window_frechet": 40.0, "texture_error": 0.1}),
            "ideal": Scores({"window_frechet": 1.0, "texture_error": 0.0}),
        }
        found.append(Evaluation(seed, rows, dict.fromkeys(rows, ()), (), (), 1.0))
    return found


def judged():
    return judge(CLAIMS, evaluations()), list(not_won("mmm_4", evaluations()))


@pytest.fixture
def found(run_config, monkeypatch):
    class Info:
        data_hash = "abc"

    monkeypatch.setattr(compare, "read_info", lambda folder: Info)
    for seed in (0, 1):
        for stage in ("teacher", "sft", "distill"):
            finish(run_config, RunPaths.of(run_config), seed, stage, 10, 5.0 + seed)
    rows = chosen_rows(run_config, ["mmm_4", "sft_50"])
    return compare.result_of(run_config, rows, evaluations(), *judged())


def test_figures_have_means_intervals_and_seeds(found):
    figure = found["systems"]["mmm_4"]["metrics"]["window_frechet"]
    assert figure["values"] == [2.0, 2.1]
    assert figure["mean"] == pytest.approx(2.05)
    assert figure["low"] <= figure["mean"] <= figure["high"]
    assert (figure["n"], figure["seeds"]) == (40, 2)
    assert set(found["systems"]["mmm_4"]["metrics"]) == {"window_frechet", "texture_error"}
    assert found["systems"]["mmm_4"]["cpu_seconds"] == 16.5
    assert found["systems"]["sft_50"]["cpu_seconds"] == 11.0
    assert found["systems"]["ideal"]["stands_for"] == "real videos"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_claims_have_verdicts_effects_and_intervals(found):
    claims = {claim["name"]: claim for claim in found["claims"]}
    near = claims["windows 85 % nearer than long-SFT's"]
    assert near["verdict"] == "supported"
    assert near["effect"] == pytest.approx(0.94875)
    assert near["interval"][0] <= near["effect"] <= near["interval"][1]
    texture = claims["texture error 75 % below long-SFT's"]
    assert (texture["verdict"], texture["effect"]) == ("not supported", pytest.approx(-2))
    fvd = claims["FVD at least 30 % below long-SFT"]
    assert (fvd["verdict"], fvd["effect"], fvd["interval"]) == ("undecided", None, None)


def test_what_is_not_won_is_printed_unasked(found, run_config, capsys):
    compare.show(run_config, evaluations(), found, *judged())
    told = capsys.readouterr().out
    assert "Where mmm_4 does not clearly win:" in told
    assert "texture_error: 0.3, sft_50 0.1; gain -200 %" in told
    assert "fvd was not measured" in told
    assert "One seed" not in told
    compare.show(run_config, evaluations((0,)), found, [], [])
    told = capsys.readouterr().out
    assert "nowhere among these" in told
    assert "One seed: intervals are over its videos alone" in told


@pytest.mark.timeout(600)
def test_a_finished_quickstart_is_the_first_rows(
    finished_quickstart: Path, tmp_path: Path, head: Head
) -> None:
    """One distillation is trained; teacher and long-SFT are those of the quickstart."""
    folder = copy_runs(finished_quickstart, tmp_path)
    words = ("compare", "--config", "ci", "--seeds", "1", "--systems", "mmm_4,sft_4,dm_only", "--json")
    told = json.loads(succeed(folder, *words, timeout_s=550, **head.variables))
    assert list(told["systems"]) == ["mmm_4", "sft_4", "dm_only", "corpus_long", "ideal"]
    assert told == json.loads((folder / "runs/ci/compare/compare.json").read_text())
    figures = {name: row["metrics"]["window_frechet"] for name, row in told["systems"].items()}
    assert all(figure["low"] <= figure["mean"] <= figure["high"] for figure in figures.values())
    assert figures["mmm_4"]["low"] < figures["mmm_4"]["high"]
    assert told["systems"]["dm_only"]["gradient_samples"] < told["systems"]["mmm_4"]["gradient_samples"]
    own = folder / "runs/ci/compare/dm_only/seed-0"
    trained = {path.parent.name for path in own.glob("*/step-*")}
    assert trained == {"distill"}
    outcome = json.loads((own / "sft/outcome.json").read_text())
    assert outcome == json.loads((folder / "runs/ci/seed-0/sft/outcome.json").read_text())
    assert (folder / "runs/ci/compare/report/side-by-side-0.mp4").stat().st_size > 1000


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_every_row_is_trained_evaluated_and_resumed(tmp_path: Path) -> None:
    """All rows of one seed; the same command again trains and evaluates nothing."""
    words = ("compare", "--config", "ci")
    told = succeed(tmp_path, *words, "--seeds", "1", timeout_s=2000)
    assert "Claims" in told
    config = configs.load("ci")
    found = json.loads((tmp_path / "runs/ci/compare/compare.json").read_text())
    assert set(found["systems"]) == {row.name for row in chosen_rows(config, ())} | {"ideal", "corpus_long"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/ci").rglob("lineage.json")}
    again = succeed(tmp_path, *words, "--seeds", "1", timeout_s=600)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert "videos " not in again
