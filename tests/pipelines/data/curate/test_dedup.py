"""Near duplicates are those that comparing all with all finds, whatever the order of the rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from pipelines.data.curate import dedup
from pipelines.data.curate.dedup import MOST_DISTANCE, near_duplicates

Case = tuple[list[str], list[str], list[str], np.ndarray]


def by_comparing_all(case: Case, distance: int, across: bool) -> dict[int, int]:
    ids, corpora, sources, hashes = case
    kept: list[int] = []
    dropped = {}

    def alike(a: int, b: int) -> bool:
        near = all(
            (int(x) ^ int(y)).bit_count() <= distance for x, y in zip(hashes[a], hashes[b], strict=True)
        )
        return near and sources[a] != sources[b] and (across or corpora[a] == corpora[b])

    for row in sorted(range(len(ids)), key=lambda row: (corpora[row] != "long", ids[row])):
        like = [k for k in kept if alike(k, row)]
        if like:
            dropped[row] = like[0]
        else:
            kept.append(row)
    return dropped


def cases(seed: int, count: int, families: int, flips: int) -> Case:
    """Windows of a few families; members differ from each other in up to `2 flips` bits of each hash."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, (families, 3), np.uint64)[rng.integers(0, families, count)]
    for _ in range(flips):
        hashes = hashes ^ (np.uint64(1) << rng.integers(0, 64, hashes.shape, np.uint64))
    ids = [f"window-{number:05d}" for number in rng.permutation(count)]
    corpora = [("long", "short")[i] for i in rng.integers(0, 2, count)]
    return ids, corpora, [f"video-{i}" for i in rng.integers(0, 6, count)], hashes


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few windows fill several blocks, and the pairs of one several turns."""
    monkeypatch.setattr(dedup, "BLOCK", 16)
    monkeypatch.setattr(dedup, "MOST_PAIRS", 32)


@given(
    st.integers(0, 2**31),
    st.integers(0, 90),
    st.integers(1, 5),
    st.integers(0, 8),
    st.integers(0, MOST_DISTANCE),
    st.booleans(),
)
def test_they_are_those_of_comparing_all_with_all(
    seed: int, count: int, families: int, flips: int, distance: int, across: bool
) -> None:
    case = cases(seed, count, families, flips)
    assert near_duplicates(*case, distance, across) == by_comparing_all(case, distance, across)


@pytest.mark.parametrize("distance", range(1, MOST_DISTANCE + 1))
def test_bits_spread_over_all_of_a_hash_hide_nothing(distance: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit in each of `distance` parts: only a band more than that is sure to be equal."""
    monkeypatch.setattr(dedup, "BLOCK", 1)
    flips = sum(1 << (i * 64 // distance) for i in range(distance))
    hashes = np.array([[5] * 3, [5 ^ flips] * 3], np.uint64)
    assert near_duplicates(["a", "b"], ["long"] * 2, ["x", "y"], hashes, distance) == {1: 0}
    assert near_duplicates(["a", "b"], ["long"] * 2, ["x", "y"], hashes, distance - 1) == {}


@given(st.integers(0, 2**31))
def test_the_order_of_the_rows_changes_nothing(seed: int) -> None:
    ids, corpora, sources, hashes = cases(seed, 60, 3, 4)
    order = list(np.random.default_rng(seed + 1).permutation(60))
    shuffled = [[column[i] for i in order] for column in (ids, corpora, sources)]
    plain = near_duplicates(ids, corpora, sources, hashes, 5, True)
    other = near_duplicates(*shuffled, hashes[order], 5, True)
    assert {ids[row]: ids[like] for row, like in plain.items()} == {
        shuffled[0][row]: shuffled[0][like] for row, like in other.items()
    }


def pair(bits: tuple[int, int, int]) -> np.ndarray:
    """Two windows whose hashes differ in so many bits."""
    hashes = np.random.default_rng(0).integers(0, 2**64, (2, 3), np.uint64)
    hashes[1] = hashes[0] ^ np.array([(1 << count) - 1 for count in bits], np.uint64)
    return hashes


@pytest.mark.parametrize(
    ("bits", "found"), [((4, 4, 4), True), ((5, 0, 0), False), ((0, 5, 0), False), ((0, 0, 5), False)]
)
def test_each_of_the_three_hashes_must_be_near(bits: tuple[int, int, int], found: bool) -> None:
    dropped = near_duplicates(["a", "b"], ["short"] * 2, ["x", "y"], pair(bits), 4)
    assert dropped == ({1: 0} if found else {})


def test_windows_of_one_video_are_never_duplicates() -> None:
    assert near_duplicates(["a", "b"], ["long"] * 2, ["x", "x"], pair((0, 0, 0)), 4) == {}


def test_the_corpora_meet_only_when_asked_and_long_is_kept() -> None:
    case = (["a", "z"], ["short", "long"], ["x", "y"], pair((1, 1, 1)))
    assert near_duplicates(*case, 4) == {}
    assert near_duplicates(*case, 4, across=True) == {0: 1}


def test_one_is_kept_of_many_equal_ones() -> None:
    hashes = np.full((100, 3), 7, np.uint64)
    ids = [f"{number:03d}" for number in range(100)]
    dropped = near_duplicates(ids, ["short"] * 100, ids, hashes, 0)
    assert dropped == dict.fromkeys(range(1, 100), 0)


def test_a_dropped_window_drops_no_other() -> None:
    """b is like a, c is like b but not like a: c stays."""
    hashes = np.array([[0] * 3, [0b111] * 3, [0b111111] * 3], np.uint64)
    assert near_duplicates(["a", "b", "c"], ["short"] * 3, ["x", "y", "z"], hashes, 3) == {1: 0}


def test_no_windows_no_duplicates() -> None:
    assert near_duplicates([], [], [], np.zeros((0, 3), np.uint64), 4) == {}


@pytest.mark.parametrize("distance", [-1, MOST_DISTANCE + 1])
def test_a_distance_without_meaning_is_refused(distance: int) -> None:
    with pytest.raises(ConfigError, match="Choose 0"):
        near_duplicates(["a", "b"], ["short"] * 2, ["x", "y"], pair((0, 0, 0)), distance)
