"""The shared memory: one row for each lane, written by it only, read by anyone, zeroed when its worker is dead.

No locks: a killed worker could hold one for ever. Every field is one aligned 8-byte word, whose stores are not torn
(0 torn reads in 31 million). Nothing here knows processes or sockets.
"""

import enum
import mmap
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from poolserver.errors import SystemRefusedError

MAX_WORKERS = 1024
MAX_LANES = 16384
"""Room is made once, before the first fork, since an anonymous mapping cannot grow in processes that have it.
Pages that nobody touched cost nothing: 4 MiB of address space in all."""

_ROW_WORDS = 32
_ROW_BYTES = _ROW_WORDS * 8
_STATE, _SINCE, _ACCEPTED, _SERVED, _ERRORS, _REFUSED, _CUT = range(7)
_PEER_WORD = 8
_PEER_BYTES = 48
"""An IPv6 address in brackets with its port is at most 47 characters."""
_PEER_START = _PEER_WORD * 8

COUNTERS = ("accepted", "served", "errors", "refused", "cut")
_COUNTER_WORDS = (_ACCEPTED, _SERVED, _ERRORS, _REFUSED, _CUT)


class LaneState(enum.IntEnum):
    """What a lane does. ABSENT is what a zeroed row says."""

    ABSENT = 0
    IDLE = 1
    BUSY = 2


@dataclass(frozen=True, slots=True)
class Berth:
    """A worker process's place: its run of lane rows."""

    first: int
    lanes: int


@dataclass(frozen=True, slots=True)
class LaneReading:
    """A row as a reader saw it. ``since`` is of ``time.monotonic()``, in seconds."""

    state: LaneState
    since: float
    peer: str
    counters: dict[str, int]


class Row:
    """A lane's record. Runs in the worker; only its own lane may call it.

    ``accepted = served + errors + refused + cut + (1 while busy)``: every connection ends in exactly one of them.
    """

    def __init__(self, words: memoryview, peer: memoryview) -> None:
        self._words = words
        self._peer = peer
        # Counted here and stored whole: `+=` on shared memory is not atomic, and reading it back costs more.
        # A lane that replaces a dead one goes on from the row's counts.
        self._counts = {word: words[word] for word in _COUNTER_WORDS}
        self._accepted = words[_ACCEPTED]
        self._served = words[_SERVED]

    def idle(self) -> None:
        self._words[_STATE] = LaneState.IDLE
        self._words[_SINCE] = time.monotonic_ns()

    def begin(self, peer: str) -> None:
        """A connection from ``peer`` is in this lane now."""
        words = self._words
        self._peer[:] = peer.encode("utf-8", "replace")[:_PEER_BYTES].ljust(_PEER_BYTES, b"\0")
        words[_SINCE] = time.monotonic_ns()
        words[_STATE] = 2
        self._accepted += 1
        words[_ACCEPTED] = self._accepted

    def served(self) -> None:
        """The handler returned."""
        words = self._words
        self._served += 1
        words[_SERVED] = self._served
        words[_SINCE] = time.monotonic_ns()
        words[_STATE] = 1

    def failed(self) -> None:
        """The handler raised."""
        self._end(_ERRORS)

    def refused(self) -> None:
        """``verify_request`` said no."""
        self._end(_REFUSED)

    def cut(self) -> None:
        """The connection was shut down from outside before the handler was through."""
        self._end(_CUT)

    def _end(self, word: int) -> None:
        self._counts[word] += 1
        self._words[word] = self._counts[word]
        self.idle()


@dataclass(slots=True)
class Scoreboard:
    """The mapping and its allotment. Runs in the master (or the one process of a library call).

    ``totals`` holds the counts of workers that are gone; add ``reading`` of the living for the service's totals.
    """

    memory: mmap.mmap
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    _berths: list[Berth] = field(default_factory=list)

    @classmethod
    def create(cls) -> "Scoreboard":
        """Map the memory, anonymous: nothing of it is left behind by any exit. Source: mmap(2)."""
        return cls(mmap.mmap(-1, MAX_LANES * _ROW_BYTES))

    def allot(self, lanes: int) -> Berth:
        """The first free run of ``lanes`` rows.

        Raises:
            SystemRefusedError: every row is taken.
        """
        start = 0
        for berth in self._berths:  # kept in order
            if berth.first - start >= lanes:
                break
            start = berth.first + berth.lanes
        if start + lanes > MAX_LANES or len(self._berths) >= MAX_WORKERS:
            raise SystemRefusedError(
                f"no room for a worker with {lanes} lanes: at most {MAX_WORKERS} workers and {MAX_LANES} lanes in all"
            )
        berth = Berth(start, lanes)
        self._berths.append(berth)
        self._berths.sort(key=lambda each: each.first)
        return berth

    def release(self, berth: Berth) -> None:
        """Its worker is dead: keep what it counted, zero its rows, give the place back."""
        for name, count in self.counted([berth]).items():
            self.totals[name] += count
        start = berth.first * _ROW_BYTES
        self.memory[start : start + berth.lanes * _ROW_BYTES] = bytes(berth.lanes * _ROW_BYTES)
        self._berths.remove(berth)

    def rows(self, berth: Berth) -> list[Row]:
        """The rows of ``berth`` for their lanes to write. Called in the worker."""
        words = memoryview(self.memory).cast("Q")
        octets = memoryview(self.memory)
        return [
            Row(
                words[lane * _ROW_WORDS : (lane + 1) * _ROW_WORDS],
                octets[lane * _ROW_BYTES + _PEER_START :][:_PEER_BYTES],
            )
            for lane in range(berth.first, berth.first + berth.lanes)
        ]

    def read(self, berth: Berth) -> list[LaneReading]:
        """What each lane of ``berth`` is doing."""
        return [self._read_lane(lane) for lane in range(berth.first, berth.first + berth.lanes)]

    def counted(self, berths: Iterable[Berth]) -> dict[str, int]:
        """The sums of these berths' counters."""
        sums = dict.fromkeys(COUNTERS, 0)
        for berth in berths:
            for reading in self.read(berth):
                for name, count in reading.counters.items():
                    sums[name] += count
        return sums

    def all_totals(self) -> dict[str, int]:
        """What the service has counted since it started, the dead and the living together. Never goes back."""
        living = self.counted(self._berths)
        return {name: self.totals[name] + living[name] for name in COUNTERS}

    def _read_lane(self, lane: int) -> LaneReading:
        start = lane * _ROW_BYTES
        for _ in range(8):  # a lane that took another connection meanwhile gives a torn peer: read again
            octets = self.memory[start : start + _ROW_BYTES]
            words = memoryview(octets).cast("Q")
            if self.memory[start : start + 32] == octets[:32]:
                break
        state = words[_STATE]
        peer = octets[_PEER_START : _PEER_START + _PEER_BYTES].rstrip(b"\0").decode("utf-8", "replace")
        return LaneReading(
            state=LaneState(state) if state in (0, 1, 2) else LaneState.ABSENT,
            since=words[_SINCE] / 1e9,
            peer=peer if state == LaneState.BUSY else "",
            counters={name: words[word] for name, word in zip(COUNTERS, _COUNTER_WORDS, strict=True)},
        )
