"""Where a run keeps what."""

import pytest

from jobs.config import load as configs
from jobs.config.paths import RunPaths, absolute_root, is_remote, require_lasting_root
from models.errors import ConfigError


def test_every_path_lies_in_the_run_folder(tmp_path):
    config = configs.load("ci", [f"storage.root={tmp_path}"])
    paths = RunPaths.of(config)
    assert paths.root == f"{tmp_path}/ci"
    every = [paths.world, paths.dataset, paths.inspection, paths.samples, paths.sweeps]
    every += [paths.seed(0), paths.seed(1), paths.evaluation(1)]
    assert len(set(every)) == len(every)
    assert all(path.startswith(paths.root + "/") for path in every)
    assert paths.evaluation(1) == f"{tmp_path}/ci/seed-1/evaluation"


def test_other_settings_of_the_data_have_another_dataset(tmp_path):
    def dataset(*overrides):
        return RunPaths.of(configs.load("ci", [f"storage.root={tmp_path}", *overrides])).dataset

    assert dataset() == dataset("data.limits.timeout_s=9", "data.short=a", "data.long=b", "teacher.steps=7")
    changed = {dataset("data.holdout=0.3"), dataset("autoencoder.components=2"), dataset("world.seed=5")}
    assert len(changed | {dataset()}) == 4


def test_corpora_are_the_worlds_or_the_users(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = configs.load("ci")
    assert RunPaths.of(world).corpora(world) == (
        f"{tmp_path}/runs/ci/world/short",
        f"{tmp_path}/runs/ci/world/long",
    )
    own = configs.load("clips", ["data.short=a", "data.long=s3://bucket/b"])
    assert RunPaths.of(own).corpora(own) == (f"{tmp_path}/a", "s3://bucket/b")


@pytest.mark.parametrize(
    ("root", "remote"),
    [
        ("runs", False),
        ("/mnt/runs", False),
        ("file:///mnt/runs", False),
        ("s3://b/r", True),
        ("memory://r", True),
    ],
)
def test_remote_roots_are_told_apart(root, remote):
    assert is_remote(root) is remote
    assert absolute_root(root) == root if remote else absolute_root(root).startswith("/")


def test_a_relative_root_is_refused_inside_a_job(monkeypatch):
    require_lasting_root("runs")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"--set storage\.root="):
        require_lasting_root("runs")
    require_lasting_root("/mnt/runs")
    require_lasting_root("s3://bucket/runs")
