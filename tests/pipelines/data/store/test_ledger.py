"""A ledger says what it was told, notices damage, and decides which files are there."""

from pathlib import Path

import numpy as np
import pytest

from models.errors import DataError
from pipelines.data.store.files import ShardFile
from pipelines.data.store.ledger import (
    Moments,
    Status,
    Window,
    merge_moments,
    read_ledger,
    read_ledgers,
    write_ledger,
)
from pipelines.storage import Storage

STATUS = Status(
    corpus="short", source_id="f" * 64, source="a/b.mp4", caption="c", num_bytes=5, status="written"
)
WINDOW = Window(
    window_id="short-1",
    source_id="f" * 64,
    start_frame=8,
    num_frames=4,
    reader="decord",
    shot=2,
    brightness=0.25,
    fingerprint=bytes(range(24)),
    reason="min_motion",
)
FILE = ShardFile(file="short/one-shard-00000.parquet", rows=1, num_bytes=9, sha256="0" * 64)


def write(root: Path, name: str = "one") -> Path:
    write_ledger(Storage(root), f"short/{name}", [STATUS], [FILE], Moments(4, [1.0], [2.0]), [WINDOW] * 3)
    return root / "short" / f"{name}.ledger"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    ledger = read_ledger(Storage(tmp_path), "short/one.ledger")
    assert ledger.statuses == [STATUS]
    assert ledger.files == [FILE]
    assert ledger.moments == Moments(4, [1.0], [2.0])
    assert [Window(**row) for row in ledger.windows.to_pylist()] == [WINDOW] * 3


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    path = write(tmp_path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 200):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        with pytest.raises(DataError, match="sha256 differs") as caught:
            read_ledger(Storage(tmp_path), "short/one.ledger")
        assert "Delete" in caught.value.remedy


def test_files_that_no_ledger_names_are_deleted(tmp_path: Path) -> None:
    write(tmp_path)
    named, lost, aside = (
        tmp_path / "short" / name for name in ("one-shard-00000.parquet", "two.parquet", ".aside-x")
    )
    for path in (named, lost, aside):
        path.write_bytes(b"")
    assert len(read_ledgers(Storage(tmp_path), "short")) == 1
    assert named.exists()
    assert not lost.exists()
    assert not aside.exists()


def test_a_ledger_whose_file_is_gone_does_not_count(tmp_path: Path) -> None:
    """As when a worker of a failed run writes its ledger after the next run has cleared up."""
    ledger = write(tmp_path)
    other = tmp_path / "short" / "other-shard-00000.parquet"
    other.write_bytes(b"")
    assert read_ledgers(Storage(tmp_path), "short") == []
    assert not ledger.exists()
    assert not other.exists()


def test_moments_of_parts_are_the_moments_of_the_whole() -> None:
    one, two = Moments(2, [1.0, 3.0], [4.0, 5.0]), Moments(3, [0.5, 1.0], [1.0, 1.0])
    assert merge_moments(one, two) == Moments(5, [1.5, 4.0], [5.0, 6.0])
    assert merge_moments(None, two) == merge_moments(two, None) == two
    assert merge_moments(None, None) is None


@pytest.mark.parametrize("text", [b"", b"no ledger"])
def test_what_is_no_ledger_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "x.ledger").write_bytes(text)
    with pytest.raises(DataError, match=r"short/x\.ledger is damaged"):
        read_ledgers(Storage(tmp_path), "short")
