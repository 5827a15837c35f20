"""A real head of Ray with a Jobs server, which asks for a token, on ports of its own."""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.util import get_node_ip_address

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
    "RAY_raylet_start_wait_time_s": "200",
}
"""No half minute of waiting for other nodes at the end, few idle workers, and time to start on a busy one."""
FAKE = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10"}
"""For nodes that are processes of one machine."""
HEAD_TYPE = "ray.head.default"
"""As Ray names it, and no other way: a head of another name is taken for one that has still to be started."""
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


def start_head(folder: Path, token: str, nodes: Mapping[str, Any] | None = None) -> Head:
    """Start a head whose files lie in `folder`, and wait until it answers.

    Args:
        folder: empty.
        token: that it asks for.
        nodes: types of nodes by name, as in cluster.yaml, that come and go with the work, as processes of
            this machine; the head then takes none.
    """
    ports = {name: free_port() for name in PORTS}
    words = [word for name, port in ports.items() for word in (f"--{name}", str(port))]
    words += [f"--temp-dir={folder}/ray", f"--object-store-memory={256 << 20}"]
    if nodes is None:
        words.append("--num-cpus=12")
    else:
        file = folder / "autoscaling.json"
        file.write_text(json.dumps(autoscaling(nodes, f"{get_node_ip_address()}:{ports['port']}")))
        words += ["--num-cpus=0", f"--autoscaling-config={file}"]
    (folder / "home").mkdir()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, *words],
            env=environment(folder / "home") | LEAN | FAKE | VARIABLES | {"RAY_AUTH_TOKEN": token},
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
        said = (folder / "log").read_text()
        try:
            head.ask("version")
        except OSError as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
        else:
            if "Ray runtime started" in said:  # its node is known some time after its server answers
                process.returncode = 0  # it outlives this process: whoever reads `pid` ends it
                return head
        assert process.poll() is None, said
        assert time.monotonic() < deadline, said
        time.sleep(0.2)


def autoscaling(nodes: Mapping[str, Any], address: str) -> dict[str, Any]:
    """Ray's autoscaling file, for nodes that are processes of this machine.

    Args:
        nodes: types by name.
        address: of Ray's head.
    """
    lists = (
        "initialization_commands setup_commands head_setup_commands worker_setup_commands "
        "head_start_ray_commands worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
    )
    provider = {
        "type": "fake_multinode",
        "gcs_address": address,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    return {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in nodes.values()),
        "idle_timeout_minutes": 0.2,
        "provider": provider,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in nodes.items()},
        },
        **{name: [] for name in lists.split()},
    }


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
