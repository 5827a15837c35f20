"""The tables of a dataset are of one run: of the last one that was finished, whatever befell those after."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import ClusterError, DataError
from pipelines.data.ingest import finalize as module
from pipelines.data.ingest.worker import rejected_status
from pipelines.data.report.summary import read_tables, summarise
from pipelines.data.store.info import read_info
from pipelines.data.store.ledger import Status
from pipelines.data.types import NOT_A_VIDEO, SAME_BYTES, Reject
from tests.pipelines.data.made import end, write_shards


def rejects(like: Status, count: int, reason: str = "it is cut") -> list[Status]:
    return [
        rejected_status(replace(like, source=f"bad{i}.mp4"), Reject("open", reason)) for i in range(count)
    ]


def test_a_run_that_is_refused_leaves_the_tables_of_the_one_before(tmp_path: Path) -> None:
    statuses = write_shards(tmp_path)
    info = end(tmp_path, statuses)
    before = summarise(read_tables(str(tmp_path)))
    with pytest.raises(DataError, match="SHORT: 4 of 7 videos"):
        end(tmp_path, statuses + rejects(statuses[0], 4))
    assert read_info(str(tmp_path)) == info
    assert summarise(read_tables(str(tmp_path))) == before
    assert (tmp_path / "rejects.parquet").exists(), "the message names it"


@pytest.mark.parametrize("fails", ["_write_rejects", "write_index"])
def test_a_run_that_is_cut_off_among_the_tables_leaves_none_that_are_mixed(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = write_shards(tmp_path)
    end(tmp_path, statuses)

    def cut(*_: object) -> None:
        raise ClusterError("the disk is full", "Free space")

    more = statuses + rejects(statuses[0], 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, fails, cut)
        with pytest.raises(ClusterError):
            end(tmp_path, more)
    with pytest.raises(DataError, match="not finished") as caught:
        read_tables(str(tmp_path))
    assert "Delete" not in caught.value.remedy
    end(tmp_path, more)
    assert summarise(read_tables(str(tmp_path))).short.rejected_videos == 1


def test_still_pictures_are_no_reason_to_refuse_a_corpus(tmp_path: Path) -> None:
    statuses = write_shards(tmp_path)
    assert (
        end(tmp_path, statuses + rejects(statuses[0], 9, f"{NOT_A_VIDEO}a still picture")).short.rejects == 9
    )


def test_videos_that_are_there_twice_are_no_reason_to_refuse_a_corpus(tmp_path: Path) -> None:
    statuses = write_shards(tmp_path)
    twins = rejects(statuses[0], 9, f"{SAME_BYTES}0.mp4")
    assert end(tmp_path, statuses + twins).short.rejects == 9
    assert end(tmp_path, statuses + twins + rejects(statuses[0], 3)).short.rejects == 12
    with pytest.raises(DataError, match="SHORT: 4 of 7 videos"):
        end(tmp_path, statuses + twins + rejects(statuses[0], 4))
