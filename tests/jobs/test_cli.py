"""The command line as a user meets it: help with examples, dry runs, refusals, exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from tests.jobs.conftest import ROOT

COMMANDS = """
quickstart world ingest inspect train sample serve watch evaluate export sweep track submit doctor fetch
""".split()
runner = CliRunner()


def call(*words):
    return runner.invoke(app, words, prog_name="sostenuto")


def test_help_names_every_command():
    out = call("--help").stdout
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_that_are_understood(command):
    shown = call(command, "--help")
    assert shown.exit_code == 0
    examples = [line.strip() for line in shown.stdout.splitlines() if line.strip().startswith("sostenuto ")]
    assert examples
    assert all(example.split()[1] == command for example in examples)


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if c not in "submit doctor train watch serve export track fetch".split()],
)
def test_every_command_can_be_tried_dry(command):
    shown = call(command, "--config", "ci", "--dry-run", "--set", "seed=7")
    assert shown.exit_code == 0, shown.output
    assert "seed: 7" in shown.stdout
    assert "nothing was read or written" in shown.stdout


def test_a_dry_run_prints_settings_that_can_be_loaded_again(tmp_path):
    shown = call("train", "teacher", "--config", "minute", "--dry-run", "--seed", "3").stdout
    settings = yaml.safe_load(shown.split("\n\n")[0])
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    again = call("train", "teacher", "--config", str(path), "--dry-run")
    assert again.stdout == shown


def test_options_of_their_own_are_the_settings_they_stand_for():
    shown = call("ingest", "--config", "clips", "--short", "12", "--long", "a: b", "--dry-run").stdout
    settings = yaml.safe_load(shown.split("\n\n")[0])
    assert (settings["data"]["short"], settings["data"]["long"]) == ("12", "a: b")


REFUSED = [
    (("train", "teacher", "--set", "loss.reverse_kl_wieght=1"), 1, "Did you mean loss.reverse_kl_weight?"),
    (("train", "teacher", "--set", "seed"), 1, "--set loss.reverse_kl_weight=0.3"),
    (("world", "--config", "tinny"), 1, "Did you mean tiny?"),
    (("world", "--config", "clips"), 1, "config of the built-in world"),
    (("ingest", "--short", "only-one"), 1, "Give both folders"),
    (("train", "finetune"), 2, "teacher"),
    (("train",), 2, "stage"),
    (("train", "sft", "--gpu", "h100"), 2, "--dry-run"),
    (("train", "sft", "--json"), 2, "--dry-run"),
    (("train", "--dry-run", "--gpu", "h10"), 1, "Did you mean h100?"),
    (("train", "teacher", "--config", "wan-1.3b", "--dry-run"), 1, "no stage teacher"),
    (("sample", "--count", "0"), 2, "--count"),
    (("sample", "--head", "x"), 2, "--head"),
    (("nonsense",), 2, "nonsense"),
    (("world", "--nonsense"), 2, "--nonsense"),
    (("submit",), 2, "command"),
]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    REFUSED,
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_a_wrong_command_line_is_refused(words, code, told):
    done = call(*words)
    assert done.exit_code == code
    assert told in done.stderr
    if code == 1:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


def test_python_m_jobs_is_sostenuto(sostenuto):
    done = sostenuto("--help")
    assert done.returncode == 0
    assert "Usage: sostenuto" in done.stdout


def test_help_needs_no_heavy_library():
    heavy = "torch ray mlflow numpy pydantic"
    probe = f"import sys, jobs.cli; print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_debug_shows_where():
    done = call("world", "--config", "clips", "--debug")
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert "error: " in done.stderr.splitlines()[-1]


def test_the_world_can_be_made_twice_and_started_over(sostenuto, root):
    words = ("world", "--config", "ci", "--set", f"storage.root={root}", "--set", "world.long_clips=2")
    first = sostenuto(*words)
    assert first.returncode == 0, first.stderr
    files = sorted(path.relative_to(root) for path in (root / "ci" / "world").rglob("*.mp4"))
    assert len(files) == 26
    stamps = {path: (root / path).stat().st_mtime_ns for path in files}
    assert sostenuto(*words).returncode == 0
    assert {path: (root / path).stat().st_mtime_ns for path in files} == stamps
    assert sostenuto(*words, "--fresh").returncode == 0
    assert all((root / path).stat().st_mtime_ns > stamps[path] for path in files)


def interrupted(process, number):
    """What a process says when it is told to end; told again, as a user would, if that was swallowed."""
    for _ in range(3):
        process.send_signal(number)
        try:
            return process.communicate(timeout=20)[1]
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("the command does not end")


def hearing_interrupts() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, and deafness is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_says_how_to_go_on(root, number, code):
    words = [
        "world",
        "--config",
        "ci",
        "--set",
        f"storage.root={root}",
        "--set",
        "world.short_clips=40000",
        "--fresh",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hearing_interrupts,
    )
    folder = root / "ci" / "world"
    deadline = time.monotonic() + 60
    while len(list(folder.rglob("*.mp4"))) < 5:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    err = interrupted(process, number)
    assert process.returncode == code
    assert err.splitlines()[-1].startswith(
        "interrupted. What is finished is kept; to resume: sostenuto world --config ci"
    )
    assert "--fresh" not in err
    assert len(list(folder.rglob("*.mp4"))) < 40000
