"""Connections at once, by source and over all workers, in shared memory: who is in a lane, on its way, or parked.

Made before the first fork. No lock is held across processes, since a killed worker could leave it held for ever: each
word has one writer at a time, and the master clears what a dead worker held.
"""

import mmap
import sys
import threading
from collections import Counter
from collections.abc import Iterable

from poolserver.networks import Source
from poolserver.scoreboard import MAX_BERTHS, MAX_ROWS

TRANSITS = 32
"""Connections of one worker that are on their way to another at once, so far as they are counted."""

_WAYS = 8
_BUCKETS = 511
"""A prime: the remainder depends on all bits of a digest, of which some are always set."""

TRACKED = (_BUCKETS + 1) * _WAYS
"""Entries of a worker's table of parked sources: 64 KiB, of which pages that nobody touched cost nothing."""

_ROWS = MAX_ROWS
_WORKERS = MAX_ROWS + 1
_HAS_PARKED = MAX_ROWS + 2
_USED = MAX_ROWS + 3
_TRANSIT = _USED + MAX_BERTHS
_TABLES = _TRANSIT + MAX_BERTHS * TRANSITS
_TABLE_WORDS = 2 * TRACKED
_WORDS = _TABLES + MAX_BERTHS * _TABLE_WORDS


class Claims:
    """Every connection that is counted for a source has one claim: a lane's word, a transit word, or one in the table
    of its worker's parked.

    Exact: a source's connections are the words that hold its digest, counted at each admission by one C call over the
    rows in use, and what the tables of those workers say that have anybody parked. The digest is keyed, so that one
    word, or a place astride two words, looks like another source's with a chance of 1 in 2**56.

    Two lanes that count before either claims would both come in under the limit. Within a process ``lock`` forbids
    it: hold it from ``active`` to ``claim``. It is the process's own and dies with it. Between processes nothing
    does, so that a limit is overshot by at most one for each worker that races, at most workers - 1 in all. A claim
    that moves is given back first and made then, so that nobody is refused for being counted twice. A connection
    whose sender dies while it is on its way is not counted until it is received.

    ``_USED`` is raised before, and lowered after, what it stands for: a worker that is killed in between is cleared.

    Source: measured, 0.3 us over 32 lanes, 3 us over 1,024, 50 us over 16,384.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self.lock = threading.Lock()
        self._memory = memory
        self.words = self._words = memoryview(memory).cast("Q")
        """The first are the lanes': what ``claim`` and ``give_back`` write."""

    @classmethod
    def create(cls) -> "Claims":
        """Map the memory, anonymous. Runs before the fork."""
        return cls(mmap.mmap(-1, _WORDS * 8))

    @property
    def rows(self) -> int:
        """How many lane rows, from the first, may hold a claim."""
        return self._words[_ROWS]

    def use(self, rows: int, workers: int) -> None:
        """Count over the first ``rows`` and ``workers`` from now on. The master's: before it forks one into them."""
        self._words[_ROWS] = rows
        self._words[_WORKERS] = workers

    def active(self, source: Source) -> int:
        """How many connections ``source`` has in the whole pool. One that goes from a lane to the park meanwhile, or
        back, is found in both: lanes are counted before and after, and the lower count is right."""
        words, memory, digest = self._words, self._memory, source.digest
        count = memory[: words[_ROWS] << 3].count(digest)
        if words[_HAS_PARKED] and any(used := words[_USED : _USED + words[_WORKERS]].tolist()):
            parked = memory[_TRANSIT << 3 : (_TRANSIT + TRANSITS * len(used)) << 3].count(digest)
            parked += sum(self._parked_at(worker, source.number) for worker, some in enumerate(used) if some)
            count = parked + min(count, memory[: words[_ROWS] << 3].count(digest))
        return count

    def claim(self, lane: int, source: Source) -> None:
        """The lane serves ``source``. Only the lane itself may call it."""
        self._words[lane] = source.number

    def hold(self, lane: int, number: int) -> None:
        """The lane serves the source of this number, which was counted elsewhere. Only the lane itself may call it."""
        self._words[lane] = number

    def claimed(self, lane: int) -> int:
        """The number of the source that the lane serves; 0 when it serves nobody who is counted."""
        return self._words[lane]

    def give_back(self, lane: int) -> None:
        """The lane serves nobody. Only the lane itself may call it, or who replaces it."""
        self._words[lane] = 0

    def park(self, worker: int, number: int) -> bool:
        """Count one more parked connection of a source in this worker; hold ``lock``.

        False: there is no room, and it goes uncounted: permissive, as an attacker with thousands of sources gains
        nothing by it.
        """
        entry = self._entry(worker, number)
        if entry < 0:
            return False
        self._note_parked(worker)
        self._words[entry] = number
        self._words[entry + TRACKED] += 1
        return True

    def unpark(self, worker: int, number: int) -> None:
        """Take back what ``park`` counted; hold ``lock``."""
        entry = self._find(worker, number)
        self._words[entry + TRACKED] -= 1
        if not self._words[entry + TRACKED]:
            self._words[entry] = 0
        self._words[_USED + worker] -= 1

    def send(self, worker: int, number: int) -> int:
        """Count a connection that is on its way to another worker; its word's place, -1 when none is free.

        The receiver ends it with ``received``, once it counts the connection itself. Hold ``lock``.
        """
        first = _TRANSIT + worker * TRANSITS
        for word in range(first, first + TRANSITS):
            if not self._words[word]:
                self._note_parked(worker)
                self._words[word] = number
                return word - _TRANSIT
        return -1

    def received(self, place: int) -> None:
        """The receiver counts it now. Out of bounds, as a strange message may say, it means nothing."""
        if 0 <= place < MAX_BERTHS * TRANSITS:
            self._words[_TRANSIT + place] = 0

    def settle(self, worker: int, places: Iterable[int]) -> list[int]:
        """Those of the sender's ``places`` that are still on their way; hold ``lock``."""
        left = []
        for place in places:
            if self._words[_TRANSIT + place]:
                left.append(place)
            else:
                self._words[_USED + worker] -= 1
        return left

    def clear(self, first: int, count: int, worker: int) -> None:
        """Give back what a worker held. The master's, once the worker is dead."""
        self._memory[first * 8 : (first + count) * 8] = bytes(count * 8)
        if self._words[_USED + worker]:
            transit, table = _TRANSIT + worker * TRANSITS, _TABLES + worker * _TABLE_WORDS
            self._memory[transit * 8 : (transit + TRANSITS) * 8] = bytes(TRANSITS * 8)
            self._memory[table * 8 : (table + _TABLE_WORDS) * 8] = bytes(_TABLE_WORDS * 8)
            self._words[_USED + worker] = 0

    def standing(self) -> Counter[int]:
        """How many connections each source has, by its digest's number."""
        counts = Counter(self._words[: self.rows].tolist())
        for worker in range(self._words[_WORKERS]):
            if self._words[_USED + worker]:
                table = _TABLES + worker * _TABLE_WORDS
                numbers, parked = (self._words[start : start + TRACKED].tolist() for start in (table, table + TRACKED))
                counts.update(dict(zip(numbers, parked, strict=True)))
                transit = _TRANSIT + worker * TRANSITS
                counts.update(self._words[transit : transit + TRANSITS].tolist())
        del counts[0]
        return counts

    def _note_parked(self, worker: int) -> None:
        self._words[_USED + worker] += 1
        self._words[_HAS_PARKED] = 1  # for good: where nothing ever parks, nobody need look for it

    def _parked_at(self, worker: int, number: int) -> int:
        entry = self._find(worker, number)
        return self._words[entry + TRACKED] if entry >= 0 else 0

    def _find(self, worker: int, number: int) -> int:
        """The word of the source's entry in a worker's table; -1 when it has none."""
        start = (_TABLES + worker * _TABLE_WORDS + number % _BUCKETS * _WAYS) << 3
        return self._memory.find(self._octets(number), start, start + _WAYS * 8) >> 3

    def _entry(self, worker: int, number: int) -> int:
        """The same, a free one if need be."""
        entry = self._find(worker, number)
        if entry >= 0:
            return entry
        first = _TABLES + worker * _TABLE_WORDS + number % _BUCKETS * _WAYS
        return next((way for way in range(first, first + _WAYS) if not self._words[way]), -1)

    @staticmethod
    def _octets(number: int) -> bytes:
        return number.to_bytes(8, sys.byteorder)
