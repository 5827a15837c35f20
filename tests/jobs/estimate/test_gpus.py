"""`sostenuto train --dry-run --gpu`: what fits, what does not, and remedies that hold when they are taken."""

import dataclasses
import json
import re

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config import load as configs
from jobs.estimate.gpus import GPUS, gpu, require_fit, smallest
from jobs.estimate.report import describe
from models.errors import ConfigError

WAN = ("train", "--config", "wan-1.3b", "--dry-run")


def call(*words):
    return CliRunner().invoke(app, words, prog_name="sostenuto")


def fit(config, stage, asked):
    require_fit(config, {cost.stage: cost.parts for cost in describe(config, stage, asked).stages}, asked)


def test_one_object_on_standard_output_and_one_line_on_the_other():
    done = call(*WAN, "--gpu", "h100", "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 1
    assert told["fits"] is False
    assert told["gpu"]["name"] == "h100"
    assert done.stderr.startswith("error: distill needs ")
    assert done.stderr.count("\n") == 1


def test_what_fits_ends_well():
    done = call("train", "sft", "--config", "tiny", "--dry-run", "--gpu", "RTX4090", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"] is True
    assert list(told["stages"]) == ["sft"]


def test_the_text_says_whether_it_fits():
    assert "fits h100" in call("train", "sft", "--config", "tiny", "--dry-run", "--gpu", "h100").stdout
    assert "does not fit h100" in call(*WAN, "--gpu", "h100").stdout


def test_without_a_gpu_nothing_is_refused():
    assert call(*WAN).exit_code == 0


SMALL = [
    "model.num_layers=4", "model.head_layers=1", "model.attention_pattern=WWGG", "data.height=240",
    "data.width=416",
]  # fmt: skip


SMALL += ["cluster.num_workers=4", "cluster.activation_checkpointing=none"]


SETTING = r"[a-z_]+\.[a-z_]+=\w+"


@pytest.mark.parametrize("lengths", [[], ["data.long_lengths=[241]"]], ids=str)
@pytest.mark.parametrize("stage", ["sft", "distill"])
@pytest.mark.parametrize("memory", [12, 24, 32, 48])
def test_a_remedy_holds_when_it_is_taken(stage, memory, lengths):
    config = configs.load("wan-1.3b", [*SMALL, *lengths])
    asked = dataclasses.replace(gpu("h100"), name="small", bytes=memory << 30)
    with pytest.raises(ConfigError) as refused:
        fit(config, stage, asked)
    settings = re.findall(SETTING, refused.value.remedy)
    if not settings:
        assert refused.value.remedy.startswith("No fewer")
        return
    again = configs.load("wan-1.3b", [*SMALL, *lengths, *settings])
    fit(again, stage, asked)


def test_one_setting_less_is_not_enough():
    """A remedy names no more than it takes: without the last setting it would not fit."""
    config = configs.load("wan-1.3b", SMALL)
    asked = dataclasses.replace(gpu("h100"), name="small", bytes=32 << 30)
    with pytest.raises(ConfigError) as refused:
        fit(config, "sft", asked)
    settings = re.findall(SETTING, refused.value.remedy)
    less = configs.load("wan-1.3b", [*SMALL, *settings[:-1]])
    with pytest.raises(ConfigError):
        fit(less, "sft", asked)


def test_the_smallest_that_holds_it():
    for one in GPUS.values():
        found = smallest(one.usable)
        assert found is not None
        assert found.bytes == one.bytes
    assert smallest(1 << 50) is None
