"""Machines that go away during ingest or evaluation cost time only."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.command import REPOSITORY, environment, remove
from tests.pipelines.data.videos import low_rank, write_video

pytestmark = pytest.mark.long

SIZE, RANK, SHORT, LONG = 64, 6, 30, 4


def printed_by(script: str, folder: Path, *words: Path) -> list[str]:
    """The lines that a script prints which starts nodes of its own; it has to end well."""
    own = {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_TMPDIR": tempfile.mkdtemp(prefix="lt-", dir="/tmp")}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=REPOSITORY,
        env=environment(folder / "home") | own,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    remove(Path(own["RAY_TMPDIR"]))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


LOSE_A_NODE = """
import json, sys, threading, time
import psutil, ray
from ray.cluster_utils import Cluster
from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig
from pipelines.data.ingest.pipeline import ingest
from tests.pipelines.data.corpora import rows_of

short, long, out = sys.argv[1:]
data = DataConfig(height=64, width=64, short_frames=8, short_stride=8, long_frames=32, long_stride=32,
                  block_bytes=40_000)
code = AutoencoderConfig(components=6, fit_frames=64)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
cluster.wait_for_nodes()

def decoders(raylet):
    below = psutil.Process(raylet).children(recursive=True)
    return sum("pipelines.data.decode.worker" in " ".join(process.cmdline()) for process in below)

def busy():
    try:
        return decoders(node.all_processes["raylet"][0].process.pid) > 0
    except psutil.NoSuchProcess:
        return False

lost = []

def lose():
    while not busy():
        time.sleep(0.02)
    time.sleep(0.3)
    for process in node.all_processes["raylet"]:
        psutil.Process(process.process.pid).kill()
    lost.append(sum(each["Alive"] for each in ray.nodes()))

thread = threading.Thread(target=lose, daemon=True)
thread.start()
info = ingest(short, long, f"{out}/disturbed", data, code, 0)
thread.join(60)
deadline = time.monotonic() + 60
while sum(each["Alive"] for each in ray.nodes()) > 1 and time.monotonic() < deadline:
    time.sleep(0.2)
alive = sum(each["Alive"] for each in ray.nodes())
ingest(short, long, f"{out}/whole", data, code, 0)
print(json.dumps({"lost": lost, "alive": alive, "rejects": info.short.rejects + info.long.rejects,
                  "same": rows_of(f"{out}/disturbed") == rows_of(f"{out}/whole"),
                  "rows": len(rows_of(f"{out}/disturbed"))}))
ray.shutdown()
cluster.shutdown()
"""
"""Two nodes on this machine; the second is killed as soon as a video is decoded on it."""


@pytest.mark.timeout(600)
def test_a_lost_node_costs_time_only(tmp_path: Path) -> None:
    for corpus, count, frames in (("short", SHORT, 160), ("long", LONG, 320)):
        for index in range(count):
            video = low_rank(frames, RANK, SIZE, seed=3, phase=1.0 + index + 100 * (corpus == "long"))
            write_video(tmp_path / corpus / f"{index:02d}.mp4", video, preset="ultrafast")
    answer = json.loads(
        printed_by(LOSE_A_NODE, tmp_path, *(tmp_path / name for name in ("short", "long", "")))[-1]
    )
    assert answer["lost"], "no video was ever decoded on the second node"
    assert answer["alive"] == 1
    assert answer["rejects"] == 0
    assert answer["same"]
    assert answer["rows"] == SHORT * 20 + LONG * 10


LOSE_NODES = """
import json, sys, time
import psutil, ray
from ray.cluster_utils import Cluster
from pipelines.ray_map import Pool, ray_map_all

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
nodes = [cluster.add_node(num_cpus=2, object_store_memory=80 << 20) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR",
         runtime_env={"working_dir": sys.argv[1]})
cluster.wait_for_nodes()

def work(item):
    time.sleep(0.5)
    return open("note.txt").read() + str(item)

def lose(finished):
    if finished in (6, 12):
        psutil.Process(nodes.pop().all_processes["raylet"][0].process.pid).kill()

print(json.dumps(ray_map_all(work, range(30), Pool(2, 4), lose)))
print(len(nodes))
ray.shutdown()
cluster.shutdown()
"""
"""Two of three nodes on this machine are killed while a pool of actors works in a job's working directory."""


@pytest.mark.timeout(600)
def test_a_pool_outlives_one_lost_node_after_another(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "note.txt").write_text("item ")
    *_, results, left = printed_by(LOSE_NODES, tmp_path, tmp_path / "code")
    assert json.loads(results) == [f"item {item}" for item in range(30)]
    assert left == "0"
