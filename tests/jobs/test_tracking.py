"""Runs in a real sqlite file and on a real MLflow server: resumed by name, nested, buffered, and ended."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from jobs import tracking
from jobs.config import load as configs
from jobs.config.schema import settings
from models.errors import ClusterError, ConfigError
from pipelines.tracking import NullTracker
from tests.command import free_port, sent


def run_of(reference):
    return tracking._client(reference.uri).get_run(reference.run_id)


def history(reference, name):
    points = tracking._client(reference.uri).get_metric_history(reference.run_id, name)
    return [(point.step, point.value) for point in points]


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


def test_params_are_the_dotted_names_and_long_ones_are_split(run_config):
    reference = tracking.open_run(run_config, "params")
    tracker = reference()
    text = "x" * (2 * tracking.PARAM_CHARACTERS + 1)
    tracker.params(configs.flatten(run_config) | {"long": text})
    found = run_of(reference).data.params
    assert json.loads(found["loss.reverse_kl_weight"]) == run_config.loss.reverse_kl_weight
    assert set(settings()) <= set(found)
    assert found["long"] + found["long.1"] + found["long.2"] == text


def test_a_changed_param_is_told_and_the_first_one_stays(run_config):
    reference = tracking.open_run(run_config, "changed")
    tracker = reference()
    tracker.params({"sft.steps": 3, "seed": 0})
    tracker.params({"sft.steps": 5, "seed": 0})
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
    assert len(history(reference, "train/loss")) == tracking.FLUSH_POINTS


def test_numbers_wait_no_longer_than_their_time(run_config, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    reference = tracking.open_run(run_config, "time")
    reference().metrics(0, {"train/loss": 1.0})
    assert history(reference, "train/loss") == [(0, 1.0)]


def test_artifacts_lie_beside_the_sqlite_file(run_config, root):
    reference = tracking.open_run(run_config, "artifacts")
    (root / "table.txt").write_text("a table")
    reference().artifact(str(root / "table.txt"), "tables")
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
    copy().metrics(0, {"train/loss": 1.0})
    assert copy == reference


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


class Away:
    """A client whose server has gone."""

    def __getattr__(self, name):
        def call(*_words, **_named):
            raise OSError("connection refused")

        return call


def test_numbers_survive_a_server_that_goes_away(run_config, root, monkeypatch, capsys):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    reference = tracking.open_run(run_config, "away")
    tracker = reference()
    here, tracker._client = tracker._client, Away()
    for step in range(3):
        tracker.metrics(step, {"train/loss": float(step)})
    tracker.params({"a": 1})
    tracker.artifact("nowhere")
    assert capsys.readouterr().err.count("\n") == 1, "one warning, not one for each number"
    tracker._client = here
    tracker.metrics(3, {"train/loss": 3.0})
    assert history(reference, "train/loss") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_what_cannot_be_sent_at_the_end_is_written_beside_the_run(run_config, root, capsys):
    tracker = tracking.open_run(run_config, "unsent")()
    tracker._client = Away()
    tracker.metrics(7, {"train/loss": 0.5})
    tracker.close()
    lines = (root / "ci" / "unsent" / f"mlflow-{tracker.run_id}.jsonl").read_text().splitlines()
    assert [(json.loads(line)["step"], json.loads(line)["value"]) for line in lines] == [(7, 0.5)]
    assert "1 metric values" in capsys.readouterr().err


def test_memory_is_bounded_while_the_server_is_away(run_config, root, monkeypatch):
    monkeypatch.setattr(tracking, "FLUSH_S", 0.0)
    monkeypatch.setattr(tracking, "KEPT_POINTS", 10)
    tracker = tracking.open_run(run_config, "bounded")()
    tracker._client = Away()
    for step in range(40):
        tracker.metrics(step, {"train/loss": float(step)})
    tracker.close()
    lines = (root / "ci" / "unsent" / f"mlflow-{tracker.run_id}.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(40)), "nothing lost, in order"


@pytest.fixture(scope="module")
def server(tmp_path_factory, mlflow_template):
    """A real MLflow server on this machine."""
    import shutil

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
    assert [file.path for file in tracking._client(server).list_artifacts(child.run_id, "previews")] == [
        "previews/clip.mp4"
    ]
    assert tracking.open_run(config, "sweep/0", parent=parent) == child
    tracking._client(server).set_terminated(child.run_id)
    assert tracking.close_children(parent) == 0
