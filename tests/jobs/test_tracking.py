"""Runs in a real sqlite file and on a real MLflow server: resumed by name, nested, buffered, and ended."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs import tracking
from jobs.cli import app
from jobs.commands.track import track
from jobs.config import load as configs
from jobs.config import schema
from jobs.config.paths import resolved
from jobs.unsent import tell_unsent, unsent_of
from jobs.used_dataset import UsedDataset
from models.errors import ClusterError, ConfigError
from pipelines.tracking import NullTracker
from tests.command import free_port, sent
from tests.texts import file_names


def run_of(reference):
    return tracking.client_of(reference.uri).get_run(reference.run_id)


def history(reference, name):
    points = tracking.client_of(reference.uri).get_metric_history(reference.run_id, name)
    return [(point.step, point.value) for point in points]


def eventually(is_so, seconds=20):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_same_command_writes_on_in_the_same_run(run_config):
    first = tracking.open_run(run_config, "seed-0/teacher", tags={"data_hash": "abc"})
    tracker = first()
    tracker.metrics(1, {"train/loss": 0.5})
    tracker.close("KILLED")
    again = tracking.open_run(run_config, "seed-0/teacher")
    assert again == first
    assert run_of(again).info.status == "RUNNING"
    tracker = again()
    tracker.metrics(2, {"train/loss": 0.25})
    tracker.close()
    run = run_of(again)
    assert run.info.status == "FINISHED"
    assert run.data.tags["data_hash"] == "abc"
    assert run.data.tags["mlflow.source.git.commit"]
    assert history(again, "train/loss") == [(1, 0.5), (2, 0.25)]


def test_runs_of_other_names_and_groups_are_other_runs(run_config, root):
    other = configs.with_values(run_config, {"name": "other"})
    ids = {
        tracking.open_run(config, name).run_id
        for config in (run_config, other)
        for name in ("seed-0", "seed-1")
    }
    assert len(ids) == 4


def test_runs_that_bring_a_new_dataset_at_once_all_have_it(run_config):
    together = threading.Barrier(4)

    def open_at_once(number, name):
        together.wait()
        return tracking.open_run(
            run_config,
            f"seed-{number}/teacher",
            dataset=UsedDataset(name, "0123456789abcdef", "/data", '{"long": 12}', "training"),
        )

    with ThreadPoolExecutor(4) as pool:
        for name in ("one", "two", "three", "four"):
            runs = list(pool.map(open_at_once, range(4), [name] * 4))
            for run in runs:
                assert name in [given.dataset.name for given in run_of(run).inputs.dataset_inputs]


def test_params_are_the_dotted_names_and_long_ones_are_split(run_config):
    reference = tracking.open_run(run_config, "params")
    tracker = reference()
    text = "x" * (2 * tracking.PARAM_CHARACTERS + 1)
    tracker.params(configs.flatten(run_config) | {"long": text})
    tracker.close(None)
    found = run_of(reference).data.params
    assert json.loads(found["loss.reverse_kl_weight"]) == run_config.loss.reverse_kl_weight
    assert set(schema.settings()) <= set(found)
    assert found["long"] + found["long.1"] + found["long.2"] == text


def test_a_changed_param_is_told_and_the_first_one_stays(run_config):
    reference = tracking.open_run(run_config, "changed")
    tracker = reference()
    tracker.params({"sft.steps": 3, "seed": 0})
    tracker.params({"sft.steps": 5, "seed": 0})
    tracker.close(None)
    run = run_of(reference)
    assert run.data.params == {"sft.steps": "3", "seed": "0"}
    assert {name: text for name, text in run.data.tags.items() if name.startswith("changed")} == {
        "changed.sft.steps": "5"
    }


def test_numbers_wait_until_there_are_enough(run_config, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 1e9)
    reference = tracking.open_run(run_config, "buffer")
    tracker = reference()
    for step in range(tracking.FLUSH_POINTS - 1):
        tracker.metrics(step, {"train/loss": 1.0})
    assert history(reference, "train/loss") == []
    tracker.metrics(tracking.FLUSH_POINTS, {"train/loss": 1.0})
    eventually(lambda: len(history(reference, "train/loss")) == tracking.FLUSH_POINTS)


def test_numbers_wait_no_longer_than_their_time(run_config, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.02)
    reference = tracking.open_run(run_config, "time")
    tracker = reference()
    tracker.metrics(0, {"train/loss": 1.0})
    eventually(lambda: history(reference, "train/loss"))
    assert history(reference, "train/loss") == [(0, 1.0)]
    tracker.close(None)


def test_artifacts_lie_beside_the_sqlite_file(run_config, root):
    reference = tracking.open_run(run_config, "artifacts")
    (root / "table.txt").write_text("a table")
    tracker = reference()
    tracker.artifact(str(root / "table.txt"), "tables")
    (root / "table.txt").unlink()
    tracker.close(None)
    found = list((root / "mlartifacts").rglob("tables/table.txt"))
    assert [path.read_text() for path in found] == ["a table"]


def test_children_of_stopped_trials_are_closed(run_config):
    parent = tracking.open_run(run_config, "sweep")
    done, stopped = (tracking.open_run(run_config, name, parent=parent) for name in ("a", "b"))
    done().close()
    assert tracking.close_children(parent) == 1
    assert run_of(done).info.status == "FINISHED"
    assert run_of(stopped).info.status == "KILLED"
    assert run_of(stopped).data.tags["mlflow.parentRunId"] == parent.run_id
    assert tracking.close_children(parent) == 0


def test_a_factory_travels_to_a_worker(run_config):
    reference = tracking.open_run(run_config, "factory")
    copy = sent(tracking.factory(reference))
    assert copy == reference
    tracker = copy()
    tracker.metrics(0, {"train/loss": 1.0})
    tracker.close()
    assert history(reference, "train/loss") == [(0, 1.0)]


def test_tracking_can_be_off(run_config):
    off = configs.with_values(run_config, {"tracking.enabled": False})
    assert tracking.open_run(off, "off") is None
    tracker = tracking.factory(None)()
    assert isinstance(tracker, NullTracker)
    tracker.params({"a": 1})
    tracker.metrics(0, {"a": 1.0})
    tracker.artifact("nowhere")
    tracker.tags({"a": "b"})
    tracker.close()


def test_the_address_is_the_settings_then_the_variables_then_a_file(run_config, root, monkeypatch):
    assert tracking.tracking_uri(run_config) == f"sqlite:///{root}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking.tracking_uri(run_config) == "http://server:5000"
    named = configs.with_values(run_config, {"tracking.uri": "sqlite:////elsewhere.db"})
    assert tracking.tracking_uri(named) == "sqlite:////elsewhere.db"


@pytest.mark.parametrize("given", ["setting", "variable"])
def test_a_relative_address_is_where_the_command_was_typed_for_every_process(
    given, run_config, tmp_path, monkeypatch
):
    """A worker has another folder: what it gets, and finds in its variables, must not depend on that."""
    (tmp_path / "here").mkdir()
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if given == "variable":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    else:
        run_config = configs.with_values(run_config, {"tracking.uri": "sqlite:///mlflow.db"})
    shutil.copy(tmp_path / "mlflow.db", tmp_path / "here")
    config = sent(resolved(run_config))
    reference = sent(tracking.open_run(config, "parent"))
    monkeypatch.chdir(tmp_path / "worker")
    tracker = reference()
    tracker.metrics(0, {"train/loss": 1.0})
    tracker.close()
    child = tracking.open_run(config, "child", parent=reference)
    assert child.uri == reference.uri == f"sqlite:///{tmp_path}/here/mlflow.db"
    assert history(reference, "train/loss") == [(0, 1.0)]
    assert not list((tmp_path / "worker").iterdir())


def test_a_remote_root_needs_a_server(run_config):
    remote = configs.with_values(run_config, {"storage.root": "s3://bucket/runs"})
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        tracking.tracking_uri(remote)


def test_a_server_that_is_not_there_is_named(run_config, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    address = f"http://127.0.0.1:{free_port()}"
    gone = configs.with_values(run_config, {"tracking.uri": address})
    with pytest.raises(ClusterError, match=r"MLflow at http://127\.0\.0\.1.*tracking\.enabled=false"):
        tracking.open_run(gone, "x")


def test_a_deleted_experiment_can_be_restored_as_the_error_says(run_config):
    reference = tracking.open_run(run_config, "x")
    experiment = run_of(reference).info.experiment_id
    tracking.client_of(reference.uri).delete_experiment(experiment)
    with pytest.raises(ConfigError, match="was deleted") as caught:
        tracking.open_run(run_config, "x")
    variable, *words = shlex.split(caught.value.remedy.split("`")[1])
    assert variable == f"MLFLOW_TRACKING_URI={reference.uri}"
    assert words == ["mlflow", "experiments", "restore", "--experiment-id", experiment]
    tracking.client_of(reference.uri).restore_experiment(experiment)
    assert tracking.open_run(run_config, "x") == reference


@settings(max_examples=1, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(names=st.lists(file_names(), min_size=200, max_size=200, unique=True))
def test_what_is_recorded_comes_back_whatever_letters_it_has(names, run_config):
    """200 texts as params, tags and names of files; ten of them as the names of runs and of their group."""
    reference = tracking.open_run(run_config, "letters")
    tracker = reference()
    tracker.params({f"p{index}": text for index, text in enumerate(names)})
    tracker.tags({f"t{index}": text for index, text in enumerate(names)})
    tracker.close()
    found = run_of(reference).data
    assert [found.params[f"p{index}"] for index in range(200)] == names
    assert [found.tags[f"t{index}"] for index in range(200)] == names
    for name in ["bob's run", "a \"b\" 'c'", *names[:10]]:
        config = configs.load("ci", values={"name": name, "storage.root": run_config.storage.root})
        reference = tracking.open_run(config, name)
        assert tracking.open_run(config, name) == reference
        assert run_of(reference).info.run_name == f"{name}/{name}"


class Away:
    """A client whose server has gone."""

    def __getattr__(self, name):
        def call(*_words, **_named):
            raise OSError("connection refused")

        return call


@pytest.fixture
def server_goes(monkeypatch):
    """Calling it makes the server of trackers go away, or come back."""
    real, there = tracking.client_of, [True]

    class Client:
        def __init__(self, uri):
            self.real = real(uri)

        def __getattr__(self, name):
            return getattr(self.real if there[0] else Away(), name)

    monkeypatch.setattr(tracking, "client_of", Client)
    monkeypatch.setattr(tracking, "FLUSH_S", 0.02)

    def goes(away=True):
        there[0] = not away

    return goes


def test_numbers_survive_a_server_that_goes_away(run_config, root, server_goes, caplog):
    reference = tracking.open_run(run_config, "away")
    server_goes()
    tracker = reference()
    tracker.params({"a": 1})
    for step in range(3):
        tracker.metrics(step, {"train/loss": float(step)})
        time.sleep(0.05)
    tracker.artifact("nowhere")
    assert sum("takes nothing for now" in line for line in caplog.messages) == 1, "one warning a time"
    assert "nowhere is not in MLflow" in caplog.text
    server_goes(away=False)
    tracker.metrics(3, {"train/loss": 3.0})
    eventually(lambda: len(history(reference, "train/loss")) == 4)
    tracker.close()
    assert history(reference, "train/loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert run_of(reference).data.params == {"a": "1"}
    assert not (root / "ci" / "unsent").exists()


def test_what_could_not_be_sent_is_told_with_the_command_that_sends_it_once(
    run_config, root, server_goes, caplog, capsys, tmp_path
):
    reference = tracking.open_run(run_config, "unsent")
    server_goes()
    tracker = reference()
    (tmp_path / "clip.mp4").write_bytes(b"video")
    tracker.metrics(7, {"train/loss": 0.5, "train/nothing": float("nan")})
    tracker.artifact(str(tmp_path / "clip.mp4"), "previews")
    tracker.tags({"done": "yes"})
    tracker.close("FAILED")
    tell_unsent(run_config)
    told = caplog.messages[-1]
    assert told.startswith("MLflow has not taken 2 metric values and 3 other records of 1 run. ")
    words = shlex.split(told.split("To send them: ")[1])
    assert words[:3] == ["sostenuto", "track", "--resend"]
    with pytest.raises(ClusterError, match="refused"):
        track(run_config, resend=True)
    server_goes(away=False)
    shutil.copytree(root / "ci" / "unsent", tmp_path / "again")
    for _ in range(2):
        assert CliRunner().invoke(app, words[1:]).exit_code == 0
        run = run_of(reference)
        assert history(reference, "train/loss") == [(7, 0.5)]
        assert len(history(reference, "train/nothing")) == 1
        assert (run.info.status, run.data.tags["done"]) == ("FAILED", "yes")
        assert [path.read_bytes() for path in root.rglob("mlartifacts/**/clip.mp4")] == [b"video"]
        assert list((root / "ci" / "unsent").iterdir()) == []
        shutil.copytree(tmp_path / "again", root / "ci" / "unsent", dirs_exist_ok=True)


def test_a_run_that_has_gone_on_since_keeps_its_end(run_config, server_goes):
    reference = tracking.open_run(run_config, "gone-on")
    server_goes()
    reference().close("FAILED")
    server_goes(away=False)
    reference().close("FINISHED")
    assert track(run_config, resend=True) == 0
    assert run_of(reference).info.status == "FINISHED"


def test_memory_is_bounded_while_the_server_is_away(run_config, server_goes, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "KEPT_POINTS", 10)
    monkeypatch.setattr(tracking, "KEPT_FILES", 2)
    monkeypatch.setattr(tracking, "FILES_S", 0.01)
    reference = tracking.open_run(run_config, "bounded")
    server_goes()
    tracker = reference()
    (tmp_path / "clip").write_bytes(b"x")
    for step in range(40):
        tracker.metrics(step, {"train/loss": float(step)})
        tracker.artifact(str(tmp_path / "clip"), f"step-{step}")
        assert len(tracker._waiting) <= 10
    tracker.close()
    kept = [entry for file in unsent_of(run_config).files() for entry in file.entries]
    assert sorted(e["step"] for e in kept if e["kind"] == "metric") == list(range(40)), "nothing is lost"
    assert len({e["folder"] for e in kept if e["kind"] == "file"}) == 40


def test_a_server_that_hangs_costs_a_step_nothing_and_loses_nothing(run_config, monkeypatch, root):
    """It takes connections and never answers: whoever records goes on at once, and so, soon, does the end."""
    monkeypatch.setattr(tracking, "FLUSH_S", 0.02)
    monkeypatch.setattr(tracking, "CLOSE_S", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        uri = f"http://127.0.0.1:{hanging.getsockname()[1]}"
        tracker = tracking.MlflowTracker(uri, "0" * 32, f"{root}/ci/unsent")
        tracker.metrics(0, {"train/begun": 1.0})
        connection, _ = hanging.accept()
        began = time.monotonic()
        for step in range(1000):
            tracker.metrics(step, {"train/loss": 1.0, "train/rate": 2.0})
        assert time.monotonic() - began < 1.0, "1000 steps"
        tracker.close()
        assert time.monotonic() - began < 5.0
        connection.close()
    tracker._thread.join()
    (kept,) = unsent_of(run_config).files()
    assert sorted(e["step"] for e in kept.entries if e.get("name") == "train/loss") == list(range(1000))
    assert kept.entries[-1]["status"] == "FINISHED"


def test_a_storage_that_takes_nothing_either_is_told(server_goes, run_config, caplog, tmp_path):
    reference = tracking.open_run(run_config, "nowhere")
    server_goes()
    (tmp_path / "file").write_text("")
    tracker = tracking.MlflowTracker(reference.uri, reference.run_id, f"{tmp_path}/file/unsent")
    tracker.metrics(0, {"train/loss": 1.0})
    tracker.close(None)
    assert "1 records are in neither MLflow nor its unsent files" in caplog.text


@pytest.fixture(scope="module")
def server(tmp_path_factory, mlflow_template):
    """A real MLflow server on this machine."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    port = free_port()
    words = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            *words,
        ],
        cwd=folder,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=1):
                break
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, "the server ended"
            time.sleep(0.2)
    yield address
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_real_server_takes_everything(server, run_config, root):
    config = configs.with_values(run_config, {"tracking.uri": server})
    parent = tracking.open_run(config, "sweep")
    child = tracking.open_run(config, "sweep/0", parent=parent)
    tracker = child()
    tracker.params(configs.flatten(config))
    for step in range(500):
        tracker.metrics(step, {"train/loss": 1.0 / (step + 1)})
    (root / "clip.mp4").write_bytes(b"video")
    tracker.artifact(str(root / "clip.mp4"), "previews")
    tracker.close()
    run = run_of(child)
    assert len(history(child, "train/loss")) == 500
    assert run.data.params["loss.reverse_kl_weight"] == "1.0"
    assert [file.path for file in tracking.client_of(server).list_artifacts(child.run_id, "previews")] == [
        "previews/clip.mp4"
    ]
    assert tracking.open_run(config, "sweep/0", parent=parent) == child
    tracking.client_of(server).set_terminated(child.run_id)
    assert tracking.close_children(parent) == 0
