"""The shared memory: one row for each lane, written by it only, read by anyone, zeroed when its worker is dead.

No locks: a killed worker could hold one for ever. Every field is one aligned 8-byte word, whose stores are not torn
(0 torn reads in 31 million). Nothing here knows processes or sockets.
"""

import enum
import mmap
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from poolserver.errors import SystemRefusedError

MAX_WORKERS = 1024
MAX_LANES = 16384
"""Room is made once, before the first fork, since an anonymous mapping cannot grow in processes that have it.
Pages that nobody touched cost nothing: 10 MiB of address space in all."""

_ROW_WORDS = 80
_ROW_BYTES = _ROW_WORDS * 8
_HALF_WORDS = 40
"""A row has two halves: its lane's, and one that in the first row of a worker is its crew's, in the rest unused."""
_STATE, _SINCE, _ACCEPTED, _FIRST_OUTCOME = range(4)
_NEW, _BETWEEN = range(2)
_OLDEST, _STRESS = range(36, 38)
"""Words of the crew's half; its counters stand where a lane's do."""

_PEER_WORD = 34
_PEER_BYTES = 48
"""An IPv6 address in brackets with its port is at most 47 characters."""
_PEER_START = _PEER_WORD * 8


class Outcome(enum.IntEnum):
    """How a connection ended. Each ends in exactly one, so that ``accepted`` is their sum and what is open.

    The value is the place of its counter in a row. ``WOULD_…`` are counted beside the outcome, in a dry run.
    """

    SERVED = _FIRST_OUTCOME
    ERRORS = enum.auto()  # the handler raised
    CUT = enum.auto()  # shut down at a stop, before the handler was through
    REFUSED_VERIFY = enum.auto()  # verify_request said no
    REFUSED_RESET = enum.auto()  # the peer had reset it before a handler was called
    REFUSED_PER_SOURCE = enum.auto()
    REFUSED_RATE = enum.auto()
    REFUSED_DENIED = enum.auto()
    REFUSED_BANNED = enum.auto()
    TIMEOUT_FIRST_BYTE = enum.auto()
    TIMEOUT_IDLE = enum.auto()
    TIMEOUT_HANDLER = enum.auto()
    TIMEOUT_HEAD = enum.auto()
    TIMEOUT_KEEP_ALIVE = enum.auto()
    REFUSED_MAX_HEAD = enum.auto()
    REFUSED_MAX_PARKED = enum.auto()
    REFUSED_PROXY = enum.auto()  # no valid PROXY header, or from a peer that is not trusted with one
    REFUSED_TLS = enum.auto()  # no TLS, or none that could be agreed upon
    TIMEOUT_HANDSHAKE = enum.auto()
    REFUSED_OVERSIZED = enum.auto()  # a datagram longer than the server class reads
    WOULD_PER_SOURCE = enum.auto()
    WOULD_RATE = enum.auto()
    WOULD_DENIED = enum.auto()
    WOULD_BANNED = enum.auto()


MAX_COUNT = 2**53
"""No honest count gets here, and a JSON reader's numbers end here: a row that says more was scribbled over."""

COUNTERS: Mapping[str, int] = {"accepted": _ACCEPTED} | {outcome.name.lower(): outcome for outcome in Outcome}
"""Every counter's name and its word."""


class LaneState(enum.IntEnum):
    """What a lane does. ABSENT is what a zeroed row says."""

    ABSENT = 0
    IDLE = 1
    BUSY = 2
    HUNG = 3  # past its handler deadline and the grace: written by its worker's watcher, when the lane cannot


@dataclass(frozen=True, slots=True)
class Berth:
    """A worker process's place: its run of lane rows, and its ordinal among the workers, the lowest that is free."""

    first: int
    lanes: int
    ordinal: int = 0


@dataclass(frozen=True, slots=True)
class LaneReading:
    """A row as a reader saw it. ``since`` is of ``time.monotonic()``, in seconds."""

    state: LaneState
    since: float
    peer: str
    octets: bytes = field(repr=False)

    @property
    def counters(self) -> dict[str, int]:
        """What the lane has counted."""
        return _sums(self.octets)


@dataclass(frozen=True, slots=True)
class CrewReading:
    """What is parked in a worker: ``new`` have no handler yet, ``between`` wait for their next request; ``oldest`` is
    of ``time.monotonic()``, in seconds, 0 for none. ``stress``: its waits are cut short."""

    new: int
    between: int
    oldest: float
    stress: bool


class CrewRow:
    """What belongs to no lane. Runs in the worker: its park's lock makes it one writer."""

    def __init__(self, board: memoryview, row: int) -> None:
        self._board = board
        start = row * _ROW_WORDS + _HALF_WORDS
        self._words = board[start : start + _HALF_WORDS]

    def parked_by_others(self, rows: int) -> int:
        """How many are parked in the other workers, of which ``rows`` are in use."""
        words = (_NEW, _BETWEEN)
        board, end = self._board, rows * _ROW_WORDS
        return sum(sum(board[_HALF_WORDS + word : end : _ROW_WORDS]) - self._words[word] for word in words)

    def idle_lanes(self, rows: int) -> int:
        """How many lanes of the pool have time, of which ``rows`` are in use."""
        return self._board[: rows * _ROW_WORDS : _ROW_WORDS].tolist().count(LaneState.IDLE)

    def count(self, outcome: int) -> None:
        """One more connection ended so, in no lane's hands."""
        self._words[outcome] += 1

    def parked(self, new: int, between: int) -> None:
        self._words[_NEW] = new
        self._words[_BETWEEN] = between

    def oldest(self, since_ns: int, *, is_stressed: bool) -> None:
        """For the watcher, at each of its looks."""
        self._words[_OLDEST] = since_ns
        self._words[_STRESS] = is_stressed


class Row:
    """A lane's record. Runs in the worker; only its own lane may call it, but for ``hung``."""

    def __init__(self, number: int, words: memoryview, peer: memoryview) -> None:
        self.number = number
        self._words = words
        self._peer = peer
        # Counted here and stored whole: `+=` on shared memory is not atomic, and reading it back costs more.
        # A lane that replaces a dead one goes on from the row's counts.
        self._counts = list(words[:_PEER_WORD])

    def idle(self) -> None:
        """Waiting for a connection."""
        self._words[_STATE] = LaneState.IDLE
        self._words[_SINCE] = time.monotonic_ns()

    def absent(self) -> None:
        """Not there for new connections any more."""
        self._words[_STATE] = LaneState.ABSENT

    def begin(self, peer: str) -> None:
        """A connection from ``peer`` is in this lane now."""
        words, counts = self._words, self._counts
        self._peer[:] = peer.encode("utf-8", "replace")[:_PEER_BYTES].ljust(_PEER_BYTES, b"\0")
        words[_SINCE] = time.monotonic_ns()
        words[_STATE] = 2
        counts[_ACCEPTED] += 1
        words[_ACCEPTED] = counts[_ACCEPTED]

    def resume(self, peer: str) -> None:
        """A connection that was counted before, and waited off the lanes, is in this one now."""
        self._peer[:] = peer.encode("utf-8", "replace")[:_PEER_BYTES].ljust(_PEER_BYTES, b"\0")
        self._words[_SINCE] = time.monotonic_ns()
        self._words[_STATE] = 2

    def end(self, outcome: int) -> None:
        """The connection is over, and how."""
        words, counts = self._words, self._counts
        counts[outcome] += 1
        words[outcome] = counts[outcome]
        words[_SINCE] = time.monotonic_ns()
        words[_STATE] = 1

    def count(self, outcome: int) -> None:
        """One more, without an end: what a dry run would have refused."""
        counts = self._counts
        counts[outcome] += 1
        self._words[outcome] = counts[outcome]

    def accept(self) -> None:
        """A connection was accepted, and goes to no handler yet."""
        self.count(_ACCEPTED)

    def refuse(self, outcome: int) -> None:
        """A connection was accepted and turned away at the door."""
        self.count(_ACCEPTED)
        self.count(outcome)

    def hung(self) -> None:
        """The lane does not come back."""
        self._words[_STATE] = LaneState.HUNG


@dataclass(frozen=True, slots=True)
class Quarters:
    """What one worker writes: a row for each lane, the crew's own; and its ordinal."""

    lanes: list[Row]
    crew: CrewRow
    ordinal: int


@dataclass(slots=True)
class Scoreboard:
    """The mapping and its allotment. Runs in the master (or the one process of a library call).

    ``totals`` holds the counts of workers that are gone; add ``reading`` of the living for the service's totals.
    """

    memory: mmap.mmap
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    _berths: list[Berth] = field(default_factory=list)
    _told: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

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
        taken = {berth.ordinal for berth in self._berths}
        berth = Berth(start, lanes, next(number for number in range(MAX_WORKERS) if number not in taken))
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

    @property
    def rows_in_use(self) -> int:
        """How many lane rows, from the first, may belong to a worker."""
        return max((berth.first + berth.lanes for berth in self._berths), default=0)

    @property
    def workers_in_use(self) -> int:
        """How many ordinals, from the first, may belong to a worker."""
        return max((berth.ordinal + 1 for berth in self._berths), default=0)

    def quarters(self, berth: Berth) -> Quarters:
        """What a worker writes. Called in the worker."""
        row = CrewRow(memoryview(self.memory).cast("Q"), berth.first)
        return Quarters(self.rows(berth), row, berth.ordinal)

    def read_crew(self, berth: Berth) -> CrewReading:
        """What is parked in the worker of ``berth``."""
        start = berth.first * _ROW_WORDS + _HALF_WORDS
        words = memoryview(self.memory).cast("Q")[start : start + _HALF_WORDS]
        return CrewReading(words[_NEW], words[_BETWEEN], words[_OLDEST] / 1e9, bool(words[_STRESS]))

    def rows(self, berth: Berth) -> list[Row]:
        """The rows of ``berth`` for their lanes to write. Called in the worker."""
        words = memoryview(self.memory).cast("Q")
        octets = memoryview(self.memory)
        return [
            Row(
                lane,
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
        places = ((each.first * _ROW_BYTES, each.lanes * _ROW_BYTES) for each in berths)
        return _sums(b"".join(self.memory[start : start + size] for start, size in places))

    def all_totals(self) -> dict[str, int]:
        """What the service has counted since it started, the dead and the living together.

        Never goes back, also where a worker scribbles over its rows.
        """
        living = self.counted(self._berths)
        self._told = {name: max(self._told[name], self.totals[name] + living[name]) for name in COUNTERS}
        return dict(self._told)

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
            state=LaneState(state) if state <= LaneState.HUNG else LaneState.ABSENT,
            since=words[_SINCE] / 1e9,
            peer=peer if state in (LaneState.BUSY, LaneState.HUNG) else "",
            octets=octets,
        )


def _sums(rows: bytes) -> dict[str, int]:
    """Each counter's sum over these rows. Source: measured, 0.6 ms over 1,024 rows."""
    words = memoryview(rows).cast("Q")
    lanes, crews = words, words[_HALF_WORDS:]
    columns = ((name, [*lanes[word::_ROW_WORDS], *crews[word::_ROW_WORDS]]) for name, word in COUNTERS.items())
    return {name: sum(column) if max(column, default=0) <= MAX_COUNT else _honest(column) for name, column in columns}


def _honest(column: Iterable[int]) -> int:
    return sum(count for count in column if count <= MAX_COUNT)
