"""A shard is whole, readable by plain pyarrow, and no flipped bit passes."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.errors import DataError
from pipelines.data import shards
from pipelines.data.shards import ShardWriter, Status, Window, digest, finished, open_shard
from pipelines.storage import Storage

SHAPE = (4, 3, 2, 2)


def window(number: int, rng: np.random.Generator) -> Window:
    return Window(
        window_id=f"short-{number:04d}",
        source_id="f" * 64,
        source="a/b.mp4",
        start_frame=4 * number,
        num_frames=4,
        caption=f"caption {number % 3}",
        reader="decord",
        latents=rng.normal(size=SHAPE).astype(np.float32),
    )


def status(source_id: str = "f" * 64) -> Status:
    return Status(
        corpus="short", source_id=source_id, source="a/b.mp4", caption="c", num_bytes=5, status="written"
    )


def write(root: Path, count: int = 50, name: str = "shard") -> list[Window]:
    rng = np.random.default_rng(0)
    windows = [window(i, rng) for i in range(count)]
    writer = ShardWriter(Storage(root), "short", name)
    for row in windows:
        writer.add(row)
    writer.commit([status()])
    return windows


def test_plain_pyarrow_reads_a_tensor_column(tmp_path: Path) -> None:
    windows = write(tmp_path)
    table = pq.read_table(tmp_path / "short" / "shard-00000.parquet")
    latents = table["latents"].combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(latents, np.stack([row.latents for row in windows]))
    assert table["latents"].type.shape == list(SHAPE)
    assert table["caption"].to_pylist()[:4] == ["caption 0", "caption 1", "caption 2", "caption 0"]
    assert table["start_frame"].to_pylist()[3] == 12
    assert table.column_names == [
        "window_id",
        "source_id",
        "source",
        "start_frame",
        "num_frames",
        "caption",
        "reader",
        "latents",
    ]


def test_the_same_windows_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    names = os.listdir(tmp_path / "one" / "short")
    assert names == ["shard-00000.parquet"]
    one, two = (tmp_path / run / "short" / names[0] for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_description_matches_the_file(tmp_path: Path) -> None:
    writer = ShardWriter(Storage(tmp_path), "short", "shard")
    writer.add(window(0, np.random.default_rng(0)))
    (part,) = writer.commit([status()])
    assert (part.file, part.rows) == ("short/shard-00000.parquet", 1)
    assert part.num_bytes == (tmp_path / part.file).stat().st_size
    assert part.sha256 == digest(Storage(tmp_path), part.file)


def test_nothing_is_there_before_the_commit_or_after_an_abort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 500)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    storage = Storage(tmp_path)
    writer = ShardWriter(storage, "short", "shard")
    rng = np.random.default_rng(0)
    for number in range(25):
        writer.add(window(number, rng))
    assert finished(storage, "long") == ([], [])
    writer.abort()
    assert os.listdir(tmp_path / "short") == []


def test_a_writer_without_a_window_writes_no_file(tmp_path: Path) -> None:
    assert ShardWriter(Storage(tmp_path), "short", "shard").commit([]) == []
    assert not (tmp_path / "short").exists()


def test_parts_are_bounded_and_the_last_names_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    windows = write(tmp_path, 60)
    storage = Storage(tmp_path)
    statuses, files = finished(storage, "short")
    assert statuses == [status()]
    assert len(files) == 60 * 192 // 3072 + 1
    assert sum(file.rows for file in files) == 60
    ids = []
    for file in files:
        with open_shard(storage, file.file) as shard:
            ids += shard.read(columns=["window_id"])["window_id"].to_pylist()
    assert ids == [row.window_id for row in windows]


def test_parts_of_a_killed_writer_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 10, name="whole")
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 500)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    killed = ShardWriter(Storage(tmp_path), "short", "killed")
    rng = np.random.default_rng(0)
    for number in range(20):
        killed.add(window(number, rng))
    assert len(os.listdir(tmp_path / "short")) > 2
    _, files = finished(Storage(tmp_path), "short")
    assert [file.file for file in files] == ["short/whole-00000.parquet"]
    assert os.listdir(tmp_path / "short") == ["whole-00000.parquet"]


def test_every_page_carries_a_checksum_that_is_verified(tmp_path: Path) -> None:
    """One bit is flipped at each of 150 places of the pages; none is read without a complaint."""
    windows = write(tmp_path, 20)
    storage, file = Storage(tmp_path), "short/shard-00000.parquet"
    path = tmp_path / file
    data = path.read_bytes()
    with open_shard(storage, file) as shard:
        columns = [shard.metadata.row_group(0).column(i) for i in range(shard.metadata.num_columns)]
        starts = [c.dictionary_page_offset or c.data_page_offset for c in columns]
        end = max(s + c.total_compressed_size for s, c in zip(starts, columns, strict=True))
    rng = np.random.default_rng(1)
    expected = np.stack([row.latents for row in windows])
    silent = 0
    for place in rng.integers(4, end, 150):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            with open_shard(storage, file) as shard:
                table = shard.read()
            latents = table["latents"].combine_chunks().to_numpy_ndarray()
            same = np.array_equal(latents, expected)
            silent += not same or table["caption"].to_pylist() != [row.caption for row in windows]
        except DataError:
            continue
    assert silent == 0


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "x.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"short/x\.parquet is damaged"):
        finished(Storage(tmp_path), "short")
