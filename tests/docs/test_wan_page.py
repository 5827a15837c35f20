"""The figures of docs/wan.md are those that its first command prints."""

import re
from pathlib import Path

from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.load import load
from tests.command import REPOSITORY

PAGE = (REPOSITORY / "docs" / "wan.md").read_text()
BLOCK = re.compile(r"^```(yaml|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def planned(*words: str) -> str:
    """What `train --dry-run` prints."""
    done = CliRunner().invoke(app, ["train", "--dry-run", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_plan_prints_what_the_page_shows(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE)
    (settings,) = (text for language, text in blocks if language == "yaml")
    (shown,) = (text for language, text in blocks if "parameters" in text)
    (tmp_path / "minute.yaml").write_text(settings)
    printed = planned("distill", "--config", str(tmp_path / "minute.yaml"))
    assert set(shown.splitlines()) <= set(printed.splitlines())


def test_a_gpu_that_the_page_names_holds_it(tmp_path: Path) -> None:
    minute = tmp_path / "minute.yaml"
    minute.write_text("extends: wan-1.3b\ndata: {long_frames: 961, long_stride: 480}\n")
    for config, gpu in (("wan-1.3b", "h200"), (str(minute), "b200"), (str(minute), "mi300x")):
        assert f"fits {gpu}" in planned("distill", "--config", config, "--gpu", gpu)


def test_the_curriculum_of_every_preset_ends_with_whole_clips() -> None:
    for preset in ("wan-1.3b", "wan-14b"):
        config = load(preset)
        for stage in (config.sft, config.mixed, config.distill):
            assert stage.frames_at(stage.steps, 241) == 241
