"""`sostenuto watch`: what it finds of a run, on any storage, without MLflow."""

import dataclasses
import json
from pathlib import Path

import pytest

from jobs.commands.watch import watch
from jobs.config import load as configs
from jobs.config.schema import RunConfig
from models.errors import ConfigError
from pipelines.storage import Storage
from pipelines.training.config import DistillConfig
from pipelines.training.monitors.series import Recorder
from pipelines.training.monitors.verdicts import Facts
from tests.pipelines.training.makers import SFT, recipe


def record(root: str, place: str, facts: Facts, critic_loss: float) -> None:
    recorder = Recorder(Storage(f"{root}/{place}"), facts, 0)
    for step in (10, 20, 30):
        recorder.add(
            step, {"critic_loss": critic_loss, "sharpness": 1.01, "time/step": 0.5, "time/hours_left": 1.0}
        )


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    root = str(tmp_path / "runs")
    sft = dataclasses.replace(Facts.of(recipe(SFT, {"teacher": "x"})), stage="sft", steps=30)
    distill = Facts.of(recipe(DistillConfig(steps=100), {"student": "x"}))
    record(f"{root}/quickstart", "seed-0/sft", sft, 0.5)
    record(f"{root}/quickstart", "seed-0/distill", dataclasses.replace(distill, stage="distill"), 40.0)
    return configs.load("tiny", [f"storage.root={root}"])


def look(config: RunConfig, **options: object) -> None:
    given = {"run": None, "stage": None, "html": None, "once": True, "as_json": False} | options
    watch(config, **given)  # type: ignore[arg-type]


def test_the_object_names_what_is_wrong(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    look(config, as_json=True)
    sft, distill = json.loads(capsys.readouterr().out)["stages"]
    assert (sft["folder"], sft["step"], sft["well"]) == ("seed-0/sft", 30, True)
    assert not distill["well"]
    worst = distill["verdicts"][0]
    assert (worst["name"], worst["well"]) == ("critic_loss", False)
    assert "lower distill.critic_learning_rate" in worst["remedy"]
    assert distill["newest"]["sharpness"] == 1.01


@pytest.mark.parametrize("place", ["", "/seed-0", "/seed-0/distill"])
def test_a_run_a_seed_and_a_stage_can_be_named(
    place: str, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    look(config, run=f"{config.storage.root}/quickstart{place}", stage="distill")
    shown = capsys.readouterr().out
    assert "step 30 of 100" in shown
    assert "NO" in shown
    assert "40.00" in shown
    assert "sft" not in shown


def test_the_page_holds_every_stage_and_asks_for_nothing(config: RunConfig, tmp_path: Path) -> None:
    look(config, html=str(tmp_path / "watch.html"))
    page = (tmp_path / "watch.html").read_text()
    assert page.index("seed-0/distill: step 30 of 100") < page.index("seed-0/sft: step 30 of 30")
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page


def test_where_nothing_was_recorded_the_remedy_is_told(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sostenuto train"):
        look(config, run=str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match="no stage"):
        look(config, stage="teacher")


def test_other_storage_is_read_too(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    facts = Facts.of(recipe(SFT, {"teacher": "x"}))
    record("memory://watched/run", "seed-1/sft", facts, 0.5)
    look(config, run="memory://watched/run", as_json=True)
    assert [stage["folder"] for stage in json.loads(capsys.readouterr().out)["stages"]] == ["seed-1/sft"]
