"""The rows of the scoreboard as their writers see them: what a word means, and how it is written.

Every field is one aligned 8-byte word, whose stores are not torn (0 torn reads in 31 million), and has one writer.
"""

import bisect
import enum
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass

from poolserver.crowds import Crowd

HALF_WORDS = 40
ROW_WORDS = 96
ROW_BYTES = ROW_WORDS * 8
"""A row has two halves: its lane's, and one that in the first row of a worker is its crew's, in the rest unused. What
follows is how long the lane's handlers took."""
STATE, SINCE, _ACCEPTED, _FIRST_OUTCOME = range(4)
NEW, BETWEEN = range(2)
EXCESS = 8
"""By so many parked connections workers may differ, however few there are."""

HELD_NS = 250_000_000
"""A lane that has had a connection for longer may have it for long."""
LEAVING, OLDEST, STRESS, SIGN, LEFT = range(35, 40)
"""Words of the crew's half; its counters stand where a lane's do."""

DEADLINE = 33
"""Word of a lane's half: until when its connection may be in the handler, in monotonic nanoseconds."""
_PEER_WORD = 34
PEER_BYTES = 48
"""An IPv6 address in brackets with its port is at most 47 characters."""
PEER_START = _PEER_WORD * 8
_REGULAR = b"\1"
"""Last octet of a peer that the crowd of its worker's park counts, too."""


DURATION_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0)
"""Seconds: durations are counted by the least of these that they do not exceed, or as longer than all."""

DURATIONS = range(2 * HALF_WORDS, 2 * HALF_WORDS + len(DURATION_BOUNDS) + 1)
DURATION_SUM = DURATIONS.stop
"""Words: a count for each bound and one for what is longer; and the sum, in microseconds."""

_BOUNDS_NS = tuple(int(bound * 1e9) for bound in DURATION_BOUNDS)
_SHORT_NS = _BOUNDS_NS[0]

now_ns = time.monotonic_ns

_write_peer = struct.Struct(f"{PEER_BYTES}s").pack_into
"""Cuts what is too long and fills up what is short, in one call."""


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
    REFUSED_DESCRIPTORS = enum.auto()  # parked, had sent nothing whole, and a newcomer needed its descriptor
    WOULD_PER_SOURCE = enum.auto()
    WOULD_RATE = enum.auto()
    WOULD_DENIED = enum.auto()
    WOULD_BANNED = enum.auto()

    @property
    def is_refusal(self) -> bool:
        """Whether it was turned away; a conversation, between two exchanges."""
        return self.name.startswith("REFUSED_")


_WITHOUT_HANDLER = frozenset({Outcome.REFUSED_VERIFY, Outcome.REFUSED_RESET, Outcome.TIMEOUT_FIRST_BYTE})

_FAR = 1e9
"""Seconds of the monotonic clock, 30 years of them: a deadline is no later."""

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


def regular(peer: str) -> bytes:
    """For ``Row.go_on``: a peer whose connection stays entered in the park while a lane has it."""
    return peer.encode("utf-8", "replace")[: PEER_BYTES - 1].ljust(PEER_BYTES - 1, b"\0") + _REGULAR


def read_peer(octets: bytes) -> tuple[str, bool]:
    """A row's peer, and whether it is a ``regular``."""
    return octets.rstrip(b"\0\1").decode("utf-8", "replace"), octets.endswith(_REGULAR)


class CrewRow:
    """What belongs to no lane. Runs in the worker: its park's lock makes it one writer."""

    def __init__(self, board: memoryview, row: int) -> None:
        self._board = board
        start = row * ROW_WORDS + HALF_WORDS
        self._words = board[start : start + HALF_WORDS]

    def parked_by_others(self, rows: int) -> int:
        """How many are parked in the other workers, of which ``rows`` are in use."""
        words = (NEW, BETWEEN)
        board, end = self._board, rows * ROW_WORDS
        return sum(sum(board[HALF_WORDS + word : end : ROW_WORDS]) - self._words[word] for word in words)

    def lanes(self, rows: int) -> tuple[int, int]:
        """How many lanes of the pool, of which ``rows`` are in use, are busy, and how many have time. Those of workers
        that leave are no part of it."""
        board, end = self._board, rows * ROW_WORDS
        states = board[:end:ROW_WORDS].tolist()
        for row, count in enumerate(board[HALF_WORDS + LEAVING : end : ROW_WORDS].tolist()):
            if 0 < count <= rows:
                states[row : row + count] = [LaneState.ABSENT] * count
        return states.count(LaneState.BUSY) + states.count(LaneState.HUNG), states.count(LaneState.IDLE)

    def has_too_many(self, rows: int, lanes: int) -> bool:
        """Whether this worker, of so many lanes, has far more than its share of what is parked, and any other is not
        held."""
        own = self._words[NEW] + self._words[BETWEEN]
        share = (own + self.parked_by_others(rows)) * lanes / max(sum(self.lanes(rows)), lanes)
        return own > 1.5 * share + EXCESS and self._able(rows) > lanes

    def _able(self, rows: int) -> int:
        """How many lanes of the pool have time, or soon will."""
        end, long_ago = rows * ROW_WORDS, now_ns() - HELD_NS
        lanes = zip(self._board[:end:ROW_WORDS], self._board[SINCE:end:ROW_WORDS], strict=True)
        return sum(state == 1 or (state == 2 and since > long_ago) for state, since in lanes)

    def leave(self, lanes: int) -> None:
        """This worker, of so many lanes, is to leave."""
        self._words[LEAVING] = lanes

    def count(self, outcome: int) -> None:
        """One more connection ended so, in no lane's hands."""
        self._words[outcome] += 1

    def parked(self, kind: int, count: int) -> None:
        """So many of that kind, ``NEW`` or ``BETWEEN``, are parked."""
        self._words[kind] = count

    def oldest(self, since_ns: int, *, is_stressed: bool) -> None:
        """For the watcher, at each of its looks."""
        self._words[OLDEST] = since_ns
        self._words[STRESS] = is_stressed

    def sign(self) -> None:
        """A sign of life, from the watcher."""
        self._words[SIGN] = time.monotonic_ns()

    def left(self, queued: int) -> None:
        """So many clients were in the accept queues when this worker closed its copies at the service's end."""
        self._words[LEFT] = queued + 1


class Row:
    """A lane's record. Runs in the worker; only its own lane may call it, but for ``hung``."""

    def __init__(self, number: int, words: memoryview, peer: memoryview) -> None:
        self.number = number
        self._words = words
        self._peer = peer
        # Counted here and stored whole: `+=` on shared memory is not atomic, and reading it back costs more.
        # A lane that replaces a dead one goes on from the row's counts.
        self._counts = list(words[:_PEER_WORD])
        self._durations = words[DURATIONS.start : DURATION_SUM]
        self._took = list(self._durations)
        self._took_us = words[DURATION_SUM]
        self.began_ns = 0
        """When the connection that it has, or had last, came to it; monotonic."""

    def idle(self) -> None:
        """Waiting for a connection."""
        self._words[STATE] = LaneState.IDLE
        self._words[SINCE] = time.monotonic_ns()

    def absent(self) -> None:
        """Not there for new connections any more."""
        self._words[STATE] = LaneState.ABSENT

    def begin(self, peer: str) -> None:
        """A connection from ``peer`` is in this lane now."""
        words, counts = self._words, self._counts
        _write_peer(self._peer, 0, peer.encode("utf-8", "replace"))
        self.began_ns = words[SINCE] = time.monotonic_ns()
        words[STATE] = 2
        counts[_ACCEPTED] = words[_ACCEPTED] = counts[_ACCEPTED] + 1

    def resume(self, peer: str) -> None:
        """A connection that was counted before, and waited off the lanes, is in this one now."""
        _write_peer(self._peer, 0, peer.encode("utf-8", "replace"))
        self.began_ns = self._words[SINCE] = time.monotonic_ns()
        self._words[STATE] = 2

    def go_on(self, peer: bytes) -> None:
        """As ``resume``, for a ``regular``."""
        words = self._words
        self._peer[:] = peer
        self.began_ns = words[SINCE] = now_ns()
        words[STATE] = 2

    def keep(self) -> None:
        """What ``go_on`` began with is no ``regular`` any more."""
        self._peer[-1] = 0

    def pause(self, now: int) -> None:
        """As ``idle``, since so many monotonic nanoseconds."""
        words = self._words
        words[STATE] = 1
        words[SINCE] = now

    def ends_by(self, deadline: float) -> None:
        """The connection's handler deadline, in monotonic seconds; one that is infinite is none."""
        self._words[DEADLINE] = int(max(0.0, min(deadline, _FAR)) * 1e9)

    def end(self, outcome: int) -> None:
        """The connection is over, and how. Its count comes last: whoever sees that sees the rest."""
        words, counts = self._words, self._counts
        now = time.monotonic_ns()
        if outcome not in _WITHOUT_HANDLER:
            took, taken = self._took, now - self.began_ns
            bound = 0 if taken <= _SHORT_NS else bisect.bisect_left(_BOUNDS_NS, taken)
            took[bound] = self._durations[bound] = took[bound] + 1
            self._took_us = words[DURATION_SUM] = self._took_us + taken // 1000
        words[SINCE] = now
        words[STATE] = 1
        counts[outcome] = words[outcome] = counts[outcome] + 1

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
        words, counts = self._words, self._counts
        counts[_ACCEPTED] += 1
        counts[outcome] += 1
        words[_ACCEPTED] = counts[_ACCEPTED]
        words[outcome] = counts[outcome]

    @property
    def is_hung(self) -> bool:
        """Whether ``hung`` was the last word on this lane."""
        return self._words[STATE] == LaneState.HUNG

    def hung(self) -> None:
        """The lane does not come back."""
        self._words[STATE] = LaneState.HUNG


@dataclass(frozen=True, slots=True)
class Quarters:
    """What one worker writes: a row for each lane, the crew's own, who is parked; and its ordinal."""

    lanes: list[Row]
    crew: CrewRow
    ordinal: int
    crowd: Crowd
