"""Small recipes and batches for the training tests."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.config import FlowConfig, LoraConfig, LossConfig, SamplingConfig, TextConfig
from models.rng import Key
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import ClusterConfig, DistillConfig, StageConfig
from pipelines.training.distill import DistillStage
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batch, Batches
from pipelines.training.state import TrainState, save_state
from pipelines.training.supervised import SupervisedStage
from tests.models.builders import TINY, latents

TEXT = TextConfig(dim=10, withheld_words=("red",), withhold_probability=0.3)
SHORT, LONG = (4, 4, 1, 1), (12, 4, 1, 1)
CAPTIONS = {"short": ["red sun", "blue sun", "red moon"], "long": ["blue moon", "red sun"]}
TEACHER = StageConfig(steps=6, short_batch=4, learning_rate=1e-3, warmup_steps=2)
SFT = StageConfig(steps=6, long_batch=4, learning_rate=1e-3, warmup_steps=2)
DISTILL = DistillConfig(
    steps=6,
    long_batch=4,
    rollout_batch=4,
    critic_batch=8,
    window_frames=4,
    window_stride=2,
    windows_per_video=3,
    learning_rate=1e-3,
    ramp_steps=3,
    watch_every=2,
)


def recipe(stage: StageConfig, start: dict[str, str] | None = None, critic_only: bool = False) -> Recipe:
    """A recipe of tiny networks."""
    return Recipe(
        name="stage",
        root="nowhere",
        dataset="nowhere",
        cluster=ClusterConfig(),
        settings={},
        model=dataclasses.replace(
            TINY, head_dim=24, window=3, num_layers=2, head_layers=1, attention_pattern="WG"
        ),
        text=TEXT,
        flow=FlowConfig(timestep_shift_frames=6),
        loss=LossConfig(),
        sampling=SamplingConfig(),
        stage=stage,
        short_shape=SHORT,
        long_shape=LONG,
        start=start or {},
        inputs={},
        code="",
        lineage={},
        seed=0,
        lora=LoraConfig(),
        critic_only=critic_only,
        crop_safe=True,
    )


def distill_stage(
    starts: dict[str, str],
    *,
    workers: Workers = ALONE,
    critic_only: bool = False,
    crop_safe: bool = True,
    loss: Mapping[str, Any] | None = None,
    **settings: Any,
) -> DistillStage:
    """Distillation of tiny networks with other settings of `distill` and of `loss`."""
    made = recipe(dataclasses.replace(DISTILL, **settings), starts, critic_only)
    own = dataclasses.replace(made.loss, **(loss or {}))
    return DistillStage(dataclasses.replace(made, loss=own, crop_safe=crop_safe), CAPTIONS, workers)


def batches(step: int, workers: Workers, short: int = 0, long: int = 4) -> Batches:
    """This worker's share of a keyed batch."""

    def part(count: int, frames: int, name: str) -> Batch | None:
        if not count:
            return None
        share = workers.share(count)
        x = latents(count, frames, seed=1000 + step)[share.start : share.stop]
        return Batch(x, [CAPTIONS[name][i % len(CAPTIONS[name])] for i in share], share, count)

    return Batches(part(short, SHORT[0], "short"), part(long, LONG[0], "long"))


def run(
    stage: SupervisedStage | DistillStage,
    state: TrainState,
    steps: int,
    short: int = 0,
    long: int = 4,
    workers: Workers = ALONE,
) -> list[dict[str, float]]:
    """Takes steps with keyed batches; their metrics."""
    metrics = []
    for _ in range(steps):
        key = Key(0, state.step, purpose="step")
        metrics.append(stage.step(state, batches(state.step, workers, short, long), key).metrics)
    return metrics


def tensors_of(state: TrainState) -> dict[str, torch.Tensor]:
    """All weights and averages of a state, by name, copied."""
    named = {f"{role}.{n}": t for role, m in state.modules.items() for n, t in m.state_dict().items()}
    averages = {f"average.{role}.{n}": t for role, e in state.averages.items() for n, t in e.tensors.items()}
    return {name: tensor.clone() for name, tensor in (named | averages).items()}


def trained_starts(folder: Path) -> dict[str, str]:
    """Checkpoints of a teacher and a long-SFT student after a few steps."""
    torch.set_num_threads(1)
    teacher = SupervisedStage(recipe(TEACHER))
    state = teacher.init("cpu")
    run(teacher, state, 3, short=4, long=0)
    (folder / "teacher").mkdir()
    save_state(state, teacher.spec, folder / "teacher")
    student = SupervisedStage(recipe(SFT, {"teacher": str(folder / "teacher")}))
    state = student.init("cpu")
    run(student, state, 3)
    (folder / "student").mkdir()
    save_state(state, student.spec, folder / "student")
    return {"teacher": str(folder / "teacher"), "student": str(folder / "student")}
