"""Who looks after the parked connections of a worker: cuts what waits too long, shortens the waits under stress.

Runs in the crew's watcher. While every lane is busy it hands what became ready to a worker that has time.
"""

import collections
import functools
import math
import time
from collections.abc import Callable, Sequence

from poolserver.claims import Claims
from poolserver.handover import Pairs, may_leave, may_move, send
from poolserver.lane import Lane
from poolserver.park import Park
from poolserver.parked import UNFIT, Limits, Parked
from poolserver.processors import has_spare, waited
from poolserver.rows import Outcome
from poolserver.shortage import Attention
from poolserver.station import Terms

CLOSE_LOOK = 0.005
"""Seconds between looks whether every lane is busy, while that may be: a connection that became ready waits so long for
a worker that has time. Three looks in a row that find a free lane, and none that took a connection, end it, until one
does."""

FARTHEST_LOOK = 0.02
SLOWING = 1.25
BRISK = 4
"""The same, at the most, under load: each look that finds that lanes took so many connections since the last, or had no
processor to take them with, puts the next off so much more. A look is dear then, since it takes the interpreter from
the lanes (measured, 16 workers on two cores: a fifth of all CPU at 5 ms, a tenth at 20)."""

SATURATED_LOOK = 0.25
"""The same at the most while no processor is left either: nobody would serve what is handed over any sooner."""

QUIET_LOOKS = 3

FULL_LOOKS = 2
"""After so many looks in a row that find no lane free, what is ready goes to others that are."""

SPARE_LOOKS = 3
"""After so many looks in a row that find a processor to spare, one is, where lanes get on fast: of a saturated machine
every look sees another moment."""

STILL_LOOKS = 2
"""After so many looks in a row at which every lane has what it had before, and not because other threads had the
processors, its lanes count as held."""

HELD_AFTER = 0.25
"""Seconds for which lanes may want a processor and not count as held: what takes longer is long work, and others that
have time get their share of the processors, too."""

SAMPLED = 16
"""Lanes that are asked whether they want a processor. Of many in one process most wait for the interpreter instead, and
to ask them all at each look took it from them (measured, 256 lanes, all held: 0.8 of a processor, 0.05 now)."""

STEP_BACK = 0.005
"""Seconds for which a worker leaves newcomers to others when it has more than its share of those that wait. What comes
first to a worker that has time stays there, else: of 500 clients that came at once, one of 16 workers took 231."""

TICK = 1.0
"""Seconds between looks while nothing is near its limit; the crew looks as often for its own affairs."""

SOON = 0.1
"""Seconds between looks at the most, however many limits are near."""

STRESS_SHARE = 0.8
STRESS_AFTER = 1.0
STRESS_SHRINK = 0.2
"""When so many of the pool's lanes have been busy for so long, waits shrink to this part of theirs. Source: Postfix,
STRESS_README: its stress-dependent time-outs are a tenth to a thirtieth; four lanes in five is RELIABILITY 3.3."""

DRAIN_PATIENCE = 1.0
"""Seconds that a client which has not yet spoken has once the worker is to leave: most speak within microseconds of
connecting, so that whoever came just before the stop is served."""


class Attendant:
    """What it takes out of the park is closed, sent to another worker, or left to a lane to finish.

    ``is_close``: it looks often. ``unsent``: what another worker is to have as soon as there is room on the way.
    ``hands_over``: the worker leaves, others go on, and they shall have what is parked.
    """

    def __init__(
        self,
        park: Park,
        lanes: Sequence[Lane],
        terms: Terms,
        claims: Claims,
        pairs: Pairs | None,
        attention: Attention,
        has_processor: Callable[[], bool] = has_spare,
        has_waited: Callable[[int], float] = waited,
    ) -> None:
        self.is_close = False
        self._has_processor, self._has_waited = has_processor, has_waited
        self.hands_over = False
        self.unsent: collections.deque[Parked] = collections.deque()
        self._claims = claims
        self._pairs = pairs
        self._attention, self._turns_back = attention, math.inf
        self._quiet_looks = 0
        self.is_stressed = False
        self._park = park
        self._lanes = lanes
        self._terms = terms
        self._limits = Limits.of(terms)
        self._busy_since = math.inf
        self._is_draining = False
        self._is_cutting = False
        self._next_look = self._next_stress_look = 0.0
        self._next_close_look = 0.0
        self._pace = CLOSE_LOOK
        self._turns, self._last_turn = 0, 0.0
        self._waits = (-math.inf, 0.0)
        self._full_looks = self._still_looks = 0
        self._spare_looks = SPARE_LOOKS

    def deadline(self) -> float:
        """When to ``look`` next; never while nothing is parked."""
        if self.is_close or self.unsent:
            return min(self._next_close_look, self._turns_back)
        return min(self._next_look if self._park else math.inf, self._turns_back)

    def look(self, now: float) -> None:
        """End what is due, at most every ``SOON``; while every lane is busy, give what is ready to others."""
        if now >= self._turns_back:
            self._turns_back = math.inf
            self._attention.turn_back(self)
        if self.is_close or self.unsent or self.hands_over:
            self._look_closely(now)
            self._next_close_look = now + self._pace
        if now >= self._next_stress_look and not self._is_draining:
            self._watch_stress(now)
            self._next_stress_look = now + SOON
        if now < self._next_look:
            return
        for parked in self._park.due(now, self._limits):
            self.end(parked)
        self._next_look = max(now + SOON, min(now + TICK, self._park.nearest(self._limits)))

    def step_back(self, now: float) -> None:
        """This worker has more than its share: others shall have who comes in the next moments."""
        self._park.has_too_many = False
        if not self._is_draining:
            self._attention.turn_from(self)
            self._turns_back = now + STEP_BACK

    def tick(self) -> None:
        """At each tick: a sign of life, what status shows, and this worker's share of ``max_parked``."""
        self._park.share_out()
        self._park.settle(time.monotonic())
        oldest = self._park.oldest()
        self._park.row.sign()
        self._park.row.oldest(0 if oldest == math.inf else int(oldest * 1e9), is_stressed=self.is_stressed)

    def drain(self, now: float, *, hand_over: bool) -> None:
        """The worker leaves. What may go to another worker does, if others go on; of the rest, conversations between
        two requests end now, and who has not spoken has a little time. Asked again, with nobody left to go on: what was
        to be handed over ends, too."""
        if self._is_draining:
            self._keep_all(hand_over=hand_over)
            return
        self._is_draining = True
        self._turns_back = math.inf
        self._pace = CLOSE_LOOK
        self._park.row.leave(len(self._lanes))
        self.hands_over = hand_over and self._pairs is not None
        self._park.part()
        self.is_close = True
        patience = min(DRAIN_PATIENCE, self._terms.graceful_timeout)
        head, handshake = min(patience, self._limits.head), min(self._terms.graceful_timeout, self._limits.handshake)
        prefaces = {"header": patience, "hello": patience, "handshake": handshake}
        grace = Limits(patience, Outcome.CUT, head, -math.inf, Outcome.SERVED, **prefaces)
        self._limits = grace
        self._next_look = 0.0
        self.look(now)

    def _keep_all(self, *, hand_over: bool) -> None:
        if hand_over or not self.hands_over:
            return
        self.hands_over = False
        while self.unsent:
            parked = self.unsent.popleft()
            parked.ending = self._limits.ending(parked)
            self._park.drop(parked)

    def cut(self) -> None:
        """Close what is left. Lanes that come by finish its handlers."""
        self._is_cutting = True
        if not self._is_draining:
            self._is_draining = True
            self._park.part()
        for parked in self._taken_out():
            self.end(parked)

    def close(self) -> None:
        """The lanes are gone: close what they left, handlers finished or not."""
        for parked in self._taken_out():
            self._park.drop(parked)

    def _taken_out(self) -> list[Parked]:
        """All that are in no lane's hands, to be cut."""
        self.hands_over = False
        left = [*self._park.take_out(), *self._park.take_back(), *self.unsent]
        self.unsent.clear()
        for parked in left:
            parked.ending = parked.ending or Outcome.CUT
            parked.is_leaving = False
        return left

    def end(self, parked: Parked) -> None:
        """One that no handler has is closed here; a conversation's handler is finished by the next free lane. Those
        that may go to another worker do."""
        if self.hands_over and parked.verdict not in UNFIT and may_move(parked):
            parked.ending = None
            self._move(parked)
        elif parked.conversation is None:
            self._park.drop(parked)
        else:
            self._park.pass_to_lane(parked)

    def _look_closely(self, now: float) -> None:
        if not self._is_draining:
            self._watch_lanes(now)
            return
        self.is_close = False  # before the look: a lane that parks a connection after it sets it again
        if self._is_cutting:
            self.cut()  # what a lane had just suspended
        else:
            self._move_out()
            self._next_look = 0.0  # what stays ends now, which a lane may have parked just before it leaves

    def _watch_lanes(self, now: float) -> None:
        before, self._turns = self._turns, sum(lane.turns for lane in self._lanes)
        turns = self._turns - before
        is_full = self._is_full()
        if turns or not self._full_looks:
            self._last_turn = now
        is_starved = turns < BRISK and now - self._last_turn < HELD_AFTER and self._is_starved(now)
        self._full_looks = self._full_looks + 1 if is_full else 0
        self._still_looks = self._still_looks + 1 if is_full and not turns and not is_starved else 0
        self._quiet_looks = 0 if is_full or turns else self._quiet_looks + 1
        self._set_pace(is_pressed=is_starved or turns >= BRISK)
        if self._full_looks >= FULL_LOOKS:
            self._relieve()
        if self._quiet_looks >= QUIET_LOOKS:
            self.is_close = False  # before the next line asks: a lane that takes a connection after it sets it again
        if self._quiet_looks < QUIET_LOOKS or self._is_full():
            self.is_close = True

    def _is_full(self) -> bool:
        """Whether every lane has a connection while others wait off them."""
        return self._park.has_waiting and all(lane.request is not None for lane in self._lanes)

    def _set_pace(self, *, is_pressed: bool) -> None:
        if not is_pressed:
            self._pace, self._spare_looks = CLOSE_LOOK, SPARE_LOOKS
            return
        self._spare_looks = self._spare_looks + 1 if self._has_processor() else 0
        self._pace = min(SLOWING * self._pace, FARTHEST_LOOK if self._spare_looks >= SPARE_LOOKS else SATURATED_LOOK)

    def _is_starved(self, now: float) -> bool:
        """Whether lanes got nowhere for want of a processor: for most of the time since this was asked last, they were
        ready to run and did not."""
        sample = self._lanes[:SAMPLED]
        (then, before), waits = self._waits, sum(self._has_waited(lane.thread_id) for lane in sample)
        self._waits = now, waits
        return waits - before > (now - then) / 2

    def _move_out(self) -> None:
        """What other workers shall have: new ones as they are, conversations once a lane has finished the handler."""
        for parked in self._park.take_out(may_move) if self.hands_over else ():
            self._move(parked)
        self._send_unsent()

    def _move(self, parked: Parked) -> None:
        parked.is_leaving = parked.conversation is not None
        if parked.is_leaving:
            self._park.pass_to_lane(parked)
        else:
            self.unsent.append(parked)

    def _relieve(self) -> None:
        """Every lane is busy: those that are ready go to workers that have time, as many as these have lanes. Not while
        others are on their way; nor, unless our lanes stand still, while no processor is left: a lane that says that
        it has time would have them no sooner, and a hand-over takes time from those that serve."""
        idle = self._park.row.lanes(self._claims.rows)[1]
        if not (idle and self._pairs is not None and self._pairs.ready.is_empty):
            return
        has_processor = self._spare_looks >= SPARE_LOOKS and self._has_processor()
        if self._still_looks < STILL_LOOKS and not has_processor:
            return
        for parked in self._park.overdue(idle):
            if not (may_leave(parked) and self._park.send(parked, functools.partial(send, self._pairs.ready))):
                self._park.pass_to_lane(parked)

    def _send_unsent(self) -> None:
        while self._pairs is not None and self.unsent:
            if not self._park.send(self.unsent[0], functools.partial(send, self._pairs.waiting)):
                break
            self.unsent.popleft()

    def _watch_stress(self, now: float) -> None:
        busy, idle = self._park.row.lanes(self._claims.rows)
        if busy < STRESS_SHARE * (busy + idle) or not busy:
            self._busy_since = math.inf
        elif self._busy_since == math.inf:
            self._busy_since = now
        is_stressed = now - self._busy_since >= STRESS_AFTER
        if is_stressed != self.is_stressed:
            self.is_stressed = is_stressed
            self._limits = Limits.of(self._terms, STRESS_SHRINK if is_stressed else 1.0)
            self._next_look = 0.0
