"""Recycling: which workers have served enough, by connections, age or memory. Runs in the master's loop.

It only tells; when each of them goes is decided in ``pool.py``.
"""

import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import psutil

from poolserver.events import Event, WorkerSpent
from poolserver.scoreboard import Berth, Scoreboard

LOOK_INTERVAL = 0.5
"""Seconds between looks, where there is anything to look for."""

SHORTEST_INTERVAL = 0.05
"""Seconds between looks when the loop turns anyway: workers that recycle all the time are found out soon."""

Staff = Callable[[], Mapping[int, tuple[int, Berth]]]
"""The pid and the berth of each worker that accepts and stays, by its serial."""


@dataclass(frozen=True)
class Allowance:
    """What a worker may serve; 0 = without end. ``age`` in seconds, ``rss`` in bytes; ``jitter`` a fraction."""

    connections: int = 0
    jitter: float = 0.1
    rss: int = 0
    age: float = 0.0

    @property
    def is_endless(self) -> bool:
        return not (self.connections or self.rss or self.age)


@dataclass(frozen=True, slots=True)
class _Tenure:
    """When a worker was first seen, and by how much more than others it may serve."""

    since: float
    factor: float


class Recycler:
    """``allowance`` gives the present one: a reload may change it."""

    def __init__(
        self,
        allowance: Callable[[], Allowance],
        staff: Staff,
        board: Scoreboard,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._allowance = allowance
        self._staff = staff
        self._board = board
        self._jitter = jitter
        self._tenures: dict[int, _Tenure] = {}
        self._last_look = -math.inf

    def interests(self) -> dict[int, int]:
        """No descriptors."""
        return {}

    def deadline(self) -> float:
        """When to ``attend`` at the latest."""
        return math.inf if self._allowance().is_endless else self._last_look + LOOK_INTERVAL

    def attend(self, _ready: Collection[int], now: float) -> list[Event]:
        """Tell of each worker that has served enough by ``now`` (monotonic seconds)."""
        allowance = self._allowance()
        if allowance.is_endless or now < self._last_look + SHORTEST_INTERVAL:
            return []
        self._last_look = now
        return list(self._spent(allowance, now))

    def _spent(self, allowance: Allowance, now: float) -> Iterator[Event]:
        staff = self._staff()
        known = self._tenures
        self._tenures = {
            serial: known.get(serial) or _Tenure(now, 1 + allowance.jitter * self._jitter()) for serial in staff
        }
        for serial, (pid, berth) in staff.items():
            if why := self._why(allowance, self._tenures[serial], pid, berth, now):
                yield WorkerSpent(serial, why)

    def _why(self, allowance: Allowance, tenure: _Tenure, pid: int, berth: Berth, now: float) -> str:
        """A clause; empty: it may go on."""
        age = now - tenure.since
        if allowance.age and age >= allowance.age * tenure.factor:
            return f"is {age:.0f} s old (recycle.age)"
        if allowance.connections:
            accepted = self._board.counted([berth])["accepted"]
            if accepted >= int(allowance.connections * tenure.factor):
                return f"has served {accepted} connections (recycle.connections)"
        if allowance.rss and (rss := _rss(pid)) >= allowance.rss:
            return f"has grown to {rss / 2**20:.1f} MiB (recycle.rss)"
        return ""


def _rss(pid: int) -> int:
    """Resident bytes; 0 when it has just ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
