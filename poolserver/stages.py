"""Where the parked connections of a worker stand, in which order, and who goes first: for another, or when it is late.

What is entered here is looked at and reached by ``park.py``.
"""

import collections
import heapq
import math
import operator
import time
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile

from poolserver.parked import Limits, Parked
from poolserver.waits import Step, Verdict

ELDEST = 64
"""So many that are between two exchanges are found at once: to look at 10,000 takes a millisecond."""

_Stage = collections.OrderedDict[Parked, None]


class Stages:
    """Each connection is in exactly one stage: ``prefaces`` (it has not come to its request), ``silent`` (it has sent
    nothing), ``speaking`` (some of what is waited for is there), ``between`` two exchanges.

    A stage keeps the order of arrival, so that the oldest stands first; one that came from another worker may stand
    behind younger ones, and has as much time as they. ``between`` has no order: only ``since`` tells. One that is in
    somebody's hands is nobody else's.

    ``regulars``: the plain conversations between two exchanges, by their descriptors, and ``by_fd`` all others. A lane
    has what it takes out of the regulars, without a lock, and puts it back; whatever else happens to them or to a stage
    has the park's lock.
    """

    def __init__(self) -> None:
        self.prefaces: _Stage = collections.OrderedDict()
        self.silent: _Stage = collections.OrderedDict()
        self.speaking: _Stage = collections.OrderedDict()
        self.between: _Stage = collections.OrderedDict()
        self.by_fd: dict[int, Parked] = {}
        self.regulars: dict[int, Parked] = {}
        self._eldest: list[tuple[float, Parked]] = []

    def __len__(self) -> int:
        return sum(map(len, (self.prefaces, self.silent, self.speaking, self.between)))

    @property
    def has_waiting(self) -> bool:
        """Whether any is in nobody's hands, as far as ``by_fd`` and ``regulars`` tell."""
        return bool(self.by_fd or self.regulars)

    def is_free(self, parked: Parked) -> bool:
        """Whether it is in nobody's hands."""
        return not parked.is_in_hand and (not parked.is_regular or self.regulars.get(parked.fd) is parked)

    def hold(self, parked: Parked | None) -> bool:
        """Take it out of the regulars: no lane takes it without the lock any more. False: one has it."""
        if parked is None or self.regulars.get(parked.fd) is not parked or self.regulars.pop(parked.fd, None) is None:
            return False  # under the lock its number stays its own
        parked.is_regular = False
        self.by_fd.setdefault(parked.fd, parked)
        return True

    def is_held(self, parked: Parked) -> bool:
        """Whether one that was free is no regular, or not any more."""
        return not parked.is_regular or self.hold(parked)

    def hold_all(self) -> dict[int, bool]:
        """All that are free; whether each wants room, by descriptor."""
        for parked in [*self.regulars.values()]:
            self.hold(parked)
        return {fd: parked.wants_room for fd, parked in self.by_fd.items()}

    def stage(self, parked: Parked) -> _Stage:
        """Where it stands, or is to."""
        if parked.step is not Step.REQUEST:
            return self.prefaces
        if parked.has_begun:
            return self.speaking
        return self.between if parked.is_between else self.silent

    def enter(self, parked: Parked) -> None:
        """It stands where it belongs, behind all others."""
        self.stage(parked)[parked] = None
        if self._eldest and parked.since < self._eldest[0][0]:  # it came from another worker
            self._eldest.clear()

    def restage(self, parked: Parked) -> bool:
        """After a look: whether it has begun to send what is waited for."""
        if parked.step is not Step.REQUEST or parked.verdict is not Verdict.PARTIAL or parked.has_begun:
            return False
        del self.stage(parked)[parked]
        parked.has_begun, parked.is_regular = True, False
        if parked.is_between:
            parked.since = time.monotonic()
        self.speaking[parked] = None
        return True

    def standing(self) -> Iterator[Parked]:
        """All."""
        return chain(self.prefaces, self.silent, self.speaking, self.between)

    def unproven(self) -> Iterator[Parked]:
        """Who has sent nothing, or nothing whole: of the greater crowd the oldest first."""
        crowds = sorted((self.prefaces, self.silent), key=len, reverse=True)
        return (each for each in chain(*crowds, self.speaking) if each.conversation is None)

    def victim(self) -> Parked | None:
        """Who goes when there is no room: the oldest that has sent nothing or not come to its request, else the oldest
        in the middle of one, else the oldest between two."""
        return self._first(chain(self.unproven(), self.speaking)) or self._eldest_between()

    def late(self, now: float, limits: Limits) -> list[Parked]:
        """Who has waited longer than it may, so far as anybody has looked."""
        self._eldest.clear()  # it may hold what is over
        late = chain(
            takewhile(lambda each: each.since < now - limits.silent, self.silent),
            (each for each in self.between if each.since < now - limits.keep_alive),
            (each for each in self.speaking if each.since < now - limits.head),  # not in order: few, or an attack
            (each for each in self.prefaces if each.since < now - limits.preface(each)),  # likewise
        )
        return [each for each in late if self.is_free(each)]

    def nearest(self, limits: Limits) -> float:
        """When the first that waits now is due."""
        firsts = (
            (self._first(self.silent), limits.silent),
            (self._oldest_between(), limits.keep_alive),
            (self._first(self.speaking), limits.head),
        )
        prefaces = (each.since + limits.preface(each) for each in self.prefaces)
        return min(
            chain(prefaces, (each.since + limit for each, limit in firsts if each is not None)), default=math.inf
        )

    def oldest(self) -> float:
        """Since when the oldest waits; infinite when none does."""
        firsts = (*map(self._first, (self.prefaces, self.silent, self.speaking)), self._oldest_between())
        return min((each.since for each in firsts if each is not None), default=math.inf)

    def _first(self, stage: Iterable[Parked]) -> Parked | None:
        return next((each for each in stage if not each.is_in_hand), None)

    def _eldest_between(self) -> Parked | None:
        """As ``_oldest_between``, for a park that is full of them, where one must go for each that comes."""
        while self._eldest:
            since, parked = self._eldest[-1]
            if parked.since == since and parked in self.between and self.is_free(parked):
                return parked
            self._eldest.pop()
        eldest = heapq.nsmallest(ELDEST, filter(self.is_free, self.between), key=_since)
        self._eldest = [(parked.since, parked) for parked in reversed(eldest)]
        return eldest[0] if eldest else None

    def _oldest_between(self) -> Parked | None:
        return min(filter(self.is_free, self.between), key=_since, default=None)


_since = operator.attrgetter("since")
