"""Sweeps: what is drawn, what is stopped, which checkpoints are measured, and one real search on Ray."""

import dataclasses
import json
import random
import shutil
from types import SimpleNamespace

import pytest

from jobs import trial
from jobs.commands import sweep
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from jobs.config.schema import SweepConfig
from jobs.trial import Relay, system_of, trial_settings
from models.errors import CheckpointError, ClusterError, ConfigError, DataError
from pipelines.storage import Storage
from tests.command import MADE_BY_DISTILLATION, copy_runs, succeed
from tests.pipelines.data.made import end, write_shards
from tests.pipelines.training.makers import SFT, recipe


def draws(space, count=200):
    random.seed(0)
    domain = sweep.space_of(SweepConfig(space={"seed": space}))["seed"]
    return [domain.sample() for _ in range(count)]


def test_choices_are_drawn_from_the_list():
    assert set(draws([1, 2.5, "x"])) == {1, 2.5, "x"}


def test_ranges_are_kept_and_integers_reach_both_ends():
    assert all(0.5 <= value < 2 for value in draws({"low": 0.5, "high": 2}))
    assert set(draws({"low": 1, "high": 3, "integer": True})) == {1, 2, 3}
    assert set(draws({"low": 1, "high": 4, "integer": True, "log": True}, 500)) == {1, 2, 3, 4}


def test_a_logarithmic_range_draws_as_often_below_its_middle():
    below = sum(value < 1e-3 for value in draws({"low": 1e-5, "high": 1e-1, "log": True}, 1000))
    assert 430 < below < 570


def test_random_search_repeats_with_its_seed():
    searches = [sweep.search_of(SweepConfig(seed=seed)) for seed in (3, 3, 4)]
    first, again, other = [search._random_state.random(4).tolist() for search in searches]
    assert first == again != other


def test_optuna_can_search():
    search = sweep.search_of(SweepConfig(search="optuna", max_concurrent=2))
    assert search.max_concurrent == 2


def test_the_scheduler_waits_for_as_many_checkpoints_as_it_is_told():
    config = configs.load("tiny", ["sweep.grace_reports=2", "sweep.reduction_factor=3"])
    asha = sweep.scheduler_of(config)
    assert asha._reduction_factor == 3
    assert min(milestone for milestone, _ in asha._brackets[0]._rungs) == 2 * config.distill.checkpoint_every
    assert asha._max_t == config.distill.steps + 1
    assert asha._time_attr == "step"
    assert (
        type(sweep.scheduler_of(configs.load("tiny", ["sweep.scheduler=none"]))).__name__ == "FIFOScheduler"
    )


@pytest.mark.parametrize(
    ("stage", "head", "sampler"),
    [
        ("distill", "dm", "few_step"),
        ("sft", "fm", "ode"),
        ("mixed", "fm", "ode"),
        ("teacher", "teacher", "windows"),
    ],
)
def test_each_stage_is_sampled_as_its_network_can_be(stage, head, sampler):
    system = system_of(configs.load("tiny", [f"sweep.stage={stage}"]), "folder")
    assert (system.head, system.sampler, system.checkpoint) == (head, sampler, "folder")


def test_trials_are_measured_alike_and_cheaply():
    settings = trial_settings(configs.load("tiny", ["sweep.videos=40"]), "references")
    assert (settings.evaluation.videos, settings.evaluation.draws, settings.evaluation.showcase) == (40, 1, 0)
    assert settings.references == "references"


class Waiting:
    """A queue that holds what it is given."""

    def __init__(self, *items):
        self.items = list(items)

    def qsize(self):
        return len(self.items)

    def get(self):
        return self.items.pop(0)

    def put(self, item):
        self.items.append(item)


@pytest.mark.parametrize(
    ("waiting", "newest", "more"),
    [([], 1, True), ([2], 2, True), ([2, 3, None], 3, False), ([None], 1, False)],
)
def test_the_newest_checkpoint_is_measured(waiting, newest, more):
    items = [item and (item, f"step-{item}") for item in waiting]
    assert trial._newest(Waiting(*items), (1, "step-1")) == ((newest, f"step-{newest}"), more)


def test_a_checkpoint_is_held_when_ray_train_deletes_its_own(tmp_path):
    folder = tmp_path / "step-000002"
    folder.mkdir()
    (folder / "weights").write_text("numbers")
    queue = Waiting()
    relay = Relay(queue, str(tmp_path / "held"))
    relay.after_report(None, [{"step": 2.0}], SimpleNamespace(path=str(folder)))
    relay.after_report(None, [{"step": 3.0}], None)
    shutil.rmtree(folder)
    ((step, held),) = queue.items
    assert step == 2
    assert (tmp_path / "held" / "step-2" / "weights").read_text() == "numbers"
    assert held == str(tmp_path / "held" / "step-2")


def begun(folder, *overrides):
    """A sweep that has begun with these settings, as a killed one leaves it."""
    config = configs.load("ci", [f"storage.root={folder}", *overrides])
    storage = Storage(RunPaths.of(config).sweeps)
    sweep._require_unchanged(config, storage)
    storage.write_bytes("tune/tuner.pkl", b"Ray Tune's own")
    return config


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["sweep.space={loss.reverse_kl_weight: [1, 3]}"],
            r"sweep\.space was .*\[0\.5, 1\.0, 2\.0\].*, now .*\[1, 3\]",
        ),
        (["sweep.space.loss.flow_matching_weight=[0.5, 4]"], r"sweep\.space was .*, now .*\[0\.5, 4\]"),
        (["sweep.trials=9"], r"sweep\.trials was \d+, now 9"),
        (
            ["sweep.mode=max", "teacher.steps=77"],
            r"sweep\.mode was min, now max; teacher\.steps was \d+, now 77",
        ),
    ],
)
def test_a_sweep_that_was_begun_otherwise_is_refused_by_name(overrides, told, tmp_path):
    begun(tmp_path)
    changed = configs.load("ci", [f"storage.root={tmp_path}", *overrides])
    with pytest.raises(CheckpointError, match=told) as caught:
        sweep.sweep(changed)
    assert "--set sweep.name=NAME" in caught.value.remedy
    assert "--fresh" in caught.value.remedy


def test_the_same_sweep_a_moved_one_and_one_of_another_name_may_go_on(tmp_path):
    folder = Storage(RunPaths.of(begun(tmp_path, "cluster.max_failures=1")).sweeps)
    for overrides in ([], ["cluster.max_failures=4", "tracking.enabled=false"]):
        sweep._require_unchanged(configs.load("ci", [f"storage.root={tmp_path}", *overrides]), folder)
    other = configs.load("ci", [f"storage.root={tmp_path}", "sweep.name=wide", "sweep.trials=9"])
    assert RunPaths.of(other).sweeps == f"{tmp_path}/ci/sweep-wide"
    sweep._require_unchanged(other, Storage(RunPaths.of(other).sweeps))


def test_a_sweep_goes_on_from_the_weights_and_data_that_it_was_begun_from(tmp_path):
    statuses = write_shards(tmp_path / "data")
    end(tmp_path / "data", statuses)
    stage = recipe(SFT, {"teacher": "nowhere"})
    first = dataclasses.replace(stage, dataset=f"{tmp_path}/data", inputs={"teacher/weights": "a"})
    folder = Storage(RunPaths.of(begun(tmp_path)).sweeps)
    sweep._require_same_start(first, folder)
    sweep._require_same_start(first, folder)
    with pytest.raises(
        CheckpointError, match=r"other weights or data: teacher was trained again since.*--fresh"
    ):
        sweep._require_same_start(dataclasses.replace(first, inputs={"teacher/weights": "b"}), folder)
    end(tmp_path / "data", statuses, parts=2)
    with pytest.raises(CheckpointError, match="the dataset has changed"):
        sweep._require_same_start(first, folder)


def test_settings_of_a_sweep_that_ray_never_began_may_change(tmp_path):
    folder = Storage(RunPaths.of(begun(tmp_path)).sweeps)
    folder.delete("tune")
    sweep._require_unchanged(configs.load("ci", [f"storage.root={tmp_path}", "sweep.trials=9"]), folder)
    assert folder.read_json(sweep.BEGUN)["sweep.trials"] == 9


def test_a_sweeps_name_is_part_of_a_folders(tmp_path):
    with pytest.raises(ConfigError, match=r"sweep\.name"):
        configs.load("ci", ["sweep.name=../dataset"])


def result(trial_id, metric, step, error=None):
    metrics = {"trial_id": trial_id, "window_frechet": metric, "step": step}
    return SimpleNamespace(metrics=metrics, config={"seed": step}, error=error)


def test_results_are_sorted_and_told_apart():
    config = configs.load("tiny")
    grid = [
        result("a", 3.0, 100),
        result("b", 1.0, config.distill.steps),
        result("c", None, 0, RuntimeError("x")),
    ]
    found = sweep._results(config, grid)
    assert [(trial.trial, trial.status) for trial in found] == [
        ("b", "finished"),
        ("a", "stopped"),
        ("c", "failed"),
    ]
    most = configs.load("tiny", ["sweep.mode=max"])
    assert [trial.trial for trial in sweep._results(most, grid)] == ["a", "b", "c"]


def test_when_every_trial_fails_their_own_error_is_raised():
    wrapped = RuntimeError("ray")
    wrapped.cause = DataError("no dataset", "Run ingest")
    with pytest.raises(DataError, match="Run ingest"):
        sweep._results(configs.load("tiny"), [result("a", None, 0, wrapped)])
    with pytest.raises(ClusterError, match="--debug"):
        sweep._results(configs.load("tiny"), [])


@pytest.mark.timeout(600)
def test_a_real_search_trains_measures_and_is_gone_on_with(finished_quickstart, head, tmp_path):
    root = copy_runs(finished_quickstart, tmp_path, "seed-0", *MADE_BY_DISTILLATION) / "runs"
    words = ["sweep", "--config", "ci", "--set", "sweep.stage=teacher", "--set", "teacher.steps=2"]
    words += ["--set", "sweep.space.teacher.learning_rate=[1e-3,3e-3]", "--set", "teacher.checkpoint_every=1"]
    done = succeed(tmp_path, *words, timeout_s=500, **head.variables)
    assert done.count("finished") == 2
    assert "best: --set teacher.learning_rate=" in done
    trials = sorted((root / "ci" / "sweep" / "trials").iterdir())
    assert len(trials) == 2
    assert all((folder / "teacher" / "outcome.json").is_file() for folder in trials)
    config = configs.load("ci", [f"storage.root={root}"])
    assert check_runs(config) == ["FINISHED"] * 2
    again = succeed(tmp_path, *words, **head.variables)
    assert "resuming the sweep" in again
    assert again.count("finished") == 2
    assert sorted((root / "ci" / "sweep" / "trials").iterdir()) == trials


def check_runs(config):
    """Statuses of the children of the sweep's run."""
    from jobs.tracking import client_of, open_run

    parent = open_run(config, "sweep")
    client = client_of(parent.uri)
    experiment = client.get_run(parent.run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.run_id}'")
    for run in found:
        assert json.loads(run.data.params["teacher.learning_rate"]) in (1e-3, 3e-3)
        assert "eval/window_frechet" in run.data.metrics
        assert "train/loss" in run.data.metrics
    return [run.info.status for run in found]


def test_the_folders_of_a_sweep_are_the_runs(tmp_path):
    paths = RunPaths.of(configs.load("ci", [f"storage.root={tmp_path}"]))
    assert paths.sweeps == f"{tmp_path}/ci/sweep"
