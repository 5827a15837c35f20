"""A shard is whole, readable by plain pyarrow, and no flipped bit passes."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.errors import DataError
from pipelines.data.store import shards
from pipelines.data.store.files import ShardFile, plain_values, tuples
from pipelines.data.store.ledger import Window
from pipelines.data.store.shards import ShardWriter, open_shard
from pipelines.storage import Storage

SHAPE = (4, 3, 2, 2)


def window(number: int) -> Window:
    return Window(
        window_id=f"short-{number:04d}",
        source_id="f" * 64,
        start_frame=4 * number,
        num_frames=4,
        shot=number // 8,
        reader="decord",
    )


def latents(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *SHAPE)).astype(np.float32)


def shard(root: Path, name: str = "shard") -> ShardWriter:
    return ShardWriter(Storage(root), "short", name, {"version": "v1", "av": "18"})


def write(root: Path, count: int = 50, name: str = "shard") -> tuple[list[Window], list[ShardFile]]:
    writer = shard(root, name)
    placed = [writer.add(window(i), row) for i, row in enumerate(latents(count))]
    return placed, writer.commit()


def test_plain_pyarrow_reads_a_tensor_column(tmp_path: Path) -> None:
    write(tmp_path)
    table = pq.read_table(tmp_path / "short" / "shard-00000.parquet")
    np.testing.assert_array_equal(table["latents"].combine_chunks().to_numpy_ndarray(), latents(50))
    assert table["latents"].type.shape == list(SHAPE)
    assert table["start_frame"].to_pylist()[3] == 12
    assert table["shot"].to_pylist()[9] == 1
    columns = ["window_id", "source_id", "start_frame", "num_frames", "shot", "reader", "latents"]
    assert table.column_names == columns
    footer = pq.read_metadata(tmp_path / "short" / "shard-00000.parquet").metadata
    assert json.loads(footer[b"sostenuto.lineage"]) == {"version": "v1", "av": "18"}


def test_the_same_windows_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "two")
    names = os.listdir(tmp_path / "one" / "short")
    assert names == ["shard-00000.parquet"]
    one, two = (tmp_path / run / "short" / names[0] for run in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_description_matches_the_file(tmp_path: Path) -> None:
    _, (part,) = write(tmp_path, 1)
    assert (part.file, part.rows) == ("short/shard-00000.parquet", 1)
    assert part.num_bytes == (tmp_path / part.file).stat().st_size
    assert part.sha256 == Storage(tmp_path).sha256(part.file)


def test_an_abort_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 500)
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    writer = shard(tmp_path)
    for number, row in enumerate(latents(25)):
        writer.add(window(number), row)
    assert len(os.listdir(tmp_path / "short")) > 1
    writer.abort()
    assert os.listdir(tmp_path / "short") == []


def test_a_writer_without_a_window_writes_no_file(tmp_path: Path) -> None:
    assert shard(tmp_path).commit() == []
    assert not (tmp_path / "short").exists()


def test_parts_are_bounded_and_each_window_knows_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)
    placed, files = write(tmp_path, 60)
    assert len(files) == 60 * 192 // 3072 + 1
    assert sum(file.rows for file in files) == 60
    for row in placed:
        with open_shard(Storage(tmp_path), row.file) as file:
            assert file.read_row_group(row.row_group)["window_id"].to_pylist()[row.row] == row.window_id


def test_every_page_carries_a_checksum_that_is_verified(tmp_path: Path) -> None:
    """One bit is flipped at each of 150 places of the pages; none is read without a complaint."""
    write(tmp_path, 20)
    storage, file = Storage(tmp_path), "short/shard-00000.parquet"
    path = tmp_path / file
    data = path.read_bytes()
    with open_shard(storage, file) as shard:
        columns = [shard.metadata.row_group(0).column(i) for i in range(shard.metadata.num_columns)]
        starts = [c.dictionary_page_offset or c.data_page_offset for c in columns]
        end = max(s + c.total_compressed_size for s, c in zip(starts, columns, strict=True))
    rng = np.random.default_rng(1)
    starts_at = [4 * number for number in range(20)]
    silent = 0
    for place in rng.integers(4, end, 150):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            with open_shard(storage, file) as shard:
                table = shard.read()
            same = np.array_equal(table["latents"].combine_chunks().to_numpy_ndarray(), latents(20))
            silent += not same or table["start_frame"].to_pylist() != starts_at
        except DataError:
            continue
    assert silent == 0


def test_windows_of_each_shape_get_shards_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    writer = ShardWriter(Storage(tmp_path), "short", "made", {"version": "v"})
    sizes = {(4, 16, 16): (4, 3, 2, 2), (2, 16, 32): (2, 3, 2, 4), (4, 32, 16): (4, 3, 4, 2)}
    rows = [(pixels, rng.normal(size=shape).astype(np.float32)) for pixels, shape in [*sizes.items()] * 5]
    placed = [writer.add(window(i), row, pixels) for i, (pixels, row) in enumerate(rows)]
    files = {file.file: file for file in writer.commit()}
    assert {file.pixels for file in files.values()} == set(sizes)
    assert sorted(files) == [f"short/made-{name}-00000.parquet" for name in ("2x16x32", "4x16x16", "4x32x16")]
    for place, (pixels, row) in zip(placed, rows, strict=True):
        assert files[place.file].pixels == pixels
        with open_shard(Storage(tmp_path), place.file) as file:
            found = file.read_row_group(place.row_group)["latents"].combine_chunks().to_numpy_ndarray()
        np.testing.assert_array_equal(found[place.row], row)
    assert all(ShardFile(**tuples(plain_values(file))) == file for file in files.values())


def test_windows_of_one_shape_are_written_as_without_buckets(tmp_path: Path) -> None:
    _, (part,) = write(tmp_path / "plain")
    writer = ShardWriter(Storage(tmp_path / "buckets"), "short", "shard", {"version": "v1", "av": "18"})
    for number, row in enumerate(latents(50)):
        writer.add(window(number), row, ())
    assert writer.commit() == [part]
    assert "pixels" not in plain_values(part)


def test_an_abort_leaves_no_shape_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", 500)
    writer = ShardWriter(Storage(tmp_path), "short", "shard", {"version": "v"})
    for number, row in enumerate(latents(25)):
        writer.add(window(number), row[: 2 + number % 2], (2 + number % 2, 2, 2))
    assert len(os.listdir(tmp_path / "short")) == 2
    writer.abort()
    assert os.listdir(tmp_path / "short") == []


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no parquet")
    with (
        pytest.raises(DataError, match=r"x\.parquet is damaged"),
        open_shard(Storage(tmp_path), "x.parquet"),
    ):
        pass
