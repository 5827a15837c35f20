"""A real head node that asks for a token, on ports of its own."""

import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.command import end, environment, remove
from tests.jobs.conftest import free_port

COMMAND = ("ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1")
"""What starts it, as the documentation says; ports and sizes are added."""
PORTS = (
    "port dashboard-port dashboard-agent-listen-port metrics-export-port ray-client-server-port "
    "dashboard-agent-grpc-port runtime-env-agent-port"
).split()
QUICK = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
"""No half minute of waiting for other nodes at the end."""
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Head:
    """A running head: the address of its Jobs server, and the token that it asks for."""

    address: str
    token: str

    def ask(self, path: str, method: str = "GET") -> Any:
        """The JSON that the Jobs server answers."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.address}/api/{path}", headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def status(self, job: str) -> str:
        """PENDING, RUNNING, or how it ended."""
        return str(self.ask(f"jobs/{job}")["status"])

    def wait(self, job: str, seconds: float = 300) -> str:
        """How a job ended."""
        deadline = time.monotonic() + seconds
        while (status := self.status(job)) not in ENDED:
            assert time.monotonic() < deadline, f"{job} is {status}"
            time.sleep(0.2)
        return status


@contextmanager
def running_head(home: Path) -> Iterator[Head]:
    """A head for the length of a `with` block; it takes its token from `home`/.ray/auth_token."""
    folder = Path(tempfile.mkdtemp(prefix="lt-", dir="/tmp"))
    ports = {name: free_port() for name in PORTS}
    words = [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    words += ["--num-cpus=4", f"--temp-dir={folder}/ray", f"--object-store-memory={100 << 20}"]
    token = (home / ".ray" / "auth_token").read_text().strip()
    head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", token)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, *words],
            env=environment(home) | {"RAY_AUTH_MODE": "token"} | QUICK,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            text=True,
        )
        try:
            _wait_for(head, process, folder / "log")
            yield head
        finally:
            end(process)
            remove(folder)


def _wait_for(head: Head, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 240
    while True:
        try:
            head.ask("version")
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        else:
            return
