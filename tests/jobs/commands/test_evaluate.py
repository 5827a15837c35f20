"""Which systems are evaluated, from what, and when a result is used again."""

import dataclasses
import json
from pathlib import Path

import pytest

from jobs.commands import evaluate
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from models.errors import CheckpointError

STAGES = ("teacher", "sft", "mixed", "distill", "sft_longer", "mixed_longer")
KEYS = (
    "mmm_4",
    "mmm_fm_50",
    "sft_50",
    "sft_4",
    "sft_50_longer",
    "mixed_50",
    "mixed_50_longer",
    "teacher_rollout",
)


def finish(config, *stages, seed=0):
    """Folders that look as finished stages do."""
    for stage in stages:
        folder = Path(RunPaths.of(config).seed(seed), stage)
        folder.mkdir(parents=True)
        plain = {"checkpoint": f"{folder}/step-3", "summary": {"steps": 3.0}, "recipe": "x"}
        (folder / "outcome.json").write_text(json.dumps(plain))


def test_every_trained_system_is_a_row_of_the_summary(run_config):
    finish(run_config, *STAGES)
    systems = evaluate.systems_of(run_config, 0)
    assert tuple(system.name for system in systems) == KEYS
    assert {system.name: (system.head, system.sampler) for system in systems} == {
        "mmm_4": ("dm", "few_step"),
        "mmm_fm_50": ("fm", "ode"),
        "sft_50": ("fm", "ode"),
        "sft_4": ("fm", "ode"),
        "sft_50_longer": ("fm", "ode"),
        "mixed_50": ("fm", "ode"),
        "mixed_50_longer": ("fm", "ode"),
        "teacher_rollout": ("teacher", "windows"),
    }
    by_name = {system.name: system for system in systems}
    assert by_name["mmm_4"].checkpoint.endswith("distill/step-3")
    assert by_name["mixed_50_longer"].checkpoint.endswith("mixed_longer/step-3")


def test_draws_and_steps_follow_the_settings(run_config):
    config = configs.with_values(run_config, {"evaluation.draws": 3, "sampling.ode_steps": 9})
    finish(config, "sft", "distill")
    told = {system.name: (system.nfe, system.draws) for system in evaluate.systems_of(config, 0)}
    assert told == {"mmm_4": (4, 3), "mmm_fm_50": (9, 1), "sft_50": (9, 1), "sft_4": (4, 3)}


def test_seeds_are_apart(run_config):
    finish(run_config, "sft", seed=1)
    with pytest.raises(CheckpointError, match="sostenuto train teacher"):
        evaluate.systems_of(run_config, 0)
    assert len(evaluate.systems_of(run_config, 1)) == 2


def test_a_result_is_used_again_only_when_nothing_has_changed(run_config):
    finish(run_config, "sft")
    systems, settings = evaluate.systems_of(run_config, 0), evaluate.settings_of(run_config, 0)
    same = evaluate._inputs(systems, settings)
    assert same == evaluate._inputs(systems, settings)
    fewer = dataclasses.replace(settings, evaluation=dataclasses.replace(settings.evaluation, videos=3))
    moved = [dataclasses.replace(system, checkpoint="elsewhere") for system in systems]
    assert (
        len(
            {
                json.dumps(x)
                for x in (same, evaluate._inputs(systems, fewer), evaluate._inputs(moved, settings))
            }
        )
        == 3
    )


def test_the_world_is_known_only_where_it_is_used(run_config):
    assert evaluate.settings_of(run_config, 2).world == run_config.world
    assert evaluate.settings_of(run_config, 2).seed == 2
    assert evaluate.settings_of(configs.load("clips"), 0).world is None
    minute = evaluate.settings_of(configs.load("minute"), 0)
    assert minute.text == configs.load("minute").text
