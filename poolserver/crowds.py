"""Who is parked in each worker, by host, in shared memory: for status to show, whether or not limits count anybody.

Made before the first fork. Each worker writes its own places and nobody else's; the master reads them all, and clears
those of the dead. No locks: what is read while it is written is out by one, or by a host.
"""

import mmap
from collections import Counter
from heapq import nlargest

PLACES = 1023
"""Hosts of one worker that are told at once; beyond them those with most connections are."""

PLACE_BYTES = 64
"""A count, and a host as text: with its zone an IPv6 address has 55 characters at most."""

_WORDS = PLACE_BYTES // 8
_TEXT_BYTES = PLACE_BYTES - 8
_BERTH_BYTES = (PLACES + 1) * PLACE_BYTES
_LARGEST = 16
"""So many of the largest are sure to be told, whoever came first: more than status shows."""


class Crowds:
    """All workers'. Source: pages that nobody touched cost nothing; 64 KiB for a worker at the most."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._words = memoryview(memory).cast("Q")

    @classmethod
    def create(cls, workers: int) -> "Crowds":
        """Map the memory, anonymous, for so many workers."""
        return cls(mmap.mmap(-1, workers * _BERTH_BYTES))

    def of(self, worker: int) -> "Crowd":
        """What a worker writes. Called in the worker."""
        start = worker * _BERTH_BYTES
        return Crowd(memoryview(self._memory)[start : start + _BERTH_BYTES])

    def read(self, worker: int) -> Counter[str]:
        """How many of each host are parked in a worker."""
        start = worker * _BERTH_BYTES // 8
        used = min(self._words[start], PLACES)
        found: Counter[str] = Counter()
        if not used:
            return found
        octets = self._memory[start * 8 + PLACE_BYTES : start * 8 + (used + 1) * PLACE_BYTES]
        counts = memoryview(octets).cast("Q")[::_WORDS].tolist()
        for place, count in enumerate(counts):
            if 0 < count <= PLACES * PLACE_BYTES:  # what a worker scribbled is no count
                text = octets[place * PLACE_BYTES + 8 : (place + 1) * PLACE_BYTES]
                found[text.rstrip(b"\0").decode("utf-8", "replace")] += count
        return found

    def clear(self, worker: int) -> None:
        """Its worker is dead. The master's."""
        start = worker * _BERTH_BYTES
        size = (min(self._words[start // 8], PLACES) + 1) * PLACE_BYTES
        self._memory[start : start + size] = bytes(size)


class Crowd:
    """One worker's. Its park's lock makes it one writer."""

    def __init__(self, octets: memoryview) -> None:
        self._octets = octets
        self._words = octets.cast("Q")
        self._counts: dict[str, int] = {}
        self._places: dict[str, int] = {}
        self._free: list[int] = []
        self._has_untold = False

    def come(self, address: object) -> None:
        """One more of this address is parked."""
        host = _host(address)
        count = self._counts.get(host, 0) + 1
        self._counts[host] = count
        place = self._places.get(host) or self._place(host)
        if place:
            self._words[place * _WORDS] = count
        else:
            self._has_untold = True

    def leave(self, address: object) -> None:
        """One less."""
        host = _host(address)
        count = self._counts[host] - 1
        if count:
            self._counts[host] = count
        else:
            del self._counts[host]
        place = self._places.get(host)
        if place:
            self._words[place * _WORDS] = count
            if not count:
                self._free.append(self._places.pop(host))

    def settle(self) -> None:
        """Now and then: where not all can be told, see that the largest are."""
        if not self._has_untold:
            return
        self._has_untold = False
        largest = nlargest(_LARGEST, self._counts, key=self._counts.__getitem__)
        for host in largest:
            if host not in self._places:
                smallest = min(self._places, key=self._counts.__getitem__)
                place = self._places.pop(smallest)
                self._words[place * _WORDS] = 0
                self._free.append(place)
                self._words[self._place(host) * _WORDS] = self._counts[host]

    def _place(self, host: str) -> int:
        """A free place, with the host's name; 0, which holds how many were ever used, if there is none."""
        if self._free:
            place = self._free.pop()
        elif self._words[0] < PLACES:
            self._words[0] += 1
            place = self._words[0]
        else:
            return 0
        self._places[host] = place
        start = place * PLACE_BYTES + 8
        self._octets[start : start + _TEXT_BYTES] = host.encode("utf-8", "replace")[:_TEXT_BYTES].ljust(
            _TEXT_BYTES, b"\0"
        )
        return place


def _host(address: object) -> str:
    """As limits know it: without its port, and a Unix peer without its pid."""
    host = address[0] if isinstance(address, tuple) and address else ""
    return host.partition(",")[0] if isinstance(host, str) else ""
