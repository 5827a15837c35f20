"""docs/wan.md as a story: its commands run in order on a tiny pretrained folder, and diffusers opens what they leave."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import WanPipeline, WanTransformer3DModel

from jobs import config as configs
from jobs.paths import RunPaths
from jobs.settings import RunConfig
from models.ddt import Student
from models.text import Conditioning
from models.weights import load_tensors
from pipelines.data.info import read_info
from pipelines.data.texts import text_encoder
from pipelines.training.networks import load_network
from pipelines.training.run import finished_stage
from pipelines.video import read_back
from tests.command import REPOSITORY, succeed
from tests.e2e.wan_base import BASE, SMALL, write_base, write_corpora
from tests.models.wan_folders import relative, velocity

pytestmark = pytest.mark.timeout(900)

PAGE = REPOSITORY / "docs" / "wan.md"
_BLOCK = re.compile(r"^```(sh|text|yaml|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LORA = {"student": "0", "student-lora": "1"}
"""Exports of the page, and the seed of each."""


@dataclass(frozen=True)
class Walked:
    """Where the page's commands have run, and what each printed."""

    folder: Path
    printed: dict[str, str]

    @property
    def config(self) -> RunConfig:
        return configs.load(str(self.folder / "minute.yaml"), [f"storage.root={self.folder / 'runs'}"])

    def student(self, seed: str, stage: str = "distill") -> Student:
        outcome = finished_stage(RunPaths.of(self.config).seed(int(seed)), stage)
        assert outcome is not None
        student = load_network(Path(outcome.checkpoint)).model
        assert isinstance(student, Student)
        return student


def blocks(text: str, language: str) -> list[str]:
    return [block for found, block in _BLOCK.findall(text) if found == language]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, wan_folder: Path, umt5_folder: Path) -> Walked:
    folder = tmp_path_factory.mktemp("walked")
    write_base(folder, wan_folder, umt5_folder)
    write_corpora(folder)
    (settings,) = blocks(PAGE.read_text(), "yaml")
    (folder / "minute.yaml").write_text(settings)
    return Walked(folder, dict(_run(folder)))


def _run(folder: Path):
    """The page's commands; the first plans with the page's own sizes, the others work with SMALL ones."""
    import shlex

    for block in blocks(PAGE.read_text(), "sh"):
        for line in block.splitlines():
            yield line, succeed(folder, *shlex.split(line)[1:])
            if "--dry-run" in line:
                whole = yaml.safe_load((folder / "minute.yaml").read_text())
                small = {"extends": whole["extends"], "name": whole["name"]}
                (folder / "minute.yaml").write_text(yaml.safe_dump(small) + SMALL)


def test_the_plan_prints_what_the_page_shows(walked: Walked) -> None:
    (shown,) = (block for block in blocks(PAGE.read_text(), "text") if "parameters" in block)
    printed = walked.printed["longtake train distill --config minute.yaml --dry-run"]
    assert set(shown.splitlines()) <= set(printed.splitlines())
