"""Recipes: the stage graph, what a hash follows, and how finished and foreign stages are treated."""

import dataclasses
from pathlib import Path

import pytest

from models.config import LoraConfig
from models.errors import CheckpointError, ConfigError
from pipelines.data.store.info import read_info
from pipelines.storage import Storage
from pipelines.tracking import NullTracker
from pipelines.training.config import ClusterConfig, TrainingConfig, WarmupConfig
from pipelines.training.recipes import (
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
from tests.pipelines.training.makers import DISTILL, SFT, TEACHER, recipe

CONFIG = TrainingConfig(teacher=TEACHER, sft=SFT, mixed=SFT, distill=DISTILL)
WARM = dataclasses.replace(CONFIG, warmup=WarmupConfig(steps=3))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("dataset")
    make(folder)
    return str(folder)


def finish(root: Path, name: str, cpu_seconds: float = 1.0, steps: float = 1.0, recipe: str = "x") -> None:
    outcome = StageOutcome(f"{root}/{name}/last", {"steps": steps, "cpu_seconds": cpu_seconds}, recipe)
    Storage(root).write_json(f"{name}/outcome.json", dataclasses.asdict(outcome))


def test_places_and_logging_are_not_hashed_but_roles_and_rates_are() -> None:
    base = recipe(SFT, {"teacher": "a"})
    elsewhere = dataclasses.replace(
        base,
        root="r",
        dataset="d",
        cluster=ClusterConfig(num_workers=2),
        settings={"a": 1},
        start={"teacher": "b"},
        stage=dataclasses.replace(SFT, log_every=1, checkpoint_every=1, preview_every=1),
    )
    assert elsewhere.hash() == base.hash()
    rate = dataclasses.replace(base, stage=dataclasses.replace(SFT, learning_rate=1.0))
    assert len({base.hash(), rate.hash(), recipe(SFT, {"student": "a"}).hash()}) == 3


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
    finish(tmp_path, "distill", cpu_seconds=0.1)
    shortest = made(CONFIG, "sft_longer", tmp_path, dataset).stage
    assert (shortest.steps, shortest.warmup_steps) == (1, 1)


def test_a_finished_stage_is_returned_and_one_of_another_recipe_refused(tmp_path: Path) -> None:
    own = dataclasses.replace(recipe(TEACHER), name="teacher", root=str(tmp_path))
    assert finished_stage(str(tmp_path), "teacher") is None
    finish(tmp_path, "teacher", recipe=own.hash())
    assert train_stage(own, NullTracker) == require_finished(str(tmp_path), "teacher", "sft")
    other = dataclasses.replace(own, seed=1)
    with pytest.raises(CheckpointError, match=r"trained with other settings.*--fresh"):
        train_stage(other, NullTracker)


def test_an_unfinished_stage_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Storage(tmp_path).write_json("stage/recipe.json", {"recipe": "another"})
    with pytest.raises(CheckpointError, match=r"unfinished run with other settings.*--fresh"):
        train_stage(dataclasses.replace(recipe(TEACHER), root=str(tmp_path)), NullTracker)
