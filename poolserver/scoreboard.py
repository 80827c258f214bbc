"""The shared memory: one row for each lane, written by it only, read by anyone, zeroed when its worker is dead.

No locks: a killed worker could hold one for ever. Every field is one aligned 8-byte word, whose stores are not torn
(0 torn reads in 31 million). Nothing here knows processes or sockets.
"""

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from poolserver.crowds import Crowds
from poolserver.errors import SystemRefusedError
from poolserver.rows import (
    BETWEEN,
    COUNTERS,
    DEADLINE,
    DURATION_SUM,
    DURATIONS,
    HALF_WORDS,
    LEFT,
    MAX_COUNT,
    NEW,
    OLDEST,
    PEER_BYTES,
    PEER_START,
    ROW_BYTES,
    ROW_WORDS,
    SIGN,
    SINCE,
    STATE,
    STRESS,
    CrewRow,
    LaneState,
    Quarters,
    Row,
    read_peer,
)

_DURATION_WORDS = (*DURATIONS, DURATION_SUM)

MAX_WORKERS = 1024
MAX_LANES = 16384
"""What may be configured."""

MAX_BERTHS = 2 * MAX_WORKERS
MAX_ROWS = 2 * MAX_LANES
"""Room for each worker and for one that leaves while it is there already. It is made once, before the first fork,
since an anonymous mapping cannot grow in processes that have it. Pages that nobody touched cost nothing: 24 MiB of
address space in all."""


@dataclass(frozen=True, slots=True)
class Berth:
    """A worker process's place: its run of lane rows, and its ordinal among the workers, the lowest that is free."""

    first: int
    lanes: int
    ordinal: int = 0


@dataclass(frozen=True, slots=True)
class LaneReading:
    """A row as a reader saw it. ``since`` and ``deadline`` are of ``time.monotonic()``, in seconds; a ``deadline`` that
    is not later than ``since`` was an earlier connection's."""

    state: LaneState
    since: float
    deadline: float
    peer: str
    octets: bytes = field(repr=False)
    is_in_crowd: bool = False
    """Its connection is counted with those parked in its worker."""

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


@dataclass(slots=True)
class Scoreboard:
    """The mapping and its allotment. Runs in the master (or the one process of a library call).

    ``totals`` holds the counts of workers that are gone; add ``reading`` of the living for the service's totals.
    """

    memory: mmap.mmap
    crowds: Crowds = field(default_factory=lambda: Crowds.create(MAX_BERTHS))
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    never_accepted: int = -1
    """Clients that were queued when the last worker left at the service's end; -1: nobody has told."""
    _berths: list[Berth] = field(default_factory=list)
    _told: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    _took: list[int] = field(default_factory=lambda: [0] * len(_DURATION_WORDS))
    _took_told: list[int] = field(default_factory=lambda: [0] * len(_DURATION_WORDS))

    @classmethod
    def create(cls) -> "Scoreboard":
        """Map the memory, anonymous: nothing of it is left behind by any exit. Source: mmap(2)."""
        return cls(mmap.mmap(-1, MAX_ROWS * ROW_BYTES))

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
        if start + lanes > MAX_ROWS or len(self._berths) >= MAX_BERTHS:
            raise SystemRefusedError(
                f"no room for a worker with {lanes} lanes beside those that leave: at most {MAX_BERTHS} workers and"
                f" {MAX_ROWS} lanes in all"
            )
        taken = {berth.ordinal for berth in self._berths}
        berth = Berth(start, lanes, next(number for number in range(MAX_BERTHS) if number not in taken))
        self._berths.append(berth)
        self._berths.sort(key=lambda each: each.first)
        return berth

    def release(self, berth: Berth) -> None:
        """Its worker is dead: keep what it counted, zero its rows, give the place back."""
        for name, count in self.counted([berth]).items():
            self.totals[name] += count
        self._took = [dead + own for dead, own in zip(self._took, self._durations([berth]), strict=True)]
        if left := self._crew_words(berth)[LEFT]:  # the least was told last, since nobody was let in any more
            self.never_accepted = min(left - 1, self.never_accepted if self.never_accepted >= 0 else left)
        start = berth.first * ROW_BYTES
        self.memory[start : start + berth.lanes * ROW_BYTES] = bytes(berth.lanes * ROW_BYTES)
        self.crowds.clear(berth.ordinal)
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
        return Quarters(self.rows(berth), row, berth.ordinal, self.crowds.of(berth.ordinal))

    def read_crew(self, berth: Berth) -> CrewReading:
        """What is parked in the worker of ``berth``. Regulars count there while a lane has them, too."""
        words = self._crew_words(berth)
        in_lanes = sum(each.is_in_crowd for each in self.read(berth))
        between = max(0, words[BETWEEN] - in_lanes)
        return CrewReading(words[NEW], between, words[OLDEST] / 1e9, bool(words[STRESS]))

    def last_sign(self, berth: Berth) -> float:
        """When its watcher last gave a sign of life, in monotonic seconds; 0: not yet."""
        return self._crew_words(berth)[SIGN] / 1e9

    def has_hung_lane(self, berth: Berth) -> bool:
        """Whether a lane of it does not come back."""
        states = memoryview(self.memory).cast("Q")[STATE + berth.first * ROW_WORDS :: ROW_WORDS][: berth.lanes]
        return LaneState.HUNG in states.tolist()

    def _crew_words(self, berth: Berth) -> memoryview:
        start = berth.first * ROW_WORDS + HALF_WORDS
        return memoryview(self.memory).cast("Q")[start : start + HALF_WORDS]

    def rows(self, berth: Berth) -> list[Row]:
        """The rows of ``berth`` for their lanes to write. Called in the worker."""
        words = memoryview(self.memory).cast("Q")
        octets = memoryview(self.memory)
        return [
            Row(
                lane,
                words[lane * ROW_WORDS : (lane + 1) * ROW_WORDS],
                octets[lane * ROW_BYTES + PEER_START :][:PEER_BYTES],
            )
            for lane in range(berth.first, berth.first + berth.lanes)
        ]

    def read(self, berth: Berth) -> list[LaneReading]:
        """What each lane of ``berth`` is doing."""
        return [self._read_lane(lane) for lane in range(berth.first, berth.first + berth.lanes)]

    def counted(self, berths: Iterable[Berth]) -> dict[str, int]:
        """The sums of these berths' counters."""
        return _sums(self._octets(berths))

    def all_totals(self) -> dict[str, int]:
        """What the service has counted since it started, the dead and the living together.

        Never goes back, also where a worker scribbles over its rows.
        """
        living = self.counted(self._berths)
        self._told = {name: max(self._told[name], self.totals[name] + living[name]) for name in COUNTERS}
        return dict(self._told)

    def add(self, totals: Mapping[str, int], durations: Sequence[int]) -> None:
        """Count what another master's workers have counted, as of those that are gone. Of another version's counters,
        those that we have."""
        for name in COUNTERS:
            self.totals[name] += totals.get(name, 0)
        if len(durations) == len(self._took):
            self._took = [own + more for own, more in zip(self._took, durations, strict=True)]

    def durations(self) -> list[int]:
        """How many handlers took how long since the service started, by the bounds of ``rows.DURATION_BOUNDS``; and the
        sum in microseconds. Never goes back either."""
        living = self._durations(self._berths)
        now = [dead + own for dead, own in zip(self._took, living, strict=True)]
        self._took_told = [max(pair) for pair in zip(self._took_told, now, strict=True)]
        return list(self._took_told)

    def _durations(self, berths: Iterable[Berth]) -> list[int]:
        words = memoryview(self._octets(berths)).cast("Q")
        return [_honest(words[word::ROW_WORDS].tolist()) for word in _DURATION_WORDS]

    def _octets(self, berths: Iterable[Berth]) -> bytes:
        places = ((each.first * ROW_BYTES, each.lanes * ROW_BYTES) for each in berths)
        return b"".join(self.memory[start : start + size] for start, size in places)

    def _read_lane(self, lane: int) -> LaneReading:
        start = lane * ROW_BYTES
        for _ in range(8):  # a lane that took another connection meanwhile gives a torn peer: read again
            octets = self.memory[start : start + ROW_BYTES]
            words = memoryview(octets).cast("Q")
            if self.memory[start : start + 32] == octets[:32]:
                break
        state = words[STATE]
        peer, is_in_crowd = read_peer(octets[PEER_START : PEER_START + PEER_BYTES])
        is_busy = state in (LaneState.BUSY, LaneState.HUNG)
        return LaneReading(
            state=LaneState(state) if state <= LaneState.HUNG else LaneState.ABSENT,
            since=words[SINCE] / 1e9,
            deadline=words[DEADLINE] / 1e9,
            peer=peer if is_busy else "",
            octets=octets,
            is_in_crowd=is_in_crowd and is_busy,
        )


def _sums(rows: bytes) -> dict[str, int]:
    """Each counter's sum over these rows. Source: measured, 0.6 ms over 1,024 rows."""
    words = memoryview(rows).cast("Q")
    lanes, crews = words, words[HALF_WORDS:]
    columns = ((name, [*lanes[word::ROW_WORDS], *crews[word::ROW_WORDS]]) for name, word in COUNTERS.items())
    return {name: _honest(column) for name, column in columns}


def _honest(column: Sequence[int]) -> int:
    if max(column, default=0) <= MAX_COUNT:
        return sum(column)
    return sum(count for count in column if count <= MAX_COUNT)
