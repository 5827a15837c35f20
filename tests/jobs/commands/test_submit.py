"""Jobs on a real head with the token on: what is sent, what comes back, what is said when it cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cli import app
from jobs.commands import submit
from jobs.commands.submit import Submission
from models.errors import ClusterError, ConfigError
from tests.command import free_port
from tests.head import Head
from tests.jobs.conftest import ROOT


def request_of(*command, **options):
    settings = {"address": None, "submission_id": None, "env": [], "working_dir": "."} | options
    return Submission.of(command, **settings)


def test_our_commands_become_python_m_jobs():
    assert request_of("train", "teacher", "--set", "name=my run").entrypoint == (
        "python -m jobs train teacher --set 'name=my run'"
    )
    assert request_of("python", "-c", "print(1)").entrypoint == "python -c 'print(1)'"


@pytest.mark.parametrize("name", [found.name or found.callback.__name__ for found in app.registered_commands])
def test_every_command_of_the_command_line_can_be_submitted(name):
    assert request_of(name, "--help").entrypoint == f"python -m jobs {name} --help"


@pytest.mark.parametrize("command", ["export", "kernels"])
def test_a_submitted_command_is_ours_and_not_the_shells(command):
    entrypoint = request_of(command, "--help").entrypoint
    done = subprocess.run(
        ["/bin/sh", "-c", entrypoint.replace("python", sys.executable, 1)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"Usage: sostenuto {command}" in done.stdout


def test_the_address_is_the_option_then_the_variables_then_this_machine(monkeypatch):
    assert request_of("world").address == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert request_of("world").address == "http://127.0.0.1:8265", (
        "an address of Ray is none of the Jobs server"
    )
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265/")
    assert request_of("world").address == "http://head:8265"
    assert request_of("world", address="http://other:1").address == "http://other:1"


def test_variables_and_the_commit_travel(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    env = request_of("world", env=["A=1=2"]).runtime_env["env_vars"]
    assert env["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert env["A"] == "1=2"
    assert len(env["SOSTENUTO_COMMIT"]) >= 40


def test_data_and_environments_stay_at_home():
    excludes = request_of("world").runtime_env["excludes"]
    assert {".git", ".venv", "runs", "mlflow.db", "*.[mM][pP]4"} <= set(excludes)


@pytest.mark.parametrize(
    ("options", "problem"), [({"env": ["A"]}, "NAME=VALUE"), ({"working_dir": "/nowhere"}, "not a folder")]
)
def test_wrong_options_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        request_of("world", **options)


def test_the_token_is_the_variable_then_the_named_file_then_the_home(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert submit.token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert submit.token() == "home"
    (tmp_path / "named").write_text("named\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert submit.token() == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert submit.token() == "variable"


def test_a_dry_run_prints_the_job_and_sends_nothing(capsys):
    assert submit.submit(request_of("world"), follow=True, dry_run=True) == 0
    assert json.loads(capsys.readouterr().out)["entrypoint"] == "python -m jobs world"


def test_a_dry_run_shows_what_travels_and_what_stays(tmp_path, capsys):
    (tmp_path / "code.py").write_text("pass")
    (tmp_path / "clips").mkdir()
    for name in ("a.MOV", "b.MOV", "c.mkv"):
        (tmp_path / "clips" / name).write_bytes(bytes(9))
    submit.submit(request_of("world", working_dir=str(tmp_path)), follow=True, dry_run=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["files"], shown["bytes"]) == (1, 4)
    assert shown["left_out"] == ["clips/*.MOV (2)", "clips/c.mkv"]


class Server:
    """A Jobs server that refuses every job with the same words."""

    def __init__(self, refusal):
        self._refusal = refusal

    def submit_job(self, **_job):
        raise RuntimeError(self._refusal)


@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [
        ("Request failed with status code 413: 413: Request Entity Too Large.", r"\.rayignore"),
        ("Request failed: ValueError: Job with submission_id a already exists", "another --submission-id"),
        ("Request failed: ValueError: env_vars must be text", "Correct what the server names"),
    ],
)
def test_a_refused_job_has_the_remedy_for_its_reason(refusal, remedy, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "long.txt").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(submit, "connect", lambda _address: Server(refusal))
    with pytest.raises(ClusterError, match=remedy) as caught:
        submit.submit(request_of("world", working_dir=str(tmp_path)), follow=True, dry_run=False)
    assert ("notes/ 3.0 MB" in caught.value.problem) == ("413" in refusal)


def test_no_head_is_a_line_with_the_remedy():
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match="no Ray head answers at") as caught:
        submit.connect(address)
    assert "ray start --head" in caught.value.remedy


PROBE = (
    "import os, pathlib; there = lambda name: pathlib.Path(name).exists(); "
    "print('made by', os.environ['MAKER'], there('jobs/cli.py'), there('.git'))"
)


def send(sostenuto, head: Head, *words, **variables):
    """`sostenuto submit` with the head's token, or with other variables."""
    variables = variables or {"RAY_AUTH_TOKEN": head.token}
    return sostenuto("submit", "--address", head.address, *words, **variables)


def test_a_job_runs_in_a_copy_of_the_working_directory(sostenuto, head):
    done = send(sostenuto, head, "--submission-id", "probe-1", "--env", "MAKER=me", "python", "-c", PROBE)
    assert done.returncode == 0, done.stderr
    assert "made by me True False" in done.stdout
    assert "probe-1 succeeded" in done.stdout


def test_a_sostenuto_command_runs_and_a_relative_root_is_refused_there(sostenuto, head):
    done = send(sostenuto, head, "world", "--config", "ci")
    assert done.returncode == 1
    assert "error: storage.root 'runs' is relative" in done.stdout
    assert "--set storage.root=" in done.stdout


def test_a_taken_name_is_refused(sostenuto, head):
    words = ("--no-wait", "--submission-id", "probe-2", "python", "-c", "pass")
    first, second = (send(sostenuto, head, *words) for _ in range(2))
    assert first.returncode == 0
    assert f"ray job logs --follow --address {head.address} probe-2" in first.stdout
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "already exists" in second.stderr


@pytest.mark.parametrize("variables", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "f" * 64}])
def test_an_absent_or_wrong_token_is_a_line_with_the_remedy(sostenuto, head, variables):
    done = send(sostenuto, head, "world", **variables)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the Jobs server at")
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert done.stderr.count("\n") == 1


def test_plain_ray_job_submit_works_too(head):
    ray = Path(sys.executable).with_name("ray")
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
    command = ["python", "-m", "jobs", "--help"]
    done = subprocess.run(
        [str(ray), "job", "submit", "--address", head.address, "--working-dir", ".", "--", *command],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "quickstart" in done.stdout
