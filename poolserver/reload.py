"""What the pool remembers of reloads: who asked, how far the present one is, how the last one ended. Pure.

A reload is a transaction. Up to the commit point, where a canary of the new generation has booted, any failure leaves
everything as it was. From there it goes forward only. ``pool.py`` moves the workers; this keeps the books.
"""

import enum
import math
from dataclasses import dataclass, field

from poolserver.events import NOBODY, Action, Answer, Prepared, Say

QUIET_INTERVAL = 0.2
"""Seconds without a further request before a reload that was asked for during another begins: a storm of HUPs is
answered by two reloads, not by a thousand."""

LONGEST_WAIT = 3.0
"""Seconds after which it begins though the storm goes on."""


class Phase(enum.Enum):
    """How far a reload is."""

    NONE = "none"
    PREPARING = "the configuration is read, and what is new is bound"
    BOOTING = "the canary boots"
    ROLLING = "committed: workers are replaced, and the old ones leave"


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a reload or an upgrade ended. ``at`` is in monotonic seconds; ``reason`` is why it failed."""

    ok: bool
    reason: str
    at: float


@dataclass
class Reload:
    """One for the life of a pool. ``reloads`` counts those that succeeded."""

    phase: Phase = Phase.NONE
    prepared: Prepared | None = None
    """What the generation to come needs, until the commit."""
    closes: bool = False
    """Some listeners went with an old generation, and are still open."""
    deadline: float = math.inf
    """When all workers must have been replaced."""
    reloads: int = 0
    reloads_failed: int = 0
    last: Attempt | None = None
    _askers: list[int] = field(default_factory=list)
    _waiting: list[int] = field(default_factory=list)
    _due: float = math.inf
    _latest: float = math.inf

    @property
    def is_running(self) -> bool:
        return self.phase is not Phase.NONE

    @property
    def is_committed(self) -> bool:
        return self.phase is Phase.ROLLING

    @property
    def due(self) -> float:
        """When the next one may begin; inf: none was asked for, or one is running."""
        return math.inf if self.is_running else min(self._due, self._latest)

    def ask(self, asker: int, now: float) -> None:
        """One more request. Those that come during a reload, or while one is due, are one reload."""
        if not self.is_running and self._due == math.inf:
            self._due = now
        else:
            self._due = now + QUIET_INTERVAL
            self._latest = min(self._latest, now + LONGEST_WAIT)
        if asker != NOBODY:
            self._waiting.append(asker)

    def forget(self, asker: int) -> None:
        """It waits no longer; the reload that it asked for goes on, or begins as it would have."""
        for askers in (self._askers, self._waiting):
            if asker in askers:
                askers.remove(asker)

    def begin(self) -> None:
        """For everybody who has asked so far."""
        self.phase = Phase.PREPARING
        self._askers, self._waiting = self._waiting, []
        self._due = self._latest = math.inf

    def commit(self, deadline: float) -> Prepared:
        """The generation that was prepared is the present one; its workers are to be there by ``deadline``."""
        assert self.prepared is not None
        prepared, self.prepared = self.prepared, None
        self.phase = Phase.ROLLING
        self.closes = self.closes or prepared.closes
        self.deadline = deadline
        return prepared

    def end(self, now: float, failure: str = "") -> list[Action]:
        """It has succeeded, or failed for that reason: say so, to the log and to all who asked."""
        text, _, details = failure.partition("\n")
        say = Say("ERROR", text, details) if failure else Say("INFO", "reload done")
        answers: list[Action] = [Answer(asker, not failure, failure) for asker in self._askers]
        self.reloads += not failure
        self.reloads_failed += bool(failure)
        self.last = Attempt(not failure, failure, now)
        self.phase, self.prepared, self.deadline, self._askers = Phase.NONE, None, math.inf, []
        return [say, *answers]

    def give_up(self, now: float, reason: str) -> list[Action]:
        """The service ends: so does what runs, and what was asked for will not begin."""
        self._askers += self._waiting
        self._waiting = []
        self._due = self._latest = math.inf
        return self.end(now, reason) if self.is_running or self._askers else []
