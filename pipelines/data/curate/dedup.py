"""Near duplicates among windows, by their perceptual hashes: exact, without comparing all with all.

Two hashes that differ in at most d bits agree in at least one of any d + 1 bands of bits (pigeonhole). So
only windows that share a band of the middle frame's hash are compared (multi-index hashing, Norouzi 2012).
Windows that show the same but begin at another moment of it count as different.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError

MOST_DISTANCE = 12
"""Bits: different videos begin to meet at 15, and few bits a band make the search slow."""
BITS = 64
"""Of a hash."""
MIDDLE = 1
"""The hash that is looked up: many videos begin and end in black."""
LEAST_BANDS = 4
"""So that a band fits 16 bits, which are sorted in linear time."""
BLOCK = 1024
"""Windows that are looked up, and compared with each other, together."""
MOST_PAIRS = 1 << 21
"""Pairs that are compared together."""

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]


def near_duplicates(
    ids: Sequence[str],
    corpora: Sequence[str],
    sources: Sequence[str],
    fingerprints: Hashes,
    distance: int,
    across: bool = False,
) -> dict[int, int]:
    """Rows to drop -> the kept row that each resembles.

    Rows are taken LONG before SHORT, then by id; one is dropped when an earlier kept one resembles it, and
    the earliest such is named. So the order in which rows are given changes nothing.

    Args:
        ids: of the windows, all different.
        corpora: `long` or `short`, of each.
        sources: of each window, the id of its video; windows of one video are no duplicates of each other.
        fingerprints: [n, 3]: the hashes of Scores.fingerprint, such as
            np.frombuffer(b"".join(fingerprints), "<u8").reshape(-1, 3).
        distance: bits at most in which each of the three hashes differs.
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
    places = _dropped(_Windows(fingerprints[order], owners, realms, distance))
    return {order[place]: order[first] for place, first in places.items()}


def _dropped(windows: "_Windows") -> dict[int, int]:
    """The same for rows that are in order."""
    kept = _Kept(windows)
    dropped: dict[int, int] = {}
    for start in range(0, len(windows), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(windows)))
        like = kept.first_like(rows)
        dropped |= dict(zip(rows[like >= 0].tolist(), like[like >= 0].tolist(), strict=True))
        rows = rows[like < 0]
        within = _greedy(windows, rows)
        dropped |= within
        kept.add(rows[[row not in within for row in rows.tolist()]])
    return dropped


def _greedy(windows: "_Windows", rows: Rows) -> dict[int, int]:
    """Near duplicates among a few rows, all compared with all."""
    first, second = np.triu_indices(len(rows), 1)
    alike = windows.alike(rows[first], rows[second])
    dropped: dict[int, int] = {}
    for a, b in zip(rows[first[alike]].tolist(), rows[second[alike]].tolist(), strict=True):
        if a not in dropped and b not in dropped:
            dropped[b] = a
    return dropped


class _Windows:
    """What is compared: hashes [n, 3], numbers of the videos [n], corpora [n] where they are kept apart."""

    def __init__(self, hashes: Hashes, owners: Rows, realms: Flags, distance: int) -> None:
        self.hashes, self.owners, self.realms, self.distance = hashes, owners, realms, distance
        self.middle = np.ascontiguousarray(hashes[:, MIDDLE])

    def __len__(self) -> int:
        return len(self.hashes)

    def alike(self, a: Rows, b: Rows) -> Flags:
        """Which of the pairs (a[i], b[i]) are near duplicates."""
        found = np.zeros(len(a), bool)
        near = np.flatnonzero(np.bitwise_count(self.middle[a] ^ self.middle[b]) <= self.distance)
        a, b = a[near], b[near]
        others = (self.owners[a] != self.owners[b]) & (self.realms[a] == self.realms[b])
        bits = np.bitwise_count(self.hashes[a] ^ self.hashes[b])
        found[near] = others & (bits <= self.distance).all(axis=1)
        return found

    def keys(self, rows: Rows) -> list[tuple[bytes, int, bool]]:
        """What two rows of one video share when nothing can tell them apart."""
        columns = (self.hashes[rows], self.owners[rows].tolist(), self.realms[rows].tolist())
        return [(hashes.tobytes(), owner, realm) for hashes, owner, realm in zip(*columns, strict=True)]


class _Kept:
    """The rows kept so far, in order; of equal ones of one video the first."""

    def __init__(self, windows: _Windows) -> None:
        self._windows = windows
        self._rows = np.zeros(0, np.int64)
        count = max(LEAST_BANDS, windows.distance + 1)
        edges = [np.uint64(i * BITS // count) for i in range(count + 1)]
        self._bands = list(itertools.pairwise(edges))
        self._sorted: list[tuple[NDArray[np.uint16], Rows]] = []
        self._keys: set[tuple[bytes, int, bool]] = set()

    def add(self, rows: Rows) -> None:
        """Keep rows, later in order than all before."""
        fresh = []
        for row, key in zip(rows.tolist(), self._windows.keys(rows), strict=True):
            if key not in self._keys:
                self._keys.add(key)
                fresh.append(row)
        self._rows = np.concatenate([self._rows, np.array(fresh, np.int64)])
        self._sorted = []
        for low, high in self._bands:
            values = _bits(self._windows.middle[self._rows], low, high)
            order = np.argsort(values, kind="stable")
            self._sorted.append((values[order], self._rows[order]))

    def first_like(self, rows: Rows) -> Rows:
        """The earliest kept row that each row resembles; -1 where there is none."""
        none = np.iinfo(np.int64).max
        like = np.full(len(rows), none)
        for (low, high), (values, kept) in zip(self._bands, self._sorted, strict=False):
            wanted = _bits(self._windows.middle[rows], low, high)
            firsts = np.searchsorted(values, wanted)
            counts = np.searchsorted(values, wanted, side="right") - firsts
            for asker, place in _pairs(firsts, counts):
                alike = self._windows.alike(rows[asker], kept[place])
                np.minimum.at(like, asker[alike], kept[place[alike]])
        return np.where(like == none, -1, like)


def _bits(hashes: Hashes, low: np.uint64, high: np.uint64) -> NDArray[np.uint16]:
    """Bits low ... high - 1, at most 16."""
    mask = np.uint64((1 << int(high - low)) - 1)
    return ((hashes >> low) & mask).astype(np.uint16)


def _pairs(firsts: Rows, counts: Rows) -> Iterator[tuple[Rows, Rows]]:
    """(i, place) for each place of firsts[i] ... firsts[i] + counts[i] - 1, some MOST_PAIRS at a time."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start] - counts[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + MOST_PAIRS, side="right")))
        part = counts[start:stop]
        askers = np.repeat(np.arange(start, stop), part)
        offsets = np.arange(len(askers)) - np.repeat(ends[start:stop] - part - before, part)
        yield askers, np.repeat(firsts[start:stop], part) + offsets
        start = stop
