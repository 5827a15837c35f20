"""A small world, ingested, with untrained networks, on one Ray for all tests of evaluation."""

import dataclasses
import json

import pytest
import torch

from models.config import AutoencoderConfig, ModelConfig, SamplingConfig, TextConfig
from models.dit import initialize
from models.rng import Key
from models.weights import save_tensors
from pipelines.checkpoints import NETWORK_FILE, NetworkSpec, seal
from pipelines.data.config import DataConfig
from pipelines.data.ingest.pipeline import ingest
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.settings import EvaluationSettings
from pipelines.world.config import WorldConfig
from pipelines.world.render import write_world

WORLD = WorldConfig(size=64, short_clips=24, long_clips=12)
MODEL = ModelConfig(
    num_layers=2, head_layers=1, num_heads=2, head_dim=12, ffn_dim=32, attention_pattern="WG", init="wan"
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world_dataset(tmp_path_factory, ray_local):
    folder = tmp_path_factory.mktemp("evaluation")
    write_world(WORLD, folder / "world")
    data = DataConfig(height=64, width=64)
    code = AutoencoderConfig(components=13)
    ingest(str(folder / "world/short"), str(folder / "world/long"), str(folder / "dataset"), data, code, 0)
    return str(folder / "dataset")


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Folders of an untrained teacher, of a student as after distillation, and as before it."""
    folder = tmp_path_factory.mktemp("networks")
    teacher = NetworkSpec("teacher", MODEL, TextConfig(dim=16), 13, (8, 13, 1, 1))
    plain = teacher.build()
    initialize(plain, Key(0))
    _save(teacher, plain, folder / "teacher")
    spec = NetworkSpec("student", MODEL, TextConfig(dim=16), 13, (32, 13, 1, 1), distilled=True)
    student = spec.build()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    student.start_from(plain)
    _save(spec, student, folder / "student")
    _save(dataclasses.replace(spec, distilled=False), student, folder / "sft")
    return {name: str(folder / name) for name in ("teacher", "student", "sft")}


def _save(spec, model, folder):
    folder.mkdir()
    save_tensors(model.state_dict(), folder / f"{spec.role}.average.safetensors")
    (folder / NETWORK_FILE).write_text(json.dumps(spec.to_json()))
    seal(folder)


@pytest.fixture(scope="session")
def settings(world_dataset, tmp_path_factory):
    return EvaluationSettings(
        evaluation=EvaluationConfig(
            videos=8, draws=2, reference_videos=10, batch_size=3, max_actors=1, showcase=2, temporal_videos=4
        ),
        sampling=SamplingConfig(),
        world=WORLD,
        dataset=world_dataset,
        references=str(tmp_path_factory.mktemp("references")),
        seed=0,
    )
