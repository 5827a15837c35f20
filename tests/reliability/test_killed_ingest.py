"""Kill ingest wherever it stands: the same command, given again, ends with the rows of an undisturbed run."""

import random
import threading
import time
from pathlib import Path

import psutil
import pytest

from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.store.info import DatasetInfo
from tests.command import kill, start, succeed
from tests.pipelines.data.corpora import rows_of, stamps_of
from tests.pipelines.data.videos import low_rank, write_video

pytestmark = pytest.mark.long

SIZE, RANK, BLOCK = 64, 6, 60_000
SHORT, LONG = 36, 4
DRIVER_KILLS, WORKER_KILLS = 3, 7
DATA = DataConfig(
    height=SIZE, width=SIZE, short_frames=8, short_stride=8, long_frames=32, long_stride=32, block_bytes=BLOCK
)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """short/ and long/: some seconds of work in many groups."""
    root = tmp_path_factory.mktemp("killed")
    for corpus, count, frames in (("short", SHORT, 160), ("long", LONG, 480)):
        for index in range(count):
            phase = 1.0 + index + 100 * (corpus == "long")
            video = low_rank(frames, RANK, SIZE, seed=3, phase=phase)
            write_video(root / corpus / f"{index:02d}.mp4", video, preset="ultrafast")
    return root


def words(corpora: Path) -> list[str]:
    settings = {"autoencoder.components": RANK, "data.block_bytes": BLOCK}
    changes = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    folders = ["--short", str(corpora / "short"), "--long", str(corpora / "long")]
    return ["ingest", "--config", "ci", *folders, *changes]


def dataset_of(folder: Path) -> Path:
    (dataset,) = (folder / "runs" / "ci" / "dataset").iterdir()
    return dataset


@pytest.mark.timeout(900)
def test_a_killed_driver_costs_time_only(corpora: Path, tmp_path: Path) -> None:
    """Three times the whole process group is killed, up to a second after the first word of its progress."""
    moments = random.Random(5)
    kills = 0
    for _ in range(DRIVER_KILLS):
        process = start(tmp_path, *words(corpora))
        assert process.stdout is not None
        said = process.stdout.readline()
        time.sleep(moments.uniform(0.0, 1.0))
        kills += process.poll() is None
        kill(process)
        assert said
    assert kills == DRIVER_KILLS
    succeed(tmp_path, *words(corpora))
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    succeed(undisturbed, *words(corpora))
    expected = rows_of(dataset_of(undisturbed))
    dataset = dataset_of(tmp_path)
    assert rows_of(dataset) == expected
    assert len(expected) == SHORT * 20 + LONG * 15
    assert not list(dataset.rglob(".aside-*"))


def run(corpora: Path, out: Path) -> DatasetInfo:
    code = AutoencoderConfig(components=RANK, fit_frames=64)
    return ingest(str(corpora / "short"), str(corpora / "long"), str(out), DATA, code, 0)


class Assassin(threading.Thread):
    """Kills workers that have a decoding child, one at a time, at seeded moments."""

    def __init__(self, kills: int) -> None:
        super().__init__(daemon=True)
        self._moments = random.Random(7)
        self._left = kills
        self._over = threading.Event()
        self.killed = 0

    def run(self) -> None:
        while self._left and not self._over.wait(self._moments.uniform(0.05, 0.4)):
            workers = decoding_workers()
            if workers:
                self._moments.choice(workers).kill()
                self._left -= 1
                self.killed += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def decoding_workers() -> list[psutil.Process]:
    """Ray workers below this process whose child decodes, in a fixed order."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.Process().children(recursive=True):
        try:
            if "pipelines.data.decode.worker" in " ".join(process.cmdline()) and (parent := process.parent()):
                found[parent.pid] = parent
        except psutil.NoSuchProcess:
            continue
    return [found[pid] for pid in sorted(found)]


@pytest.mark.timeout(600)
def test_killed_workers_cost_time_only(ray_local: None, corpora: Path, tmp_path: Path) -> None:
    whole = run(corpora, tmp_path / "undisturbed")
    assassin = Assassin(WORKER_KILLS)
    assassin.start()
    try:
        info = run(corpora, tmp_path / "disturbed")
    finally:
        assassin.stop()
    assert assassin.killed == WORKER_KILLS
    assert (info.short.rejects, info.long.rejects) == (0, 0)
    assert info.data_hash == whole.data_hash
    assert rows_of(tmp_path / "disturbed") == rows_of(tmp_path / "undisturbed")
    before = stamps_of(tmp_path / "disturbed")
    assert run(corpora, tmp_path / "disturbed") == info
    assert stamps_of(tmp_path / "disturbed") == before
