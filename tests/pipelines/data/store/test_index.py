"""The index names each window of each listed video once, from the ledger that wrote it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest

from pipelines.data.config import CurationConfig
from pipelines.data.source.manifest import Source
from pipelines.data.store.index import _own_rows, build_index
from pipelines.data.store.ledger import Ledger, Status, Window
from pipelines.data.tables import table_of

VIDEOS = [Source(id=name, path=f"{name}.mp4", caption=f"about {name}", num_bytes=1) for name in "ab"]


def status(name: str, end: str) -> Status:
    return Status(corpus="short", source_id=name, source="old.mp4", caption="old", num_bytes=1, status=end)


def window(name: str, start: int, file: str) -> Window:
    usual = Window(
        window_id=f"short-{name}-{start:08d}",
        source_id=name,
        start_frame=start,
        num_frames=8,
        reader="decord",
        fingerprint=bytes(24),
    )
    return replace(usual, file=file, row_group=0, row=start)


def ledger(statuses: list[Status], windows: list[Window]) -> Ledger:
    return Ledger(statuses, [], None, table_of(Window, windows))


TIMED_OUT = ledger([status("a", "rejected"), status("b", "written")], [window("b", 0, "one")])
TRIED_AGAIN = ledger([status("a", "written")], [window("a", 0, "two"), window("a", 8, "two")])
TWICE = ledger([status("a", "written")], [window("a", 0, "three"), window("a", 8, "three")])
GONE = ledger([status("c", "written")], [window("c", 0, "four")])


@pytest.mark.parametrize("order", list(permutations([TIMED_OUT, TRIED_AGAIN, TWICE, GONE])))
def test_a_video_that_was_written_at_last_is_there_once(order: tuple[Ledger, ...]) -> None:
    index = build_index({"short": order}, {"short": VIDEOS}, 0.0, CurationConfig()).to_pylist()
    assert [row["window_id"][6:] for row in index] == ["a-00000000", "a-00000008", "b-00000000"]
    assert len({row["file"] for row in index if row["source_id"] == "a"}) == 1
    assert {(row["source"], row["caption"]) for row in index if row["source_id"] == "a"} == {
        ("a.mp4", "about a")
    }


class LookedUp(set[str]):
    """Ids that may be looked up, not walked: there are as many as videos, and as many ledgers as groups."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("walked")


def test_the_work_grows_with_the_videos_not_with_their_square() -> None:
    rows = _own_rows([TIMED_OUT, TRIED_AGAIN, TWICE, GONE], LookedUp({"a", "b"}))
    assert sum(len(part) for part in rows) == 3


def test_the_holdout_and_what_was_dropped_are_told() -> None:
    dropped = replace(window("b", 8, ""), reason="min_motion")
    both = ledger([status("b", "written")], [window("b", 0, "one"), dropped])
    for share, split in ((0.0, "train"), (0.999999, "holdout")):
        rows = build_index({"short": [both]}, {"short": VIDEOS}, share, CurationConfig()).to_pylist()
        assert [(row["split"], row["kept"]) for row in rows] == [(split, True), (split, False)]


def test_near_duplicates_are_marked_wherever_they_stand() -> None:
    rejected = replace(window("a", 0, ""), reason="min_motion")
    windows = [rejected, window("a", 8, "one"), window("b", 0, "one")]
    both = ledger([status("a", "written"), status("b", "written")], windows)
    curation = CurationConfig(duplicate_distance=4)
    rows = build_index({"short": [both]}, {"short": VIDEOS}, 0.0, curation).to_pylist()
    assert [(row["kept"], row["reason"]) for row in rows] == [
        (False, "min_motion"),
        (True, ""),
        (False, "near duplicate of short-a-00000008"),
    ]
