"""Who looks after the parked connections of a worker: cuts what waits too long, shortens the waits under stress.

Runs in the crew's watcher. While every lane is busy it hands what became ready to a worker that has time.
"""

import math
from collections.abc import Sequence

from poolserver.lane import Lane
from poolserver.park import Limits, Park, Parked
from poolserver.scoreboard import Outcome
from poolserver.station import Terms

TICK = 1.0
"""Seconds between looks while nothing is near its limit; the crew looks as often for its own affairs."""

SOON = 0.1
"""Seconds between looks at the most, however many limits are near."""

STRESS_SHARE = 0.8
STRESS_AFTER = 1.0
STRESS_SHRINK = 0.2
"""When so many of the lanes have been busy for so long, waits shrink to this part of theirs. Source: Postfix,
STRESS_README: its stress-dependent time-outs are a tenth to a thirtieth; four lanes in five is RELIABILITY 3.3."""

DRAIN_PATIENCE = 1.0
"""Seconds that a client which has not yet spoken has once the worker is to leave: most speak within microseconds of
connecting, so that whoever came just before the stop is served."""


class Attendant:
    """Owns no connection: what it takes out of the park is closed, or left to a lane to finish, at once."""

    def __init__(self, park: Park, lanes: Sequence[Lane], terms: Terms) -> None:
        self.is_stressed = False
        self._park = park
        self._lanes = lanes
        self._terms = terms
        self._limits = Limits.of(terms)
        self._busy_since = math.inf
        self._is_draining = False
        self._next_look = 0.0

    def deadline(self) -> float:
        """When to ``look`` next; never while nothing is parked."""
        return self._next_look if self._park else math.inf

    def look(self, now: float) -> None:
        """At most every ``SOON``: end what is due."""
        if not self._is_draining:
            self._watch_stress(now)
        if now < self._next_look:
            return
        for parked in self._park.due(now, self._limits):
            self.end(parked)
        self._next_look = max(now + SOON, min(now + TICK, self._park.nearest(self._limits)))

    def tick(self, rows: int) -> None:
        """Once a second: what status shows, and this worker's share of ``max_parked``. ``rows`` are in use."""
        self._park.quota = max(1, self._terms.max_parked - self._park.row.parked_by_others(rows))
        oldest = self._park.oldest()
        self._park.row.oldest(0 if oldest == math.inf else int(oldest * 1e9), is_stressed=self.is_stressed)

    def drain(self, now: float) -> None:
        """The worker leaves: conversations between two requests end now, who has not spoken has a little time."""
        self._is_draining = True
        self._park.part()
        patience = min(DRAIN_PATIENCE, self._terms.graceful_timeout)
        grace = Limits(patience, Outcome.CUT, min(patience, self._limits.head), -math.inf)
        self._limits = grace
        self._next_look = 0.0
        self.look(now)

    def cut(self) -> None:
        """Close what is left."""
        for parked in self._park.due(math.inf, Limits(0.0, Outcome.CUT, 0.0, 0.0)):
            parked.ending = Outcome.CUT
            self._park.drop(parked)

    def end(self, parked: Parked) -> None:
        """One that no handler has is closed here; a conversation's handler is finished by the next free lane."""
        if parked.conversation is None:
            self._park.drop(parked)
        else:
            self._park.pass_to_lane(parked)

    def _watch_stress(self, now: float) -> None:
        busy = sum(lane.request is not None for lane in self._lanes)
        if busy < STRESS_SHARE * len(self._lanes):
            self._busy_since = math.inf
        elif self._busy_since == math.inf:
            self._busy_since = now
        is_stressed = now - self._busy_since >= STRESS_AFTER
        if is_stressed != self.is_stressed:
            self.is_stressed = is_stressed
            self._limits = Limits.of(self._terms, STRESS_SHRINK if is_stressed else 1.0)
            self._next_look = 0.0
