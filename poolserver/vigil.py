"""The vigil: which workers give no signs of life, and which have a lane that hangs. Runs in the master's loop.

Every worker's watcher leaves the time on the scoreboard at each tick. A process that is stopped, or in which a C call
holds the interpreter's lock, leaves none; one that is merely busy does. What becomes of it is decided in ``pool.py``.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping

from poolserver.events import Event, WorkerRevived, WorkerSick
from poolserver.scoreboard import Berth, Scoreboard

LOOK_INTERVAL = 1.0
"""Seconds between looks for lanes that hang, where handlers have a deadline, and for a sick worker's recovery."""

OVERSLEPT = 1.0
"""Seconds by which this loop comes late when not the workers but we, or the machine, stood still: nobody's silence
counts that was before."""

Staff = Callable[[], Mapping[int, tuple[int, Berth]]]
"""The pid and the berth of each worker that accepts, by its serial."""


class Vigil:
    """``silence`` gives ``timeouts.worker``, and ``handler`` ``timeouts.handler``, of the present; 0 = off."""

    def __init__(
        self, silence: Callable[[], float], handler: Callable[[], float], staff: Staff, board: Scoreboard
    ) -> None:
        self._silence = silence
        self._handler = handler
        self._staff = staff
        self._board = board
        self._since: dict[int, float] = {}  # when a worker was first seen, or its silence last began to count
        self._silent: set[int] = set()
        self._hanging: set[int] = set()
        self._next_look = 0.0

    def interests(self) -> dict[int, int]:
        """No descriptors."""
        return {}

    def deadline(self) -> float:
        """When to ``attend`` at the latest."""
        return self._next_look if self._silence() or self._handler() else math.inf

    def attend(self, _ready: Collection[int], now: float) -> list[Event]:
        """Tell what has changed by ``now`` (monotonic seconds)."""
        staff = self._staff()
        has_overslept = now > self._next_look + OVERSLEPT
        self._since = {serial: now if has_overslept else self._since.get(serial, now) for serial in staff}
        self._silent &= staff.keys()
        self._hanging &= staff.keys()
        events: list[Event] = []
        if self._silence():
            events += self._listened(staff, now)
        if self._handler():
            events += self._looked(staff)
        self._next_look = self._next_due(staff, now)
        return events

    def _listened(self, staff: Mapping[int, tuple[int, Berth]], now: float) -> Iterator[Event]:
        for serial in staff:
            is_silent = now >= self._last_sign(serial, staff) + self._silence()
            if is_silent and serial not in self._silent:
                self._silent.add(serial)
                why = f"gives no signs of life since {self._silence():g} s (timeouts.worker)"
                yield WorkerSick(serial, why, is_silent=True)
            elif not is_silent and serial in self._silent:
                self._silent.discard(serial)
                yield WorkerRevived(serial)

    def _looked(self, staff: Mapping[int, tuple[int, Berth]]) -> Iterator[Event]:
        for serial, (_, berth) in staff.items():
            if serial not in self._hanging and self._board.has_hung_lane(berth):
                self._hanging.add(serial)
                yield WorkerSick(serial, "has a lane that hangs (timeouts.handler)", is_silent=False)

    def _last_sign(self, serial: int, staff: Mapping[int, tuple[int, Berth]]) -> float:
        return max(self._board.last_sign(staff[serial][1]), self._since[serial])

    def _next_due(self, staff: Mapping[int, tuple[int, Berth]], now: float) -> float:
        soon = now + LOOK_INTERVAL
        if self._handler() or self._silent:
            return soon
        dues = [self._last_sign(serial, staff) + self._silence() for serial in staff]
        return max(now, min(dues, default=math.inf))
