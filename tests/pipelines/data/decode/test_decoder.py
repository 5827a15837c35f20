"""The fence holds: whatever a video does to its decoder, this process gets frames or a reason."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from models.errors import DataError
from pipelines.data.config import LimitsConfig
from pipelines.data.decode import decoder as module
from pipelines.data.decode.decoder import Decoder
from pipelines.data.types import Reject, Rejected
from tests.pipelines.data.videos import cut_by_stream_copy, numbers, stamped, write_video


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(LimitsConfig(timeout_s=20)) as decoder:
        yield decoder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "a.mp4", stamped(40))


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than fits into the pipe, so that its decoder is still at work while it is read."""
    return write_video(tmp_path_factory.mktemp("clips") / "long.mp4", stamped(600), preset="ultrafast")


def frames_of(decoder: Decoder, path: Path, **wanted: float) -> np.ndarray:
    return np.concatenate(list(decoder.open(path, [(64, 96)], **wanted).frames))  # type: ignore[arg-type]


def rejected(decoder: Decoder, path: Path) -> Reject:
    with pytest.raises(Rejected) as caught:
        frames_of(decoder, path)
    return caught.value.reject


def test_frames_arrive_in_order(decoder: Decoder, clip: Path) -> None:
    assert numbers(frames_of(decoder, clip)) == list(range(40))


def test_the_probe_says_who_reads_and_what(decoder: Decoder, clip: Path) -> None:
    probe = decoder.open(clip, [(64, 96)]).probe
    assert (probe.reader, probe.reader_reason) == ("decord", "")
    assert (probe.width, probe.height) == (96, 64)
    assert probe.fps == pytest.approx(8)
    assert probe.seconds == pytest.approx(5)


def test_what_is_no_video_is_rejected(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("words")
    assert rejected(decoder, tmp_path / "a.mp4") == Reject(
        "bytes", "the first bytes are of no known video container"
    )


def test_the_second_reader_is_recorded_with_why(decoder: Decoder, clip: Path, tmp_path: Path) -> None:
    probe = decoder.open(cut_by_stream_copy(clip, tmp_path / "cut.mp4", 10), [(64, 96)]).probe
    assert probe.reader == "pyav"
    assert probe.reader_reason == "decord counts 40 frames, the packets 30"


def test_frames_are_resized_to_the_size_of_the_nearest_aspect_ratio(decoder: Decoder, clip: Path) -> None:
    opened = decoder.open(clip, [(24, 16), (16, 24)])
    assert opened.size == (16, 24)
    frames = np.concatenate(list(opened.frames))
    assert frames.shape == (40, 16, 24, 3)
    assert numbers(frames) == list(range(40))
    assert (opened.probe.height, opened.probe.width) == (64, 96)


def test_frames_are_resampled_by_time(decoder: Decoder, clip: Path) -> None:
    assert numbers(frames_of(decoder, clip, fps=4.0)) == list(range(0, 40, 2))
    assert numbers(frames_of(decoder, clip, fps=16.0)) == [i // 2 for i in range(80)]


def test_picks_are_spread(decoder: Decoder, clip: Path) -> None:
    assert numbers(frames_of(decoder, clip, picks=4)) == [5, 15, 25, 35]


def test_one_worker_serves_many_videos(clip: Path) -> None:
    with Decoder(LimitsConfig()) as decoder:
        frames_of(decoder, clip)
        worker = decoder.pid
        for _ in range(20):
            frames_of(decoder, clip)
            rejected(decoder, Path("/nonexistent.mp4"))
        assert decoder.pid == worker


def test_a_file_that_the_disk_does_not_give_may_be_fetched_again(decoder: Decoder) -> None:
    assert rejected(decoder, Path("/nonexistent.mp4")) == Reject(
        "fetch", "it cannot be read: No such file or directory"
    )


def test_a_stream_left_half_read_does_not_leak_into_the_next(
    decoder: Decoder, clip: Path, long_clip: Path
) -> None:
    next(decoder.open(long_clip, [(64, 96)]).frames)
    assert numbers(frames_of(decoder, clip)) == list(range(40))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_a_worker_that_dies_costs_one_video(
    blow: signal.Signals, decoder: Decoder, clip: Path, long_clip: Path
) -> None:
    chunks = decoder.open(long_clip, [(64, 96)]).frames
    next(chunks)
    assert decoder.pid is not None
    os.kill(decoder.pid, blow)
    with pytest.raises(Rejected) as caught:
        list(chunks)
    assert caught.value.reject.stage == "crash"
    assert blow.name in caught.value.reject.reason
    assert numbers(frames_of(decoder, clip)) == list(range(40))


def test_a_silent_worker_is_replaced_in_time(clip: Path, long_clip: Path) -> None:
    with Decoder(LimitsConfig(timeout_s=0.7)) as decoder:
        chunks = decoder.open(long_clip, [(64, 96)]).frames
        next(chunks)
        assert decoder.pid is not None
        silent = decoder.pid
        os.kill(silent, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(Rejected) as caught:
            list(chunks)
        assert time.monotonic() - start < 10
        assert caught.value.reject == Reject("timeout", "silent for data.limits.timeout_s = 0.7 s")
        assert not psutil.pid_exists(silent)
        assert numbers(frames_of(decoder, clip)) == list(range(40))


def test_memory_beyond_the_limit_is_a_reject(clip: Path, tmp_path: Path) -> None:
    greedy = write_video(tmp_path / "greedy.mp4", stamped(3, 2160, 3840), preset="ultrafast")
    with Decoder(LimitsConfig(memory_bytes=96 << 20)) as decoder:
        assert rejected(decoder, greedy).stage in ("memory", "crash", "decode", "open")
        assert numbers(frames_of(decoder, clip)) == list(range(40))
    with Decoder(LimitsConfig()) as decoder:
        assert len(frames_of(decoder, greedy)) == 3


def test_the_worker_cannot_write_large_files_nor_dump_core(decoder: Decoder, clip: Path) -> None:
    frames_of(decoder, clip)
    process = psutil.Process(decoder.pid)
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert process.rlimit(psutil.RLIMIT_FSIZE)[0] <= 1 << 20
    assert process.rlimit(psutil.RLIMIT_AS)[0] < psutil.virtual_memory().total + (8 << 30)


def test_the_worker_ends_with_its_decoder(clip: Path) -> None:
    with Decoder(LimitsConfig()) as decoder:
        frames_of(decoder, clip)
        worker = decoder.pid
        assert worker is not None
        assert psutil.pid_exists(worker)
    assert not psutil.pid_exists(worker)
    assert decoder.pid is None


def test_the_worker_ends_when_its_parent_is_killed() -> None:
    code = (
        "import os; from pipelines.data.decode.decoder import Decoder, LimitsConfig\n"
        "decoder = Decoder(LimitsConfig()); decoder._start(); print(decoder.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    root = Path(module.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL
    worker = int(done.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_cannot_start_says_why(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="does not start"):
        Decoder(LimitsConfig()).open(clip, [(64, 96)])


def test_a_worker_is_retired_after_many_videos(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VIDEOS_PER_WORKER", 2)
    with Decoder(LimitsConfig()) as decoder:
        workers = []
        for _ in range(3):
            frames_of(decoder, clip)
            workers.append(decoder.pid)
    assert workers[0] == workers[1] != workers[2]


def test_flipped_bits_give_frames_or_reasons(clip: Path, tmp_path: Path) -> None:
    """Sixty damaged copies: each ends, none shortens the video without a word, and a good one still reads."""
    rng = np.random.default_rng(0)
    data = np.frombuffer(clip.read_bytes(), np.uint8)
    ends: dict[str, int] = {}
    with Decoder(LimitsConfig(timeout_s=5, memory_bytes=1 << 30)) as decoder:
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(32, len(data), 20)] ^= rng.integers(1, 256, 20, dtype=np.uint8)
            (tmp_path / "x.mp4").write_bytes(damaged.tobytes())
            try:
                count = len(frames_of(decoder, tmp_path / "x.mp4"))
                assert count >= 36
                ends["frames"] = ends.get("frames", 0) + 1
            except Rejected as error:
                stage = error.reject.stage if error.reject.reason else "without a reason"
                ends[stage] = ends.get(stage, 0) + 1
        assert numbers(frames_of(decoder, clip)) == list(range(40))
    assert sum(ends.values()) == 60
    assert len(ends) > 1
    assert "without a reason" not in ends
