"""Which stretches of documents make a row. Everything here is a pure function of lengths, a seed and an epoch."""

import hashlib
from bisect import bisect_left, insort

import numpy as np

OPEN = 256  # rows that best-fit packing keeps open at a time: more waste less and take longer

Segments = list[tuple[int, int]]  # start in the shards, tokens


def shuffled(n: int, *key: int | str) -> np.ndarray:
    """The numbers below n in an order that the key decides: the same with every version of numpy, unlike its generators'."""
    begin = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    x = (np.arange(n, dtype=np.uint64) + np.uint64(begin)) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


class Cut:
    """Documents end to end, cut where a row is full; what does not fit goes on in the next row as a sequence of its own.

    Nothing is wasted but the rest of the last row.
    """

    def __init__(self, starts: np.ndarray, lengths: np.ndarray, row: int):
        self._starts, self._ends, self._row = starts, np.cumsum(lengths), row
        self._total = int(self._ends[-1])
        self.count = -(-self._total // row)

    def segments(self, index: int) -> Segments:
        low, high = index * self._row, min((index + 1) * self._row, self._total)
        first, last = (int(self._ends.searchsorted(place, "right")) for place in (low, high - 1))
        ends, starts = self._ends[first : last + 1].tolist(), self._starts[first : last + 1].tolist()
        begin = int(self._ends[first - 1]) if first else 0
        found = []
        for start, end in zip(starts, ends):
            at = max(begin, low)
            found.append((start + at - begin, min(end, high) - at))
            begin = end
        return found


class Whole:
    """No document is cut: each goes where the least room is left that suffices, among the rows that are open.

    Raises ValueError for a document longer than a row.
    """

    def __init__(self, starts: np.ndarray, lengths: np.ndarray, row: int):
        rows = _best_fit(lengths.tolist(), row)
        self._order = np.array([document for members in rows for document in members], np.int64)
        self._ends = np.cumsum([len(members) for members in rows])
        self._starts, self._lengths = starts, lengths
        self.count = len(rows)

    def segments(self, index: int) -> Segments:
        members = self._order[int(self._ends[index - 1]) if index else 0 : int(self._ends[index])]
        return list(zip(self._starts[members].tolist(), self._lengths[members].tolist()))


def _best_fit(lengths: list[int], row: int) -> list[list[int]]:
    if max(lengths) > row:
        raise ValueError(f"a document of {max(lengths)} tokens in rows of {row}")
    closed: list[list[int]] = []
    still: list[tuple[int, int]] = []  # room left and the row's number, in order of room
    for document, length in enumerate(lengths):
        place = bisect_left(still, (length, -1))
        if place < len(still):
            room, number = still.pop(place)
            closed[number].append(document)
        else:
            room, number = row, len(closed)
            closed.append([document])
        if room > length:
            insort(still, (room - length, number))
        if len(still) > OPEN:
            del still[0]  # the fullest
    return closed
