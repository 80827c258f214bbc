"""Connections that wait off the lanes: for their first data, line or HTTP head, or for their next request.

A lane that accepts a connection whose client has nothing to say yet parks it and goes back to accepting; whichever
lane the epoll wakes takes it up. Runs in a worker, shared by its lanes and its watcher. Who is cut when, and what goes
to other workers, is ``attendant.py``'s affair.
"""

import collections
import math
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poolserver.claims import Claims
from poolserver.conversation import Conversation
from poolserver.rows import Outcome, Quarters
from poolserver.station import Station, Terms
from poolserver.waits import Verdict, Wait, judge
from poolserver.wakeups import Wakeups

_READY = (Verdict.COMPLETE, Verdict.ENDED)
UNFIT = {Verdict.TOO_LONG: Outcome.REFUSED_MAX_HEAD, Verdict.RESET: Outcome.REFUSED_RESET}


@dataclass(eq=False, slots=True)
class Parked:
    """A connection that holds no lane.

    ``since``: when it was accepted, when its last exchange ended, or when its next request began. ``claim``: the number
    of the source that it counts for, 0 for none. ``is_between`` two exchanges. ``ending``: it is over, and how; a lane
    has only to finish it. ``is_leaving``: a lane is to finish it for another worker to go on with.
    """

    station: Station
    request: Any
    address: Any
    since: float
    claim: int = 0
    conversation: Conversation | None = None
    is_between: bool = False
    has_begun: bool = False
    verdict: Verdict = Verdict.SILENT
    ending: Outcome | None = None
    fd: int = -1
    is_counted: bool = False
    is_in_hand: bool = False
    is_leaving: bool = False
    has_news: bool = False


def look(request: Any, wait: Wait, most: int) -> Verdict:
    """Say how far a connection is, without reading or waiting. Source: recv(2) MSG_PEEK, MSG_DONTWAIT."""
    if isinstance(request, ssl.SSLSocket):
        if request.pending():
            return Verdict.COMPLETE
        wait = Wait.DATA  # what can be seen is encrypted
    try:
        octets = socket.socket.recv(request, 1 if wait is Wait.DATA else most, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return Verdict.SILENT
    except OSError:
        return Verdict.RESET
    if not octets:
        return Verdict.ENDED
    verdict = judge(wait, octets, most)
    return Verdict.ENDED if verdict is Verdict.PARTIAL and _is_half_closed(request) else verdict


def _is_half_closed(request: socket.socket) -> bool:
    """Whether the peer sends no more, though some is unread. Source: poll(2) POLLRDHUP."""
    poller = select.poll()
    poller.register(request, select.POLLRDHUP)
    return bool(poller.poll(0))


class Park:
    """The parked connections of one worker.

    Each is in exactly one stage: ``silent`` (it has sent nothing), ``speaking`` (some of what is waited for is there),
    ``between`` two exchanges. A stage keeps the order of arrival, so that the oldest stands first.
    """

    def __init__(self, wakeups: Wakeups[Any], quarters: Quarters, claims: Claims, terms: Terms) -> None:
        self.silent: collections.OrderedDict[Parked, None] = collections.OrderedDict()
        self.speaking: collections.OrderedDict[Parked, None] = collections.OrderedDict()
        self.between: collections.OrderedDict[Parked, None] = collections.OrderedDict()
        self.by_fd: dict[int, Parked] = {}
        self.quota = terms.max_parked
        """How many may be parked here: the pool's ``max_parked`` less what the other workers have."""
        self._max_head = terms.max_head
        self._wakeups = wakeups
        self.row = quarters.crew
        self._ordinal = quarters.ordinal
        self._claims = claims
        self._lock = claims.lock
        self._between = 0
        self._sent: list[int] = []

    def __len__(self) -> int:
        return len(self.by_fd)

    def add(self, parked: Parked, lane: int) -> Parked | None:
        """Park what ``lane`` has. The claim of the lane becomes the park's.

        Returns one that must go for it, if the park is full: the oldest that has sent nothing, else the oldest that
        is between two requests, else ``parked`` itself. It is the caller's to end.
        """
        with self._lock:
            self._count(parked, lane)
            victim = self._victim(parked) if len(self.by_fd) >= self.quota else None
            if victim is not None:
                victim.ending = Outcome.REFUSED_MAX_PARKED
            if victim is parked:
                return parked
            if victim is not None:
                self._remove(victim)
            parked.fd = parked.request.fileno()
            try:
                self._wakeups.watch(parked.fd)  # under the lock: whoever it wakes finds the entry
            except OSError:
                parked.ending = Outcome.REFUSED_MAX_PARKED
                return parked
            self.by_fd[parked.fd] = parked
            self._stage(parked)[parked] = None
            self._publish(parked, 1)
        return victim

    def pass_on(self, parked: Parked, lane: int) -> None:
        """Leave what ``lane`` has to the next lane that has time, behind what is ready now."""
        with self._lock:
            self._count(parked, lane)
        self._wakeups.pass_on(parked)

    def take(self, fd: int) -> Parked | None:
        """What the epoll tells of ``fd``: the connection, if it is ready or over; it is the caller's then.

        An event that meets it in another lane's hands is not lost: that lane looks once more.
        """
        with self._lock:
            parked = self.by_fd.get(fd)
            if parked is None:
                return None
            if parked.is_in_hand:
                parked.has_news = True
                return None
            parked.is_in_hand = True
        while True:
            verdict = self._look(parked)
            with self._lock:
                if verdict in _READY or parked.ending is not None:
                    self._remove(parked)
                    return parked
                if not parked.has_news:
                    parked.is_in_hand = False
                    self._restage(parked, verdict)
                    return None
                parked.has_news = False

    def give(self, parked: Parked, lane: int) -> None:
        """``lane`` goes on with it: the claim becomes the lane's."""
        with self._lock:
            self._uncount(parked)
            if parked.claim:
                self._claims.hold(lane, parked.claim)

    def pass_to_lane(self, parked: Parked) -> None:
        """Have the next free lane finish it."""
        self._wakeups.pass_on(parked)

    def adopt(self, parked: Parked, place: int, lane: int) -> Parked | None:
        """As ``add``, for one that came from another worker, which counts it at ``place``."""
        self._claims.received(place)
        return self.add(parked, lane)

    def welcome(self, parked: Parked, place: int, lane: int) -> None:
        """As ``give``, for one that came from another worker."""
        self._claims.received(place)
        self.give(parked, lane)

    def send(self, parked: Parked, send: Callable[[Parked, int], bool]) -> bool:
        """Let another worker have it, by ``send``, which is told at which place it is counted meanwhile, and close our
        copy. False: it stays the caller's."""
        with self._lock:
            self._settle()
            is_counted = parked.is_counted
            self._uncount(parked)
            place = self._claims.send(self._ordinal, parked.claim) if is_counted else -1
            is_sent = (place >= 0 or not is_counted) and send(parked, place)
            if place >= 0:
                self._sent.append(place)
            if not is_sent:
                self._claims.received(place)
                parked.is_counted = is_counted and self._claims.park(self._ordinal, parked.claim)
                return False
        parked.request.close()
        return True

    def drop(self, parked: Parked) -> None:
        """Close one that no handler needs to see, and count its ending, in no lane's name."""
        with self._lock:
            self._uncount(parked)
            self.row.count(parked.ending or Outcome.CUT)
        parked.request.close()

    def due(self, now: float, limits: "Limits") -> list[Parked]:
        """Take out what has waited too long, each with its ending. It is the caller's to finish."""
        with self._lock:
            due = [
                *_first(self.silent, now - limits.silent),
                *_first(self.between, now - limits.keep_alive),
                *(each for each in self.speaking if each.since < now - limits.head),  # not in order: few, or an attack
            ]
            due = [each for each in due if not each.is_in_hand]
            for parked in due:
                parked.ending = _ending(parked, limits)
                self._remove(parked)
        return due

    def nearest(self, limits: "Limits") -> float:
        """When the first that waits now is due."""
        stages = ((self.silent, limits.silent), (self.between, limits.keep_alive), (self.speaking, limits.head))
        with self._lock:
            return min((next(iter(stage)).since + limit for stage, limit in stages if stage), default=math.inf)

    def overdue(self, most: int) -> list[Parked]:
        """Take out up to ``most`` that are ready, or over, while every lane is busy."""
        found = [self.take(fd) for fd in self._wakeups.overdue(most)]
        return [parked for parked in found if parked is not None]

    def movable(self, may_move: Callable[[Parked], bool]) -> list[Parked]:
        """Take out all that may go to another worker. They are the caller's."""
        with self._lock:
            found = [each for each in self.by_fd.values() if not each.is_in_hand and may_move(each)]
            for parked in found:
                self._remove(parked)
        return found

    def oldest(self) -> float:
        """Since when the oldest waits; infinite when none does."""
        with self._lock:
            return min((each.since for each in self._heads()), default=math.inf)

    def part(self) -> None:
        """The lanes are to leave: let the parked, and nothing else, wake those that stay for them."""
        with self._lock:
            self._wakeups.part(self.by_fd)

    def _settle(self) -> None:
        """Count no longer what has arrived elsewhere."""
        if self._sent:
            self._sent = self._claims.settle(self._ordinal, self._sent)

    def _look(self, parked: Parked) -> Verdict:
        wait = parked.station.between if parked.is_between else parked.station.wait
        if parked.conversation is not None and not parked.conversation.is_plain:
            wait = Wait.DATA
        verdict = look(parked.request, wait, self._max_head)
        if verdict in UNFIT:
            parked.ending = Outcome.SERVED if parked.is_between and verdict is Verdict.RESET else UNFIT[verdict]
        parked.verdict = verdict
        return verdict

    def _restage(self, parked: Parked, verdict: Verdict) -> None:
        if verdict is Verdict.PARTIAL and not parked.has_begun:
            del self._stage(parked)[parked]
            parked.has_begun = True
            if parked.is_between:
                parked.since = time.monotonic()
            self.speaking[parked] = None

    def _stage(self, parked: Parked) -> collections.OrderedDict[Parked, None]:
        if parked.has_begun:
            return self.speaking
        return self.between if parked.is_between else self.silent

    def _victim(self, newcomer: Parked) -> Parked:
        stages = (self.silent, self.between)
        return next((each for stage in stages for each in stage if not each.is_in_hand), newcomer)

    def _heads(self) -> list[Parked]:
        return [next(iter(stage)) for stage in (self.silent, self.speaking, self.between) if stage]

    def _remove(self, parked: Parked) -> None:
        del self.by_fd[parked.fd]
        del self._stage(parked)[parked]
        self._wakeups.unwatch(parked.fd)
        self._publish(parked, -1)

    def _publish(self, parked: Parked, change: int) -> None:
        if parked.is_between:
            self._between += change
        self.row.parked(len(self.by_fd) - self._between, self._between)

    def _count(self, parked: Parked, lane: int) -> None:
        if parked.claim:
            self._claims.give_back(lane)
            parked.is_counted = self._claims.park(self._ordinal, parked.claim)

    def _uncount(self, parked: Parked) -> None:
        if parked.is_counted:
            parked.is_counted = False
            self._claims.unpark(self._ordinal, parked.claim)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long what may wait, in seconds; infinite where nothing bounds it; and as what its end counts."""

    silent: float
    silent_ending: Outcome
    head: float
    keep_alive: float
    between_ending: Outcome = Outcome.TIMEOUT_KEEP_ALIVE

    @classmethod
    def of(cls, terms: Terms, shrink: float = 1.0) -> "Limits":
        """Those of ``terms``, times ``shrink`` under stress."""
        first_byte, head, keep_alive = (
            each * shrink or math.inf for each in (terms.first_byte_timeout, terms.head_timeout, terms.keep_alive)
        )
        ending = Outcome.TIMEOUT_FIRST_BYTE if first_byte <= head else Outcome.TIMEOUT_HEAD
        return cls(min(first_byte, head), ending, head, keep_alive)


def _first(stage: collections.OrderedDict[Parked, None], before: float) -> list[Parked]:
    """Those at the front of a stage that came before this time."""
    found = []
    for parked in stage:
        if parked.since >= before:
            break
        found.append(parked)
    return found


def _ending(parked: Parked, limits: Limits) -> Outcome:
    if parked.has_begun:
        return Outcome.TIMEOUT_HEAD
    return limits.between_ending if parked.is_between else limits.silent_ending
