"""The documentation's commands that start a head and send it jobs."""

import json
import sys

import pytest

from tests.command import REPOSITORY
from tests.docs.conftest import run
from tests.docs.shown import all_shown, of_kind, rewritten
from tests.head import COMMAND, VARIABLES, Head

pytestmark = pytest.mark.timeout(900)


@of_kind("start")
def test_the_head_was_started_so(shown):
    assert tuple(shown.words) == COMMAND
    assert shown.variables == VARIABLES


def exported() -> dict[str, str]:
    """What the documentation tells to export."""
    return dict(
        word.split("=", 1) for shown in all_shown() if shown.kind == "export" for word in shown.words[1:]
    )


@pytest.fixture
def reach(head, places, request):
    """Places while a head runs, with a tracking server where the command names one."""
    text = request.getfixturevalue("shown").text
    server = request.getfixturevalue("tracking_server") if "mlflow.internal" in text else ""
    return places | {"http://127.0.0.1:8265": head.address, "http://mlflow.internal:5000": server}


@of_kind("head")
def test_a_job_runs_on_a_head(shown, head: Head, home, reach):
    words = rewritten(shown.words, reach)
    command = [sys.executable, "-m", "jobs", *words[1:]] if words[0] == "sostenuto" else words
    variables = exported() | shown.variables | {"RAY_API_SERVER_ADDRESS": head.address}
    done = run(command, REPOSITORY, home, **variables)
    if "--dry-run" in words:
        assert json.loads(done.stdout)["address"] == head.address
    elif "--no-wait" in words:
        assert head.wait(done.stdout.split()[-1]) == "SUCCEEDED"
    else:
        assert " succeeded" in done.stdout


@of_kind("job")
def test_a_job_is_followed_and_stopped(shown, head: Head, home, reach):
    *words, _ = rewritten(shown.words, reach)
    stops = "stop" in words
    code = "import time; print('here', flush=True); time.sleep(600)" if stops else "print('here')"
    send = [
        sys.executable,
        "-m",
        "jobs",
        "submit",
        "--address",
        head.address,
        "--no-wait",
        "python",
        "-c",
        code,
    ]
    job = run(send, REPOSITORY, home).stdout.split()[-1]
    done = run([*words, job], REPOSITORY, home, **exported(), **shown.variables)
    assert ("stopped" if stops else "here") in done.stdout
    assert head.wait(job) == ("STOPPED" if stops else "SUCCEEDED")
