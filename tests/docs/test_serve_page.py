"""Every command that opens the page opens it, here and as a job on a head."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

import pytest

from tests.command import REPOSITORY, end, environment, free_port
from tests.docs.conftest import QUIET, run
from tests.docs.shown import of_kind, rewritten

pytestmark = pytest.mark.timeout(900)
EXAMPLE = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "serve.md").read_text(), re.DOTALL)[0]


def wait_until(said: Callable[[], str], word: str, seconds: float = 300) -> None:
    """Until what a program has said so far holds a word."""
    deadline = time.monotonic() + seconds
    while word not in said():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)


@of_kind("page")
def test_the_page_answers(shown, folder, home, head, places, tmp_path):
    port = str(free_port())
    at_head = "submit" in shown.words
    words = [
        *rewritten(shown.words, places)[1:],
        "--port",
        port,
        "--set",
        f"serve.folder={tmp_path / 'serve'}",
    ]
    if at_head:
        reach = head.variables | {"RAY_API_SERVER_ADDRESS": head.address}
        job = run([sys.executable, "-m", "jobs", *words], REPOSITORY, home, **reach).stdout.split()[-1]
        wait_until(lambda: head.ask(f"jobs/{job}/logs")["logs"], "page: http")
        assert about(port)["name"] == "ci"
        head.ask(f"jobs/{job}/stop", "POST")
        assert head.wait(job) == "STOPPED"
        return
    said = tmp_path / "said"
    with said.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs", *words],
            cwd=folder,
            env=environment(home) | QUIET | head.variables,
            stdout=log,
            stderr=log,
            text=True,
        )
        try:
            wait_until(said.read_text, "page: http")
            assert about(port)["name"] == "ci"
            asked = run([sys.executable, "-c", EXAMPLE.replace("8008", port)], folder, home).stdout
            assert re.fullmatch("[0-9a-f]{16}\n", asked)
        finally:
            end(process)


def about(port: str) -> dict[str, object]:
    """What the page is told of its run."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=60) as answer:
        told: dict[str, object] = json.load(answer)
    return told
