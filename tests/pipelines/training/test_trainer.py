"""What Ray Train starts beside a stage's workers."""

from pathlib import Path

from ray.train import RunConfig
from ray.train.torch import TorchTrainer

from pipelines.training.trainer import StageTrainer


def started(kind: type[TorchTrainer], folder: Path) -> set[str]:
    trainer = kind(print, run_config=RunConfig(name="stage", storage_path=str(folder)))
    return {type(one).__name__ for one in trainer._create_default_callbacks()}


def test_stages_run_without_a_manager_of_ray_datasets(tmp_path: Path) -> None:
    assert started(TorchTrainer, tmp_path) - started(StageTrainer, tmp_path) == {"DatasetsCallback"}
