"""Which systems are evaluated, from what, and when a result is used again."""

import dataclasses
import json
from pathlib import Path

import pytest

from jobs.commands import evaluate
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from models.errors import CheckpointError, ConfigError
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.scores import Scores
from pipelines.tracking import no_progress

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


def evaluated(names, seed=0):
    rows = {name: Scores({"rule": 1.0}) for name in (*names, "corpus_long")}
    return Evaluation(seed, rows, {name: (f"{name}.mp4",) for name in rows}, ("a bay",), (), 1.0)


@pytest.fixture
def asked(monkeypatch):
    """Names of the systems of each evaluation that is made."""
    calls = []

    def made(systems, settings, folder, progress):
        calls.append([system.name for system in systems])
        return evaluated(calls[-1])

    monkeypatch.setattr(evaluate, "compare", made)
    return calls


def test_only_rows_that_are_missing_or_changed_are_evaluated(run_config, tmp_path, asked):
    finish(run_config, "sft", "distill")
    systems, settings = evaluate.systems_of(run_config, 0), evaluate.settings_of(run_config, 0)
    folder = str(tmp_path / "evaluation")

    def rows(chosen, settings=settings, **more):
        result, new = evaluate.evaluate_missing(chosen, settings, folder, no_progress, **more)
        return list(result.rows), new

    names = [system.name for system in systems]
    assert rows(systems[1:3]) == ([*names[1:3], "corpus_long"], [*names[1:3], "corpus_long"])
    assert rows(systems[1:3]) == ([*names[1:3], "corpus_long"], [])
    assert rows(systems) == ([*names, "corpus_long"], [names[0], names[3], "corpus_long"])
    assert rows(systems[:1]) == ([names[0], "corpus_long"], []), "what is not asked for is kept"
    assert rows(systems)[1] == []
    moved = [dataclasses.replace(systems[0], checkpoint="elsewhere"), *systems[1:]]
    assert rows(moved)[1] == [names[0], "corpus_long"]
    fewer = dataclasses.replace(settings, evaluation=dataclasses.replace(settings.evaluation, videos=3))
    assert rows(moved, fewer)[1] == [*names, "corpus_long"]
    assert rows(moved, fewer, fresh=True)[1] == [*names, "corpus_long"]
    assert asked == [names[1:3], [names[0], names[3]], names[:1], names, names]
    stored = json.loads((tmp_path / "evaluation" / evaluate.RESULT).read_text())
    assert list(stored["rows"]) == [*names, "corpus_long"]


def test_an_evaluation_that_was_stopped_while_it_was_stored_is_made_again(run_config, tmp_path, asked):
    finish(run_config, "sft")
    systems, settings = evaluate.systems_of(run_config, 0), evaluate.settings_of(run_config, 0)
    folder = tmp_path / "evaluation"
    evaluate.evaluate_missing(systems[:1], settings, str(folder), no_progress)
    stored = evaluated([systems[1].name]).to_json()
    (folder / evaluate.RESULT).write_text(json.dumps(stored))
    result, _ = evaluate.evaluate_missing(systems, settings, str(folder), no_progress)
    assert list(result.rows) == [system.name for system in systems] + ["corpus_long"]


def test_the_world_is_known_only_where_it_is_used(run_config):
    assert evaluate.settings_of(run_config, 2).world == run_config.world
    assert evaluate.settings_of(run_config, 2).seed == 2
    assert evaluate.settings_of(configs.load("clips"), 0).world is None
    minute = evaluate.settings_of(configs.load("minute"), 0)
    assert minute.text == configs.load("minute").text


def test_rows_are_named_by_their_folders_or_as_asked():
    assert evaluate.named(["a/ours", "b/theirs/", "other=/x=y/z"]) == {
        "ours": "a/ours",
        "theirs": "b/theirs/",
        "other": "/x=y/z",
    }
    assert evaluate.named(["s3://bucket/a=b/clips"]) == {"clips": "s3://bucket/a=b/clips"}
    for places in (["a/ours", "b/ours"], ["real"], ["real=a"]):
        with pytest.raises(ConfigError, match="NAME=DIR"):
            evaluate.named(places)


def test_without_the_weights_nothing_is_begun(run_config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = configs.with_values(run_config, {"evaluation.fvd": True})
    with pytest.raises(CheckpointError, match="sostenuto fetch i3d"):
        evaluate.evaluate(config)
