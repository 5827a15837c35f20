"""Training workers and nodes that die, come and hang: the weights are those of an undisturbed run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.data.made import make
from tests.reliability.test_lost_node import printed_by

pytestmark = [pytest.mark.kill, pytest.mark.long, pytest.mark.timeout(900)]

BEGIN = """
import json, os, random, sys, threading, time
from pathlib import Path
os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
import psutil, ray
from ray.cluster_utils import Cluster
from pipelines.training.config import ClusterConfig
from pipelines.training.trainer import train_stage
from tests.reliability.distillation import sums
from tests.reliability.small_training import Hanging, Lines, Patient, teacher, workers_of

dataset, out = sys.argv[1:]
store = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, **store})
nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
env = {"PYTHONPATH": os.environ["PYTHONPATH"], "OMP_NUM_THREADS": "1"}
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": env})
cluster.wait_for_nodes()

def raylet(node):
    return node.all_processes["raylet"][0].process.pid

def until(true, seconds=200):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert true()

def run(name, steps, every, disturb=None, lines=None, **more):
    lines = lines or Lines(f"{out}/{name}.jsonl")
    recipe = teacher(f"{out}/{name}", dataset, steps, ClusterConfig(**more), every)
    ended = []
    def fit():
        ended.append(train_stage(recipe, lines.open, lines))
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    if disturb:
        disturb(lines)
    thread.join(300)
    return lines, sums(Path(ended[0].checkpoint))
"""

END = """
ray.shutdown()
cluster.shutdown()
"""

KILLS = (
    BEGIN
    + """
random.seed(0)

def disturb(lines):
    for number in range(1, 6):
        until(lambda: lines.done() >= 12 * number)
        victims = [process for node in nodes for process in workers_of(raylet(node))]
        random.choice(victims).kill()
        groups = len(lines.groups())
        until(lambda: len(lines.groups()) > groups)
    until(lambda: lines.done() >= 75)
    psutil.Process(raylet(nodes.pop())).kill()
    nodes.append(cluster.add_node(num_cpus=1, **store))

quiet, expected = run("quiet", 200, 5, num_workers=2)
lines, found = run("disturbed", 200, 5, disturb, num_workers=2, max_failures=20)
told = quiet.losses()
losses = all({*again} == {*told[step]} for step, again in lines.losses().items())
print(json.dumps({"same": found == expected, "groups": lines.groups(), "losses": losses}))
"""
    + END
)
"""Five workers and one node of two are killed; every time the group starts again."""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    make(tmp_path / "dataset", holdout=0.2)
    return tmp_path / "dataset"


def answer_of(script: str, dataset: Path, out: Path) -> dict[str, Any]:
    """The JSON that a script prints among Ray's own words on dead workers."""
    (answer,) = (line for line in printed_by(script, out, dataset, out) if line.startswith("{"))
    return dict(json.loads(answer))


def test_five_killed_workers_and_a_node_change_no_weight(dataset: Path, tmp_path: Path) -> None:
    answer = answer_of(KILLS, dataset, tmp_path)
    assert answer["same"]
    assert answer["losses"]
    assert len(answer["groups"]) >= 7
    assert set(answer["groups"]) == {2}


ELASTIC = (
    BEGIN
    + """
def disturb(lines):
    until(lambda: lines.done() >= 20)
    psutil.Process(raylet(nodes.pop())).kill()
    until(lambda: lines.groups()[-1] == 1 and lines.done() >= 40)
    nodes.append(cluster.add_node(num_cpus=1, **store))
    until(lambda: lines.groups()[-1] == 2)

quiet, _ = run("quiet", 400, 10, num_workers=1)
lines = Patient(f"{out}/elastic.jsonl")
lines, _ = run("elastic", 400, 10, disturb, lines, num_workers=(1, 2), resize_seconds=2, max_failures=20)
worst = max(abs(loss - quiet.losses()[step][0]) for step, again in lines.losses().items() for loss in again)
print(json.dumps({"groups": lines.groups(), "worst": worst, "steps": len(lines.losses())}))
"""
    + END
)
"""Two workers, one when a node is killed, two when another comes."""


def test_elastic_workers_do_not_change_the_curve(dataset: Path, tmp_path: Path) -> None:
    answer = answer_of(ELASTIC, dataset, tmp_path)
    assert answer["groups"][0] == answer["groups"][-1] == 2
    assert 1 in answer["groups"]
    assert answer["steps"] == 400
    assert answer["worst"] < 1e-6


HANG = (
    BEGIN
    + """
quiet, expected = run("quiet", 12, 2, num_workers=2)
lines = Hanging(f"{out}/hung.jsonl", f"{out}/warnings.txt")
began = time.monotonic()
lines, found = run("hung", 12, 2, lines=lines, num_workers=2, hang_minutes=0.1, max_failures=1)
print(json.dumps({"same": found == expected, "groups": lines.groups(), "seconds": time.monotonic() - began}))
"""
    + END
)
"""The second of two workers sleeps in a step."""


def test_a_worker_that_hangs_is_named_and_the_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    answer = answer_of(HANG, dataset, tmp_path)
    told = (tmp_path / "warnings.txt").read_text()
    assert "worker 1 of 2" in told
    assert "in step 6 at tests/reliability/small_training.py" in told
    assert answer["groups"] == [2, 2]
    assert answer["same"]
    assert answer["seconds"] < 120
