"""Near duplicates among windows, by their perceptual hashes: exact, without comparing all with all.

Two hashes that differ in at most d bits agree in at least one of any d + 1 bands of bits (pigeonhole). So
only windows that share a band of the middle frame's hash are compared (multi-index hashing, Norouzi 2012).
Windows that show the same scene but begin at another moment of it count as different.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError

MOST_DISTANCE = 12
"""Bits: different videos begin to meet at 15, and few bits per band make the search slow."""
BITS = 64
"""Of a hash."""
MIDDLE = 1
"""Index of the hash that is looked up: many videos begin and end in black."""
LEAST_BANDS = 4
"""So that a band fits 16 bits, which sort in linear time."""
BLOCK = 1024
"""Windows per look-up, compared with each other too."""
MOST_PAIRS = 1 << 21
"""Pairs compared at once."""

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]


def near_duplicates(
    ids: Sequence[str],
    corpora: Sequence[str],
    sources: Sequence[str],
    fingerprints: Hashes,
    distance: int,
    across: bool = False,
) -> dict[int, int]:
    """Rows to drop, each with the kept row that it resembles.

    Rows are taken LONG before SHORT, then by id; one is dropped when an earlier kept one resembles it, and
    the earliest such is named. So the order in which rows are given changes nothing.

    Args:
        ids: of the windows, all different.
        corpora: `long` or `short`, per window.
        sources: the id of each window's video; windows of one video are no duplicates of each other.
        fingerprints: [n, 3], the hashes of Scores.fingerprint.
        distance: most bits in which each of the three hashes may differ.
        across: whether a SHORT window may be dropped for a LONG one.

    Raises:
        ConfigError: a distance that is not 0 ... MOST_DISTANCE.
    """
    if not 0 <= distance <= MOST_DISTANCE:
        raise ConfigError(
            f"near duplicates at a distance of {distance} bits", f"Choose 0 ... {MOST_DISTANCE}"
        )
    order = sorted(range(len(ids)), key=lambda row: (corpora[row] != "long", ids[row]))
    owners = np.unique(np.array(sources, str), return_inverse=True)[1][order]
    realms = np.array([corpora[row] == "long" and not across for row in order], bool)
    windows = _Windows(fingerprints[order], owners, realms, distance)
    kept = _Kept(windows)
    dropped: dict[int, int] = {}
    for start in range(0, len(order), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(order)))
        first = kept.first_like(rows)
        within: dict[int, int] = dict(zip(rows[first >= 0].tolist(), first[first >= 0].tolist(), strict=True))
        rows = rows[first < 0]
        a, b = (rows[side] for side in np.triu_indices(len(rows), 1))
        alike = windows.alike(a, b)
        for one, other in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
            if one not in within and other not in within:
                within[other] = one
        kept.add(rows[[row not in within for row in rows.tolist()]])
        dropped |= within
    return {order[row]: order[first] for row, first in dropped.items()}


class _Windows:
    """The windows to compare.

    Args:
        hashes: [n, 3].
        owners: index of each window's video [n].
        realms: windows of different realms are never alike [n].
        distance: most bits in which hashes may differ.
    """

    def __init__(self, hashes: Hashes, owners: Rows, realms: NDArray[np.bool_], distance: int) -> None:
        self.hashes, self.owners, self.realms, self.distance = hashes, owners, realms, distance
        self.middle = np.ascontiguousarray(hashes[:, MIDDLE])

    def alike(self, a: Rows, b: Rows) -> NDArray[np.bool_]:
        """Which of the pairs (a[i], b[i]) are near duplicates."""
        found = np.zeros(len(a), bool)
        near = np.flatnonzero(np.bitwise_count(self.middle[a] ^ self.middle[b]) <= self.distance)
        a, b = a[near], b[near]
        others = (self.owners[a] != self.owners[b]) & (self.realms[a] == self.realms[b])
        bits = np.bitwise_count(self.hashes[a] ^ self.hashes[b])
        found[near] = others & (bits <= self.distance).all(axis=1)
        return found


class _Kept:
    """The rows kept so far, in order; of equal ones of one video the first, which stands for all."""

    def __init__(self, windows: _Windows) -> None:
        self._windows = windows
        self._rows = np.zeros(0, np.int64)
        count = max(LEAST_BANDS, windows.distance + 1)
        self._bands = list(itertools.pairwise(np.uint64(i * BITS // count) for i in range(count + 1)))
        self._sorted: list[tuple[NDArray[np.uint16], Rows]] = []
        self._known: set[tuple[bytes, int, bool]] = set()

    def add(self, rows: Rows) -> None:
        """Keep rows, later in order than all before."""
        windows, fresh = self._windows, []
        for row in rows.tolist():
            key = windows.hashes[row].tobytes(), int(windows.owners[row]), bool(windows.realms[row])
            if key not in self._known:
                self._known.add(key)
                fresh.append(row)
        self._rows = np.concatenate([self._rows, np.array(fresh, np.int64)])
        self._sorted = []
        for low, high in self._bands:
            values = _bits(windows.middle[self._rows], low, high)
            order = np.argsort(values, kind="stable")
            self._sorted.append((values[order], self._rows[order]))

    def first_like(self, rows: Rows) -> Rows:
        """The earliest kept row that each row resembles; -1 where there is none."""
        none = np.iinfo(np.int64).max
        first = np.full(len(rows), none)
        for (low, high), (values, kept) in zip(self._bands, self._sorted, strict=False):
            wanted = _bits(self._windows.middle[rows], low, high)
            begins = np.searchsorted(values, wanted)
            counts = np.searchsorted(values, wanted, side="right") - begins
            for asker, place in _pairs(begins, counts):
                alike = self._windows.alike(rows[asker], kept[place])
                np.minimum.at(first, asker[alike], kept[place[alike]])
        return np.where(first == none, -1, first)


def _bits(hashes: Hashes, low: np.uint64, high: np.uint64) -> NDArray[np.uint16]:
    """Bits low ... high - 1, at most 16."""
    mask = np.uint64((1 << int(high - low)) - 1)
    return ((hashes >> low) & mask).astype(np.uint16)


def _pairs(begins: Rows, counts: Rows) -> Iterator[tuple[Rows, Rows]]:
    """(i, place) for each place of begins[i] ... begins[i] + counts[i] - 1, some MOST_PAIRS at a time."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start] - counts[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + MOST_PAIRS, side="right")))
        part = counts[start:stop]
        askers = np.repeat(np.arange(start, stop), part)
        offsets = np.arange(len(askers)) - np.repeat(ends[start:stop] - part - before, part)
        yield askers, np.repeat(begins[start:stop], part) + offsets
        start = stop
