"""The herald: tells systemd how the service is. Runs in the master's loop, as one of those that it looks after.

What it tells follows from what is there at each turn: the pool's state, its workers. Whoever changes the state need
not think of systemd. It tells nothing from a timer alone: when the loop stands still, so does the herald, and systemd
acts. How it is told is ``systemd.py``'s.
"""

import enum
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from poolserver.events import Event
from poolserver.pool import Pool
from poolserver.snapshot import Snapshot
from poolserver.states import PoolState, WorkerState
from poolserver.systemd import Manager

STATUS_INTERVAL = 2.0
"""Seconds between looks whether the status has changed, for ``systemctl status``."""

EXTENSION = 15.0
"""Seconds by which a start or a stop that takes its time is extended at once. The pool itself bounds both; a master
that hangs is extended no more."""

EXTENSION_INTERVAL = 5.0
"""Seconds between two extensions: two in a row may come late."""

RETRY_INTERVAL = 0.1
"""Seconds after which a message is sent again that found systemd's queue full."""

BEATS = 4
"""Signs of life in the time within which systemd wants one."""


class Phase(enum.Enum):
    """What systemd is told of."""

    STARTING = "not every worker accepts yet"
    SERVING = "READY=1"
    RELOADING = "RELOADING=1"
    LEAVING = "STOPPING=1"


@dataclass
class Health:
    """Whether the pool gets on, so that a watchdog need not act. Pure.

    A pool is sick when its workers hang, and so do those that replaced them. One that has been ready for longer than
    a hang goes unnoticed (``worker_timeout``, seconds; 0 = hangs are never noticed) is proof that it is not. Workers
    that die, or cannot start, make nobody sick: the master replaces them and tries on, which no restart does better.
    """

    worker_timeout: Callable[[], float]
    """Of the present: a reload may change it."""
    _proven: float = math.nan
    _hung: float = -math.inf

    def look(self, oldest_ready: float | None, *, has_hung: bool, now: float) -> bool:
        """Whether it is well at ``now``. ``oldest_ready``: since when that worker is ready that is for longest."""
        timeout = self.worker_timeout()
        is_first = math.isnan(self._proven)
        if is_first or (oldest_ready is not None and now - oldest_ready > timeout):
            self._proven = now
        if has_hung:
            self._hung = now
        return self._hung <= self._proven or now - self._proven <= 2 * timeout


class Herald:
    """Looks at the pool at each turn of the master's loop, and tells systemd what has changed.

    Args:
        manager: Whom it tells.
        pool: The pool, which it only looks at.
        health: What the watchdog hangs on.
        observe: Gives a snapshot of the service, for the status line.
    """

    def __init__(self, manager: Manager, pool: Pool, health: Health, observe: Callable[[float], Snapshot]) -> None:
        self._manager = manager
        self._pool = pool
        self._health = health
        self._observe = observe
        self._seen = self._told = Phase.STARTING
        self._status = ""
        self._next_word = 0.0
        self._next_beat = 0.0
        self._ready_since: dict[int, float] = {}

    def interests(self) -> dict[int, int]:
        """Nothing to poll: it only speaks."""
        return {}

    def deadline(self) -> float:
        """When to call ``attend`` at the latest, in monotonic seconds."""
        if self._is_over:
            return math.inf
        if self._phase() is not self._seen:
            return 0.0
        return min(self._next_word, self._next_beat if self._manager.watchdog else math.inf)

    def attend(self, _ready: Collection[int], now: float) -> list[Event]:
        """Tell what is to be told. Never waits, and asks for nothing."""
        if self._is_over:
            return []
        phase = self._phase()
        if phase is not self._seen or now >= self._next_word:
            self._tell(phase, now)
        if self._manager.watchdog:
            is_well = self._is_well(now)
            if now >= self._next_beat:
                self._next_beat = now + self._manager.watchdog / BEATS
                if is_well:
                    self._manager.tell("WATCHDOG=1")
        return []

    @property
    def _is_over(self) -> bool:
        """Another master has taken over: from here on it is the service that is told of."""
        return self._manager.is_muted and self._pool.is_leaving

    def _phase(self) -> Phase:
        if self._pool.is_leaving:
            return Phase.LEAVING
        if self._told is Phase.STARTING and not self._pool.is_whole:
            return Phase.STARTING
        return Phase.RELOADING if self._pool.state is PoolState.RELOADING else Phase.SERVING

    def _tell(self, phase: Phase, now: float) -> None:
        """What has changed; and what is to be repeated."""
        is_news = phase is not self._told
        self._seen = phase
        is_up = phase in (Phase.SERVING, Phase.RELOADING)
        self._next_word = now + (STATUS_INTERVAL if is_up else EXTENSION_INTERVAL)
        match phase:
            case Phase.SERVING if is_news:
                is_told = self._manager.ready(status_line(self._observe(now)))
            case Phase.RELOADING if is_news:
                is_told = self._manager.reloading()
            case Phase.SERVING | Phase.RELOADING:
                is_told = self._tell_status(now)
            case Phase.LEAVING if is_news:
                is_told = self._manager.stopping(EXTENSION)
            case Phase.STARTING if self._pool.state is not PoolState.STARTING:
                is_told = True  # some serve, some cannot start: how long that may take is for the unit to say
            case _:
                is_told = self._manager.extend(EXTENSION)
        if is_told:
            self._told = phase
        else:
            self._next_word = now + RETRY_INTERVAL

    def _tell_status(self, now: float) -> bool:
        status = status_line(self._observe(now))
        before, self._status = self._status, status
        return status == before or self._manager.tell(f"STATUS={status}")

    def _is_well(self, now: float) -> bool:
        workers = self._pool.workers
        ready = [serial for serial, worker in workers.items() if worker.state is WorkerState.READY]
        self._ready_since = {serial: self._ready_since.get(serial, now) for serial in ready}
        oldest = min(self._ready_since.values(), default=None)
        has_hung = any(worker.state is WorkerState.HUNG for worker in workers.values())
        return self._health.look(oldest, has_hung=has_hung, now=now)


def status_line(snapshot: Snapshot) -> str:
    """What ``systemctl status`` shows of the service."""
    pool, totals = snapshot["pool"], snapshot["totals"]
    refused = sum(totals["refused"].values())
    return (
        f"{snapshot['state']}: {pool['busy']} of {pool['lanes']} lanes busy, {pool['parked']} parked;"
        f" {totals['accepted']} accepted, {refused} refused, {totals['errors']} errors, {totals['respawns']} respawns"
    )
