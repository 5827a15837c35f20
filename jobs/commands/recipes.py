"""From the settings of a run to the recipe of each stage: what it starts from, and what it trains on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.config.schema import RunConfig
from models.config import LoraConfig
from models.errors import CheckpointError, ConfigError
from pipelines.data.store.info import DatasetInfo
from pipelines.training.config import StageConfig
from pipelines.training.supervised import Recipe
from pipelines.training.trainer import finished_stage

BASELINES = {"sft_longer": "sft", "mixed_longer": "mixed"}
"""Baselines that train on for as many CPU-seconds as distillation took, and the stage each goes on from."""


@dataclass(frozen=True)
class StagePlan:
    """A stage of this run.

    Args:
        name: its folder.
        settings: its steps, batches and rates.
        starts: role to the stage whose last checkpoint it starts from.
        critic_only: the warm-up of distillation.
    """

    name: str
    settings: StageConfig
    starts: Mapping[str, str]
    critic_only: bool = False


def stage_plan(config: RunConfig, name: str) -> StagePlan:
    """What the stage `name` trains and starts from.

    Raises:
        ConfigError: there is no such stage.
    """
    distill_starts = {"teacher": "teacher", "student": "sft"}
    warm = distill_starts | ({"critic": "warmup"} if config.warmup.steps else {})
    warmup = dataclasses.replace(config.distill, steps=config.warmup.steps)
    plans = {
        "teacher": StagePlan("teacher", config.teacher, {}),
        "sft": StagePlan("sft", config.sft, {"teacher": "teacher"}),
        "mixed": StagePlan("mixed", config.mixed, {"teacher": "teacher"}),
        "warmup": StagePlan("warmup", warmup, distill_starts, critic_only=True),
        "distill": StagePlan("distill", config.distill, warm),
        "sft_longer": StagePlan("sft_longer", config.sft, {"student": "sft"}),
        "mixed_longer": StagePlan("mixed_longer", config.mixed, {"student": "mixed"}),
    }
    if name not in plans:
        raise ConfigError(f"there is no stage {name!r}", f"Stages: {', '.join(plans)}")
    return plans[name]


def make_recipe(config: RunConfig, plan: StagePlan, dataset: DatasetInfo, root: str, seed: int) -> Recipe:
    """The recipe of a stage, with the checkpoints of the stages before it.

    Args:
        config: the run's settings.
        plan: the stage.
        dataset: what it trains on.
        root: folder of the stages of this seed.
        seed: the seed of training.

    Raises:
        CheckpointError: a stage that it starts from has not finished.
    """
    return Recipe(
        model=config.model,
        text=config.text,
        flow=config.flow,
        loss=config.loss,
        sampling=config.sampling,
        stage=plan.settings,
        short_shape=dataset.short.latent_shape,
        long_shape=dataset.long.latent_shape,
        start={role: last_checkpoint(root, stage, plan.name) for role, stage in plan.starts.items()},
        seed=seed,
        critic_only=plan.critic_only,
        lora=config.lora if plan.name.removesuffix("_longer") in config.lora.stages else LoraConfig(),
        crop_safe=dataset.autoencoder["crop_safe"],
    )


def last_checkpoint(root: str, stage: str, wanted_by: str) -> str:
    """The last checkpoint of a finished stage.

    Raises:
        CheckpointError: it has not finished.
    """
    outcome = finished_stage(root, stage)
    if outcome is None:
        raise CheckpointError(
            f"{wanted_by} needs the finished stage {stage}, which is not in {root}",
            f"Run `sostenuto train {stage}` with the same --config and --set first",
        )
    return outcome.checkpoint


def longer(config: RunConfig, root: str, name: str) -> StagePlan:
    """A baseline's plan with as many steps as distillation's CPU-seconds allow at its own pace."""
    plan = stage_plan(config, name)
    base, distill = finished_stage(root, BASELINES[name]), finished_stage(root, "distill")
    if base is None or distill is None:
        missing = BASELINES[name] if base is None else "distill"
        last_checkpoint(root, missing, name)
    assert base is not None
    assert distill is not None
    pace = base.summary["cpu_seconds"] / base.summary["steps"]
    steps = max(1, round(distill.summary["cpu_seconds"] / pace))
    settings = dataclasses.replace(
        plan.settings, steps=steps, warmup_steps=min(plan.settings.warmup_steps, steps)
    )
    return dataclasses.replace(plan, settings=settings)
