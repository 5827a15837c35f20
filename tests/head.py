"""A real head of Ray with a Jobs server, which asks for a token, on ports of its own."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.command import environment, free_port, remove

COMMAND = ("ray", "start", "--head", "--block", "--dashboard-host=127.0.0.1")
VARIABLES = {"RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": "600"}
"""What starts it, as the documentation says; ports and sizes are added."""
PORTS = (
    "port dashboard-port dashboard-agent-listen-port metrics-export-port ray-client-server-port "
    "dashboard-agent-grpc-port runtime-env-agent-port"
).split()
LEAN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_maximum_startup_concurrency": "4",
    "RAY_num_workers_soft_limit": "2",
    "RAY_prestart_worker_first_driver": "0",
}
"""No half minute of waiting for other nodes at the end, and few idle workers."""
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Head:
    """A running head: the addresses of its Jobs server and of Ray itself, and the token that both ask for."""

    address: str
    ray: str
    token: str
    pid: int
    folder: str

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a command that joins it."""
        return {"RAY_ADDRESS": self.ray, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

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


def start_head(folder: Path, token: str) -> Head:
    """Start a head whose files lie in `folder`, and wait until it answers."""
    ports = {name: free_port() for name in PORTS}
    words = [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    words += ["--num-cpus=12", f"--temp-dir={folder}/ray", f"--object-store-memory={256 << 20}"]
    (folder / "home").mkdir()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, *words],
            env=environment(folder / "home") | LEAN | VARIABLES | {"RAY_AUTH_TOKEN": token},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            text=True,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"
    head = Head(address, f"127.0.0.1:{ports['port']}", token, process.pid, str(folder))
    deadline = time.monotonic() + 240
    while True:
        try:
            head.ask("version")
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            said = (folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)
        else:
            process.returncode = 0  # it outlives this process: whoever reads `pid` ends it
            return head


def end_head(head: Head, seconds: float = 60) -> None:
    """SIGTERM to a head; whatever it has started has to end with it."""
    process = psutil.Process(head.pid)
    started = [process, *process.children(recursive=True)]
    process.terminate()
    _, left = psutil.wait_procs(started, timeout=seconds)
    for child in left:
        child.kill()
    remove(Path(head.folder))
    assert not left, f"the head left {left}"


def save(head: Head, file: Path) -> None:
    file.write_text(json.dumps(asdict(head)))


def saved(file: Path) -> Head:
    return Head(**json.loads(file.read_text()))
