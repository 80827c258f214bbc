"""What the pool remembers of upgrades: whether one is under way, for whom, until when; how the last one ended. Pure.

The new master is started beside the old workers, which serve on until it is ready; then they leave. ``pool.py`` says
when, ``upgrader.py`` does it.
"""

import math
from dataclasses import dataclass

from poolserver.events import NOBODY, Action, Answer, Predecessor, Say
from poolserver.reload import Attempt


@dataclass
class Upgrade:
    """One for the life of a pool."""

    is_running: bool = False
    deadline: float = math.inf
    """When the new master must be ready."""
    last: Attempt | None = None
    predecessor: Predecessor = Predecessor.GONE
    """What its workers still count is told to us alone: it is counted as long as we are there."""
    predecessor_pid: int = 0
    _asker: int = NOBODY

    def obstacle(self) -> str:
        """Why none can begin now, or nothing."""
        if self.is_running:
            return "another upgrade is under way"
        if self.predecessor in (Predecessor.HOLDS, Predecessor.SILENT):
            what = f"the master before this one (pid {self.predecessor_pid}) {self.predecessor.value}"
            return f"{what}; wait for it, have it go on (SIGCONT), or kill it"
        return ""

    def begin(self, asker: int, deadline: float) -> None:
        self.is_running, self.deadline, self._asker = True, deadline, asker

    def end(self, now: float, failure: str = "") -> list[Action]:
        """The new master has taken over, or the upgrade failed for that reason: say so, to the log and to who asked."""
        text, _, details = failure.partition("\n")
        actions: list[Action] = [Say("ERROR", text, details)] if failure else []
        if self._asker != NOBODY:
            actions.append(Answer(self._asker, not failure, failure))
        self.last = Attempt(not failure, failure, now)
        self.is_running, self.deadline, self._asker = False, math.inf, NOBODY
        return actions
