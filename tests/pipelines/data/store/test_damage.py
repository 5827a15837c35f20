"""No damaged row is ever given, and a full disk costs nothing but the run it stopped."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import DataError, SostenutoError
from pipelines.data.store.dataset import Rows, ShardDataset
from pipelines.data.types import CORPORA, CorpusName
from pipelines.storage import Storage
from tests.command import REPOSITORY, environment
from tests.pipelines.data.conftest import Ingested

FLIPS = 100
HELD, LARGE = 1 << 30, 1


def read(folder: Path, corpus: CorpusName, memory_bytes: int) -> Rows:
    """All of them: some shards have windows of one split only."""
    splits = ("train", "holdout")
    halves = [ShardDataset(str(folder), corpus, split, memory_bytes) for split in splits]
    parts = [rows.read(range(len(rows))) for rows in halves]
    ids = [name for part in parts for name in part.ids]
    captions = [text for part in parts for text in part.captions]
    return Rows(torch.cat([part.latents for part in parts]), captions, ids)


def same(found: Rows, expected: Rows) -> bool:
    texts = found.ids == expected.ids and found.captions == expected.captions
    return texts and torch.equal(found.latents, expected.latents)


@contextmanager
def flipped(path: Path, place: int, bit: int) -> Iterator[None]:
    """A file with one bit turned over, for the length of a `with` block."""
    whole = path.read_bytes()
    data = bytearray(whole)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("memory_bytes", [HELD, LARGE])
def test_no_flipped_bit_changes_a_row_in_silence(
    memory_bytes: int, ingested: Ingested, tmp_path: Path
) -> None:
    """A hundred bits anywhere in the shards, footers included: each is told."""
    copy = tmp_path / "copy"
    shutil.copytree(ingested.out, copy)
    expected = {corpus: read(copy, corpus, memory_bytes) for corpus in CORPORA}
    rng = np.random.default_rng(memory_bytes)
    silent, told = [], 0
    for number in range(FLIPS):
        corpus = CORPORA[number % 2]
        files = sorted((copy / corpus).glob("*.parquet"))
        path = files[rng.integers(len(files))]
        tail = min(4096, path.stat().st_size) if number % 3 == 0 else path.stat().st_size
        place = path.stat().st_size - 1 - int(rng.integers(tail))
        with flipped(path, place, int(rng.integers(8))):
            try:
                if not same(read(copy, corpus, memory_bytes), expected[corpus]):
                    silent.append((path.name, place))
            except DataError as error:
                told += path.name in error.problem and bool(error.remedy)
    assert silent == []
    assert told == FLIPS


@pytest.mark.parametrize("memory_bytes", [HELD, LARGE])
def test_a_shard_cut_short_or_lengthened_is_told(
    memory_bytes: int, ingested: Ingested, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ingested.out, copy)
    path = min((copy / "long").glob("*.parquet"))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1], whole + whole[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            read(copy, "long", memory_bytes)


def test_a_file_that_changes_while_it_is_open_is_told(ingested: Ingested, tmp_path: Path) -> None:
    """What was right when the dataset was opened is checked again at each read of a page."""
    copy = tmp_path / "copy"
    shutil.copytree(ingested.out, copy)
    rows = ShardDataset(str(copy), "long", memory_bytes=LARGE)
    for path in (copy / "long").glob("*.parquet"):
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        data[4 : len(data) // 2] ^= 255
        path.write_bytes(data.tobytes())
    with pytest.raises(DataError, match="damaged"):
        rows.read(range(len(rows)))


ON_A_SMALL_DISK = """
import json, subprocess, sys, time
from pathlib import Path
import ray
from models.config import AutoencoderConfig
from models.errors import SostenutoError
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.store.ledger import read_ledger
from pipelines.storage import Storage
from tests.pipelines.data.corpora import DATA, rows_of

def is_whole(ledger):
    # a worker that outlives a failed run may write a ledger after the next run has cleared its shard away
    files = read_ledger(Storage(out), f"{ledger.parent.name}/{ledger.name}").files
    return all((out / file.file).exists() for file in files)

short, long, disk, room_enough = sys.argv[1:]
CODE = AutoencoderConfig(fit_frames=120)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=True)
ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=100 << 20,
         log_to_driver=False, logging_level="ERROR")
out, filler = Path(disk, "dataset"), Path(disk, "filler")
told = []
for room in range(16, 1000, 24):
    free = 32 if Path(out, "autoencoder").exists() else room
    filler.unlink(missing_ok=True)
    used = sum(p.stat().st_blocks * 512 for p in Path(disk).rglob("*") if p.is_file())
    kept = {str(p): p.stat().st_mtime_ns for p in out.glob("*/*.ledger") if is_whole(p)}
    filler.write_bytes(bytes(max(0, (2048 - free) * 1024 - used)))
    try:
        ingest(short, long, str(out), DATA, CODE, 0)
        break
    except SostenutoError as error:
        told.append([len(kept), type(error).__name__, error.problem, error.remedy])
        time.sleep(1)  # workers of a failed run end what they have begun
    assert {p: Path(p).stat().st_mtime_ns for p in kept} == kept, "what was written before has changed"
ingest(short, long, room_enough, DATA, CODE, 0)
ray.shutdown()
left = [str(p) for p in out.rglob(".aside-*")]
print(json.dumps({"told": told, "same": rows_of(out) == rows_of(room_enough), "left": left}))
"""
"""Run where a disk of 2 MiB can be mounted: first with more and more room, then with a little each time."""


def can_mount() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0
    )


@pytest.mark.long
@pytest.mark.skipif(not can_mount(), reason="not run: this user cannot mount a small disk of its own")
def test_a_full_disk_names_its_remedy_and_the_next_run_goes_on(ingested: Ingested, tmp_path: Path) -> None:
    """A real disk of 2 MiB that is full at the fit, then among the groups, and at last has room."""
    (tmp_path / "disk").mkdir()
    command = ["unshare", "-Urm", sys.executable, "-c", ON_A_SMALL_DISK]
    folders = [str(ingested.short), str(ingested.long), str(tmp_path / "disk"), str(tmp_path / "roomy")]
    done = subprocess.run(
        [*command, *folders],
        cwd=REPOSITORY,
        env=environment(tmp_path / "home") | {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    for _, kind, problem, remedy in answer["told"]:
        assert kind == "ClusterError", answer["told"]
        assert problem.endswith("No space left on device")
        assert remedy.startswith("Free space on the disk")
    shards = [kept for kept, *_ in answer["told"]]
    assert shards[0] == 0, "the disk was not full before the first group"
    assert shards[-1] > 0, "the disk was never full among the groups"
    assert answer["same"]
    assert answer["left"] == []


def test_the_disk_fills_up_while_a_file_is_written(tmp_path: Path) -> None:
    """The kernel refuses to let a file grow: the old one stays, nothing half is left."""
    storage = Storage(tmp_path)
    storage.write_bytes("short/a.parquet", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SostenutoError) as caught:
            storage.write_bytes("short/a.parquet", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value)
    assert [path.name for path in (tmp_path / "short").iterdir()] == ["a.parquet"]
    assert storage.read_bytes("short/a.parquet") == b"old"
