"""What a worker does with a group, without Ray: good videos are kept whole, bad ones leave no trace."""

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.autoencoders.pca import PcaAutoencoder
from models.config import AutoencoderConfig
from pipelines.data.config import LimitsConfig
from pipelines.data.decode.decoder import Clip
from pipelines.data.decode.protocol import Probe
from pipelines.data.ingest import pipeline
from pipelines.data.ingest import worker as module
from pipelines.data.ingest.pipeline import group_by_bytes
from pipelines.data.ingest.worker import ClipsAhead, Group, Task, shard_name, write_group
from pipelines.data.source.manifest import Source, list_corpus
from pipelines.data.store.files import ShardFile
from pipelines.data.store.ledger import Status, read_ledgers
from pipelines.data.types import Rejected
from pipelines.storage import Storage
from tests.pipelines.data.corpora import DATA, RANK, SIZE
from tests.pipelines.data.videos import low_rank


@pytest.fixture
def task(corpora: tuple[Path, Path], tmp_path: Path) -> Task:
    frames = low_rank(60, RANK, SIZE, seed=7)
    PcaAutoencoder.fit(frames, AutoencoderConfig(components=RANK), SIZE, SIZE).save(tmp_path / "autoencoder")
    folders = {"short": str(corpora[0]), "long": str(corpora[1])}
    return Task(out=str(tmp_path), folders=folders, version=tmp_path.name, data=DATA)


def group(task: Task, corpus: str) -> Group:
    return Group(corpus=corpus, sources=tuple(list_corpus(task.folders[corpus]).sources))


def source(name: str, num_bytes: int) -> Source:
    return Source(id=name, path=f"{name}.mp4", caption="", num_bytes=num_bytes)


def test_neighbours_share_a_group_up_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SHARES", 1)
    listed = [source(str(i), size) for i, size in enumerate([3, 3, 3, 100, 1, 9, 5, 5])]
    groups = group_by_bytes("short", listed, block_bytes=10, most=100)
    assert [[s.id for s in g.sources] for g in groups] == [["0", "1", "2"], ["3"], ["4", "5"], ["6", "7"]]
    groups = group_by_bytes("short", listed, block_bytes=1000, most=3)
    assert [len(g.sources) for g in groups] == [3, 3, 2]
    assert group_by_bytes("short", [], block_bytes=10, most=3) == []


def test_a_shards_name_is_its_content(task: Task) -> None:
    one, two = group(task, "short").sources[:2]
    names = {
        shard_name(task, [one]),
        shard_name(task, [two]),
        shard_name(task, [one, two]),
        shard_name(replace(task, version="other"), [one]),
    }
    assert len(names) == 4
    assert shard_name(task, [one]) == shard_name(task, [replace(one, path="moved.mp4")])


def recorded(task: Task, corpus: str) -> tuple[list[Status], list[ShardFile]]:
    """What the ledgers say."""
    ledgers = read_ledgers(Storage(task.out), corpus)
    return [s for ledger in ledgers for s in ledger.statuses], [f for led in ledgers for f in led.files]


def test_a_group_writes_one_shard_and_its_ledger(task: Task) -> None:
    answer = write_group(task, group(task, "short"))
    statuses, files = recorded(task, "short")
    assert statuses == answer
    assert len(files) == 1
    assert {status.status for status in statuses} == {"written"}
    (ledger,) = read_ledgers(Storage(task.out), "short")
    assert ledger.windows.num_rows == sum(status.num_windows for status in statuses) == files[0].rows


def test_doing_it_twice_changes_no_byte(task: Task) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (Path(task.out) / "long").iterdir()}

    first = write_group(task, group(task, "long"))
    before = contents()
    assert write_group(task, group(task, "long")) == first
    assert contents() == before


def test_a_large_video_gets_a_shard_of_its_own(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    one_window = 24 * RANK * 4
    together = write_group(task, group(task, "long"))
    shutil.rmtree(Path(task.out) / "long")
    monkeypatch.setattr(module, "SPILL_BYTES", 2 * one_window)
    assert write_group(task, group(task, "long")) == together
    statuses, files = recorded(task, "long")
    assert len(files) == len(statuses) == 4


@pytest.mark.parametrize("spill", [1, 1 << 30])
def test_a_video_that_breaks_half_way_leaves_no_window(
    spill: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPILL_BYTES", spill)
    monkeypatch.setattr(module, "encoded_windows", breaking(module.encoded_windows, at=2))
    write_group(task, group(task, "long"))
    statuses, files = recorded(task, "long")
    broken = [status for status in statuses if status.status == "rejected"]
    assert [status.stage for status in broken] == ["decode"]
    rows = [row for file in files for row in pq.read_table(Path(task.out) / file.file).to_pylist()]
    assert len(rows) == sum(s.num_windows for s in statuses) > 0
    assert broken[0].source_id not in {row["source_id"] for row in rows}
    assert len(os.listdir(Path(task.out) / "long")) == len(files) + 1


def breaking(original, at: int):
    """The second video of the group turns out damaged after `at` windows."""
    videos = []

    def windows(video, frames, *rest):
        videos.append(video)
        second = len(videos) == 2
        for number, window in enumerate(original(video, frames, *rest)):
            if second and number == at:
                deque(frames, maxlen=0)
                raise Rejected("decode", "damaged")
            yield window

    return windows


def test_a_defect_half_way_leaves_nothing_at_all(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    original, count = module.encoded_windows, []

    def windows(*rest):
        for window in original(*rest):
            count.append(window)
            if len(count) == 5:
                raise ZeroDivisionError
            yield window

    monkeypatch.setattr(module, "SPILL_BYTES", 1)
    monkeypatch.setattr(module, "encoded_windows", windows)
    with pytest.raises(ZeroDivisionError):
        write_group(task, group(task, "long"))
    assert recorded(task, "long") == ([], [])
    assert os.listdir(Path(task.out) / "long") == []


def test_the_same_decoder_serves_groups_with_the_same_limits() -> None:
    limits = LimitsConfig(timeout_s=3)
    assert module._decoder(limits) is module._decoder(LimitsConfig(timeout_s=3))


def decoding(monkeypatch: pytest.MonkeyPatch, chunks: int, fails: tuple[str, ...] = ()) -> list[str]:
    """Clips of so many chunks each, those named `fails` damaged in the middle; logs the decoding."""
    log: list[str] = []

    @contextmanager
    def open_clip(_task: Task, _corpus: str, source: Source) -> Iterator[Clip]:
        def frames() -> Iterator[np.ndarray]:
            for number in range(chunks):
                if source.id in fails and number == chunks // 2:
                    raise Rejected("decode", source.id)
                log.append(f"{source.id}{number}")
                yield np.full(1, number)

        try:
            yield Clip(PROBE, (8, 8), frames(), [])
        finally:
            log.append(f"close {source.id}")

    monkeypatch.setattr(module, "open_clip", open_clip)
    return log


PROBE = Probe(reader="decord", reader_reason="", applied="mirrored", width=8, height=8, fps=8.0, seconds=1.0)
NAMED = Group(corpus="short", sources=tuple(source(name, 1) for name in "abc"))


def test_clips_come_in_order_and_a_damaged_one_costs_only_itself(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = decoding(monkeypatch, chunks=4, fails=("b",))
    with ClipsAhead(task, NAMED) as clips:
        assert [len(list(clips.open().frames)) for _ in "a"] == [4]
        frames = clips.open().frames
        assert [next(frames)[0], next(frames)[0]] == [0, 1]
        with pytest.raises(Rejected, match="decode: b"):
            next(frames)
        assert [chunk[0] for chunk in clips.open().frames] == [0, 1, 2, 3]
    assert [step for step in log if step.startswith("close")] == ["close a", "close b", "close c"]


def test_the_next_clip_is_decoded_while_this_one_is_read_but_not_further_than_allowed(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AHEAD_CHUNKS", 6)
    log = decoding(monkeypatch, chunks=3)
    with ClipsAhead(task, NAMED) as clips:
        first = clips.open()
        deadline = time.monotonic() + 10
        while "b0" not in log and time.monotonic() < deadline:
            time.sleep(0.01)
        assert log == ["a0", "a1", "a2", "close a", "b0"], "a and its end, b: one taken, six ahead"
        assert len(list(first.frames)) == 3
    assert log[-1] == "close b"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode-ahead")]


def test_leaving_early_closes_the_clip_and_ends_the_thread(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = decoding(monkeypatch, chunks=1000)

    def leave() -> None:
        with ClipsAhead(task, NAMED) as clips:
            clips.open()
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    assert log[-1] == "close a"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode-ahead")]
