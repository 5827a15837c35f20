"""Which stages a comparison trains, which rows share them, and what their training cost."""

import dataclasses

import pytest

from jobs import comparing
from jobs.comparing import Work, work_graph
from jobs.config import load as configs
from jobs.config.comparison import HERO, ROWS, Row, chosen_rows
from jobs.config.paths import RunPaths
from jobs.config.systems import planned_systems
from models.errors import ConfigError
from pipelines.evaluation.claims import CLAIMS
from pipelines.storage import Storage


def graph_of(config, *names, seeds=(0,)):
    return work_graph(config, chosen_rows(config, names), seeds)


def of(row, *stages, seed=0):
    return {Work(row, stage, seed) for stage in stages}


@pytest.mark.parametrize("preset", ["tiny", "ci", "minute", "mouse", "clips", "wan-1.3b"])
def test_every_row_is_a_run_that_can_be(preset):
    config = configs.load(preset)
    for row in chosen_rows(config, ()):
        stage, system = row.planned(config)
        assert system.name == row.name
        assert stage in ("distill", "sft", "mixed", "teacher", "sft_longer", "mixed_longer")
        assert preset == "wan-1.3b" or row.settings(config) or not row.overrides, (
            "an override changes something"
        )


def test_rows_without_overrides_are_the_systems_of_evaluate(run_config):
    plain = [row.name for row in ROWS if not row.overrides]
    assert plain == [system.name for _, system in planned_systems(run_config)]
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert HERO in plain


BEYOND = {
    "forward_kl": {"loss.forward_kl_weight": 0.1},
    "adversarial": {"loss.adversarial_weight": 0.01, "distill.short_batch": 128},
    "data_forcing": {"distill.data_forcing_steps": 105},
    "falling_times": {"loss.score_time": "falling"},
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_goes_beyond_the_paper_is_one_setting_and_what_that_needs(name):
    config = configs.load("tiny")
    (row,) = chosen_rows(config, [name])
    assert row.settings(config) == BEYOND[name]
    assert shared(config, name) == {"teacher", "sft"}
    assert [claim.metric for claim in CLAIMS if (claim.system, claim.against) == (name, HERO)] == [
        "window_frechet"
    ]


def test_settings_follow_the_preset():
    wan, minute = configs.load("wan-1.3b"), configs.load("minute")
    (judged,) = chosen_rows(wan, ["adversarial"])
    assert judged.settings(wan)["distill.first_latent"] == "reencoded", "its code is causal"
    (forced,) = chosen_rows(minute, ["data_forcing"])
    assert forced.settings(minute) == {"distill.data_forcing_steps": 60, "distill.rollout_batch": 8}


def test_an_unknown_row_is_refused_with_those_there_are(run_config):
    with pytest.raises(ConfigError, match=r"no system 'mmm5'.*mmm_4, mmm_fm_50"):
        chosen_rows(run_config, ["mmm5"])


def test_a_users_clips_have_no_rows_of_other_worlds():
    clips = configs.load("clips", values={"data.short": "/a", "data.long": "/b"})
    assert "clean_long" not in [row.name for row in chosen_rows(clips, ())]
    with pytest.raises(ConfigError, match="does not use"):
        chosen_rows(clips, ["clean_long"])


def test_rows_keep_the_order_of_the_table(run_config):
    assert [row.name for row in chosen_rows(run_config, ["dm_only", "mmm_4"])] == ["mmm_4", "dm_only"]


def test_stages_that_rows_share_are_trained_once(run_config):
    graph = graph_of(run_config, "mmm_4", "mmm_fm_50", "sft_50", "sft_4")
    assert set(graph) == of("", "teacher", "sft", "distill")
    assert graph[Work("", "distill", 0)] == of("", "teacher", "sft")
    assert list(graph) == [Work("", stage, 0) for stage in ("teacher", "sft", "distill")], "in order"


def test_a_row_waits_for_what_it_takes_over(run_config):
    graph = graph_of(run_config, "dm_only", seeds=(3,))
    own = of("dm_only", "teacher", "sft", "distill", seed=3)
    assert set(graph) == own | of("", "teacher", "sft", seed=3), "the run's own distillation is not needed"
    assert Work("", "sft", 3) in graph[Work("dm_only", "sft", 3)]
    assert Work("", "distill", 3) not in graph[Work("dm_only", "distill", 3)]


def shared(config, name):
    (row,) = chosen_rows(config, [name])
    return {stage for stage in ("teacher", "sft", "distill") if comparing.shares(config, row, stage)}


def test_what_a_setting_decides_is_not_shared(run_config):
    assert shared(run_config, "dm_only") == {"teacher", "sft"}
    assert shared(run_config, "no_anchor") == {"teacher", "sft"}
    assert shared(run_config, "shared_head") == {"teacher"}, "a teacher has no heads of a student"
    assert shared(run_config, "clean_long") == set()


def test_a_dataset_of_its_own_comes_first(run_config):
    graph = graph_of(run_config, "clean_long", seeds=(0, 1))
    dataset = Work("clean_long", comparing.DATASET)
    assert graph[dataset] == set()
    assert all(dataset in graph[work] for seed in (0, 1) for work in of("clean_long", "teacher", seed=seed))
    (row,) = chosen_rows(run_config, ["clean_long"])
    place, run = row.paths(run_config), RunPaths.of(run_config)
    assert place.dataset.startswith(f"{run.root}/compare/clean_long/dataset/")
    assert place.world != run.world


def test_only_rows_with_settings_of_their_own_lie_apart(run_config):
    hero, other = chosen_rows(run_config, ["mmm_4", "dm_only"])
    run = RunPaths.of(run_config)
    assert hero.paths(run_config) == run
    assert other.paths(run_config).seed(0) == f"{run.root}/compare/dm_only/seed-0"
    assert other.paths(run_config).dataset == run.dataset


def test_labels_tell_runs_apart():
    assert Work("", "sft", 0).label == "0 "
    assert Work("dm_only", "sft", 2).label == "dm_only 2 "
    assert Work("clean_long", comparing.DATASET).label == "clean_long "


def finish(config, place, seed, stage, steps, seconds):
    outcome = {"checkpoint": "x", "summary": {"steps": steps, "cpu_seconds": seconds}, "recipe": "x"}
    Storage(place.seed(seed)).write_json(f"{stage}/outcome.json", outcome)


def test_a_budget_adds_up_what_the_weights_come_from(run_config):
    config = configs.with_values(run_config, {"distill.rollout_batch": 5})
    for stage, steps, seconds in (
        ("teacher", 3, 1.0),
        ("sft", 4, 2.0),
        ("distill", 5, 4.0),
        ("mixed", 9, 8.0),
    ):
        finish(config, RunPaths.of(config), 0, stage, steps, seconds)
    hero, mixed = chosen_rows(config, ["mmm_4", "mixed_50"])
    spent = comparing.budget(config, hero, 0)
    assert spent.cpu_seconds == 7.0
    assert spent.gradient_samples == 3 * 4 + 4 * 2 + 5 * (2 + 5)
    assert comparing.budget(config, mixed, 0).cpu_seconds == 9.0
    (judged,) = chosen_rows(config, ["adversarial"])
    same = comparing.samples_per_step(judged.config(config), "distill")
    assert same == 2 + 5, "an adversary's windows teach the student nothing"
    alone = dataclasses.replace(hero, overrides={"loss.flow_matching_weight": 0.0})
    assert comparing.samples_per_step(alone.config(config), "distill") == 5, "no clip of LONG is learnt from"


def test_all_systems_are_judged_by_as_many_videos(run_config):
    row = Row("x", "", {"sampling.rollout_steps": 3})
    settings = comparing.comparison_settings(run_config, row, 2)
    assert (settings.evaluation.draws, settings.evaluation.resamples) == (1, comparing.RESAMPLES)
    assert settings.sampling.rollout_steps == 3
    assert settings.references == f"{RunPaths.of(run_config).root}/references"
    own = dataclasses.replace(row, overrides={"world.long_noise": 0.0})
    assert comparing.comparison_settings(run_config, own, 2).references.endswith("/compare/x/references")
