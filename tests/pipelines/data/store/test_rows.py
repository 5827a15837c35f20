"""What a run began with is found again in a dataset that has changed, and the change is counted."""

import dataclasses
from pathlib import Path

import pytest

from pipelines.data.store import rows
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.rows import RowChanges, changes_since, note_rows, noted_ids
from pipelines.data.types import CORPORA
from pipelines.storage import Storage
from tests.pipelines.data.made import COUNT, end, write_shards

NOTE = "stage/rows.parquet"


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Two of three videos a corpus, noted."""
    statuses = write_shards(tmp_path)
    end(tmp_path, statuses, parts=2)
    note_rows(str(tmp_path), Storage(tmp_path), NOTE)
    return str(tmp_path)


def since(dataset: str, *corpora: str) -> RowChanges:
    return changes_since(Storage(dataset), NOTE, dataset, corpora or CORPORA)  # type: ignore[arg-type]


def listed(dataset: str, parts: int, **changed: str) -> None:
    """The dataset of other videos, or of other ones under the same names."""
    statuses = [dataclasses.replace(own, **changed) for own in write_shards(Path(dataset))]
    end(Path(dataset), statuses, parts=parts)


def test_nothing_has_changed_at_first(dataset: str) -> None:
    assert not since(dataset)
    assert str(since(dataset)) == ""
    assert {name: len(ids) for name, ids in noted_ids(Storage(dataset), NOTE).items()} == {
        "short": COUNT["short"] * 2 // 3,
        "long": COUNT["long"] * 2 // 3,
    }


def test_new_windows_are_counted_by_corpus_and_the_old_ones_read_as_before(dataset: str) -> None:
    before = {name: ShardDataset(dataset, name) for name in CORPORA}
    listed(dataset, parts=3)
    more = {name: COUNT[name] // 3 for name in CORPORA}
    assert since(dataset) == RowChanges(more=sum(more.values()))
    assert str(since(dataset, "long")) == f"the dataset has {more['long']} more windows"
    assert not since(dataset).lost
    only = noted_ids(Storage(dataset), NOTE)
    for name in CORPORA:
        assert len(ShardDataset(dataset, name)) == len(before[name]) + more[name]
        assert ShardDataset(dataset, name, only=only[name]).ids == before[name].ids


def test_lost_and_altered_windows_are_told_apart(dataset: str) -> None:
    listed(dataset, parts=1)
    gone = since(dataset)
    assert (gone, gone.lost) == (RowChanges(gone=COUNT["short"] // 3 + COUNT["long"] // 3), True)
    listed(dataset, parts=2, latents_sha256="others")
    other = since(dataset)
    assert (other.other, other.lost) == ((COUNT["short"] + COUNT["long"]) * 2 // 3, True)
    assert "have other latents or captions" in str(other)


def test_windows_that_are_no_longer_kept_are_still_read(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a new video makes an old one its near duplicate."""
    only = noted_ids(Storage(dataset), NOTE)["long"]
    seen = list(rows._rows(dataset))
    left = [(row, kept and row.corpus == "short") for row, kept in seen]
    monkeypatch.setattr(rows, "_rows", lambda _: left)
    dropped = since(dataset)
    assert (dropped, dropped.lost) == (RowChanges(left_out=len(only)), False)
    assert "leaves out" in str(dropped)
