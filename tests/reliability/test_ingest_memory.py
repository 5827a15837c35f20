"""An hour of video takes no more memory than six minutes."""

import threading
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig
from pipelines.data.ingest.pipeline import ingest
from tests.pipelines.data.videos import repeat_by_stream_copy, stamped, write_video

pytestmark = pytest.mark.long

SIZE, FPS, GIB = 256, 5, 1 << 30


class Watch(threading.Thread):
    """Peak resident bytes of the decoding processes below this one, and of the workers that started them."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()
        self.decoder = self.worker = 0

    def run(self) -> None:
        while not self._over.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "pipelines.data.decode.worker" in " ".join(process.cmdline()):
                        self.decoder = max(self.decoder, peak(process.pid))
                        self.worker = max(self.worker, peak(process.ppid()))
                except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                    continue

    def stop(self) -> None:
        self._over.set()
        self.join()


def peak(pid: int) -> int:
    """The most resident bytes that a process has had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = stamped(60 * FPS, SIZE, SIZE)
    return write_video(
        tmp_path_factory.mktemp("minute") / "a.mp4", frames, fps=FPS, preset="ultrafast", bf="0"
    )


def ingested(minute: Path, minutes: int, folder: Path) -> Watch:
    """Ingest a LONG corpus of one video of so many minutes beside one SHORT clip."""
    repeat_by_stream_copy(minute, folder / "long" / "a.mp4", minutes)
    write_video(folder / "short" / "a.mp4", stamped(40, SIZE, SIZE), fps=FPS)
    sizes = {"short_frames": 8, "short_stride": 8, "long_frames": 32, "long_stride": 32}
    data = DataConfig(height=SIZE, width=SIZE, **sizes)
    code = AutoencoderConfig(patch_size=16, components=8, fit_frames=64)
    watch = Watch()
    watch.start()
    try:
        ingest(str(folder / "short"), str(folder / "long"), str(folder / "out"), data, code, 0)
    finally:
        watch.stop()
    rows = pq.read_table(folder / "out" / "manifest.parquet").to_pylist()
    assert [r["num_frames"] for r in rows if r["corpus"] == "long"] == [minutes * 60 * FPS]
    return watch


@pytest.mark.timeout(600)
def test_an_hour_takes_no_more_memory_than_six_minutes(ray_local: None, minute: Path, tmp_path: Path) -> None:
    brief = ingested(minute, 6, tmp_path / "brief")
    long = ingested(minute, 60, tmp_path / "long")
    for name in ("decoder", "worker"):
        few, many = getattr(brief, name), getattr(long, name)
        print(f"{name}: {few >> 20} MiB for 6 minutes, {many >> 20} MiB for 60")
        assert few > 0
        assert many < GIB
        assert many <= 1.2 * few
