"""Recipes: the stage graph, what a stage is made from, and how finished stages are treated."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from models.config import LoraConfig
from models.errors import CheckpointError, ConfigError
from pipelines.data.store.info import read_info
from pipelines.storage import Storage
from pipelines.tracking import NullTracker
from pipelines.training.config import TrainingConfig, WarmupConfig
from pipelines.training.lineage import begin_stage
from pipelines.training.recipes import (
    LOADED,
    Recipe,
    StageOutcome,
    finished_stage,
    make_recipe,
    require_finished,
    stage_graph,
    stage_starts,
)
from pipelines.training.trainer import train_stage
from tests.pipelines.data.made import make
from tests.pipelines.training.makers import DISTILL, SFT, TEACHER

CONFIG = TrainingConfig(teacher=TEACHER, sft=SFT, mixed=SFT, distill=DISTILL)
WARM = dataclasses.replace(CONFIG, warmup=WarmupConfig(steps=3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    make(folder)
    return str(folder)


def finish(root: Path, name: str, cpu_seconds: float = 1.0, steps: float = 1.0) -> None:
    checkpoint = f"{root}/{name}/last"
    Storage(checkpoint).write_json("manifest.json", dict.fromkeys(LOADED.values(), f"sum of {name}"))
    outcome = StageOutcome(checkpoint, {"steps": steps, "cpu_seconds": cpu_seconds}, "x")
    Storage(root).write_json(f"{name}/outcome.json", dataclasses.asdict(outcome))


def test_every_stage_starts_after_those_it_needs() -> None:
    for config in (CONFIG, WARM):
        seen: set[str] = set()
        for name, waits in stage_graph(config).items():
            assert waits <= seen
            seen.add(name)
    assert list(stage_graph(CONFIG)) == ["teacher", "sft", "mixed", "distill", "sft_longer", "mixed_longer"]
    assert stage_graph(WARM)["distill"] == {"teacher", "sft", "warmup"}
    assert stage_graph(CONFIG)["mixed_longer"] == {"mixed", "distill"}
    assert stage_starts(CONFIG)["distill"] == {"teacher": "teacher", "student": "sft"}


def made(config: TrainingConfig, name: str, root: Path, dataset: str) -> Recipe:
    return make_recipe(config, name, 7, str(root), dataset)


def test_a_recipe_is_what_the_settings_the_dataset_and_finished_stages_say(
    dataset: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="sft needs the finished stage teacher"):
        made(CONFIG, "sft", tmp_path, dataset)
    with pytest.raises(ConfigError, match="no stage warmup"):
        made(CONFIG, "warmup", tmp_path, dataset)
    finish(tmp_path, "teacher")
    finish(tmp_path, "sft")
    config = dataclasses.replace(WARM, lora=LoraConfig(rank=2, stages=("distill",)))
    warmup = made(config, "warmup", tmp_path, dataset)
    assert (warmup.critic_only, warmup.stage) == (True, dataclasses.replace(DISTILL, steps=3))
    assert warmup.start == {"teacher": f"{tmp_path}/teacher/last", "student": f"{tmp_path}/sft/last"}
    finish(tmp_path, "warmup")
    distill = made(config, "distill", tmp_path, dataset)
    assert distill.inputs == {
        "teacher/teacher.average.safetensors": "sum of teacher",
        "sft/student.average.safetensors": "sum of sft",
        "warmup/critic.safetensors": "sum of warmup",
    }
    assert distill.start["critic"] == f"{tmp_path}/warmup/last"
    assert (distill.seed, distill.critic_only, distill.lora.rank, warmup.lora.rank) == (7, False, 2, 0)
    assert (distill.loss, distill.settings) == (config.loss, dataclasses.asdict(config))
    assert distill.long_shape == read_info(dataset).long.latent_shape


def test_a_baseline_goes_on_for_the_cpu_seconds_of_distillation(dataset: str, tmp_path: Path) -> None:
    finish(tmp_path, "sft", cpu_seconds=10, steps=40)
    with pytest.raises(CheckpointError, match="sft_longer needs the finished stage distill"):
        made(CONFIG, "sft_longer", tmp_path, dataset)
    finish(tmp_path, "distill", cpu_seconds=5)
    longer = made(CONFIG, "sft_longer", tmp_path, dataset)
    assert (longer.stage.steps, longer.start) == (20, {"student": f"{tmp_path}/sft/last"})
    assert [name.split("/")[0] for name in longer.inputs] == ["sft", "distill"]
    finish(tmp_path, "distill", cpu_seconds=0.1)
    shortest = made(CONFIG, "sft_longer", tmp_path, dataset).stage
    assert (shortest.steps, shortest.warmup_steps) == (1, 1)


def test_a_finished_stage_is_returned_and_one_of_other_settings_refused(dataset: str, tmp_path: Path) -> None:
    own = made(CONFIG, "teacher", tmp_path, dataset)
    assert finished_stage(str(tmp_path), "teacher") is None
    begin_stage(own)
    finish(tmp_path, "teacher", steps=6)
    assert train_stage(own, NullTracker) == require_finished(str(tmp_path), "teacher", "sft")
    other = dataclasses.replace(own, stage=dataclasses.replace(TEACHER, learning_rate=1.0))
    with pytest.raises(CheckpointError, match=r"trained with other settings.*--fresh"):
        train_stage(other, NullTracker)


def test_pretrained_weights_are_told_apart_by_their_sizes_and_ends(dataset: str, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "base", tmp_path / "elsewhere"
    folder.mkdir()
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"weights" * 1000)
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, pretrained=str(folder)))
    first = made(config, "teacher", tmp_path, dataset).inputs
    assert set(first) == {"pretrained"}
    shutil.copytree(folder, elsewhere)
    moved = dataclasses.replace(config.model, pretrained=str(elsewhere))
    assert made(dataclasses.replace(config, model=moved), "teacher", tmp_path, dataset).inputs == first
    weights.write_bytes(b"weights" * 999 + b"others!")
    assert made(config, "teacher", tmp_path, dataset).inputs != first
