"""Where a run keeps what."""

import shlex

import pytest
from hypothesis import given, settings
from sqlalchemy.engine import make_url

from jobs.config import load as configs
from jobs.config.paths import RunPaths, absolute_root, absolute_uri, is_remote, resolved, sqlite_uri
from models.errors import ConfigError
from pipelines.storage import Storage
from tests.texts import file_names


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
    assert dataset("autoencoder.fit_steps=9") == dataset()
    conv = ("autoencoder.kind=conv", "autoencoder.patch_size=8", "autoencoder.components=4")
    assert dataset(*conv, "autoencoder.fit_steps=9") != dataset(*conv)


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
        ("a:b", False),
        ("a::b", False),
        ("/mnt/s3://b", False),
    ],
)
def test_remote_roots_are_told_apart(root, remote):
    assert is_remote(root) is remote
    assert absolute_root(root) == root if remote else absolute_root(root).startswith("/")


@settings(max_examples=200)
@given(name=file_names())
def test_a_root_of_any_letters_is_one_folder_for_storage_and_database(name, tmp_path_factory):
    root = tmp_path_factory.getbasetemp() / "roots" / name
    assert absolute_root(str(root)) == str(root)
    assert make_url(sqlite_uri(root / "mlflow.db")).database == f"{root}/mlflow.db"
    storage = Storage(absolute_root(str(root)))
    storage.write_bytes(f"{name}/file", name.encode())
    assert (root / name / "file").read_bytes() == name.encode()
    assert (storage.list(), storage.read_bytes(f"{name}/file")) == ([name], name.encode())
    storage.delete("")
    assert not root.exists()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:///a %23/b.db?timeout=5", "sqlite:///{here}/a #/b.db?timeout=5"),
        ("sqlite:///a%3Fb.db", "sqlite+pysqlite:///{here}/a%3Fb.db"),
        ("mlruns", "{here}/mlruns"),
        ("file:mlruns", "file://{here}/mlruns"),
        ("sqlite:////mnt/a%20b.db", "sqlite:////mnt/a%20b.db"),
        ("sqlite://", "sqlite://"),
        ("http://server:5000", "http://server:5000"),
        ("postgresql://me:secret@server/db", "postgresql://me:secret@server/db"),
        ("databricks", "databricks"),
    ],
)
def test_an_address_of_mlflow_is_absolute(typed, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri(typed) == meant.format(here=tmp_path)
    assert absolute_uri(absolute_uri(typed)) == absolute_uri(typed)


def test_addresses_are_those_of_the_folder_where_the_command_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("extends: ci\nstorage: {root: kept}\n")
    assert resolved(configs.load("mine.yaml")).storage.root == f"{tmp_path}/kept"
    assert resolved(configs.load("ci")).tracking.uri is None
    assert resolved(configs.load("ci")).data.links is None
    assert resolved(configs.load("ci", ["data.links=blobs"])).data.links == f"{tmp_path}/blobs"
    assert resolved(configs.load("ci", ["evaluation.i3d=w"])).evaluation.i3d == f"{tmp_path}/w"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///a.db")
    assert resolved(configs.load("ci")).tracking.uri == f"sqlite:///{tmp_path}/a.db"
    named = configs.load("ci", ["tracking.uri=sqlite:///b.db"])
    assert resolved(named).tracking.uri == f"sqlite:///{tmp_path}/b.db"


@pytest.mark.parametrize(
    "given",
    [("storage.root=runs",), ("storage.root=/mnt/runs", "tracking.uri=sqlite:///mlflow.db")],
)
def test_a_relative_address_is_refused_inside_a_job(given, monkeypatch):
    config = configs.load("ci", given)
    resolved(config)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    resolved(config, runs=False)
    with pytest.raises(ConfigError, match="working directory is temporary") as caught:
        resolved(config)
    words = shlex.split(caught.value.remedy)
    mended = configs.load("ci", [*given, words[words.index("--set") + 1]])
    assert resolved(mended).storage.root == "/mnt/runs"


def test_absolute_addresses_are_taken_inside_a_job(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for root in (
        "storage.root=/mnt//runs/",
        "storage.root=file:///mnt/runs",
        "storage.root=s3://bucket/runs",
    ):
        config = configs.load("ci", [root, "tracking.uri=sqlite:////mnt/a b.db"])
        assert resolved(config).tracking.uri == "sqlite:////mnt/a b.db"
