"""Who is replaced when: workers of older generations after a reload, and those that have served enough. Pure.

Newcomers are ready before their predecessors leave, so the pool is never weaker for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from poolserver.commands import Order
from poolserver.events import Commit, Prepared, Withdraw
from poolserver.fates import Fates
from poolserver.reload import Phase
from poolserver.states import Worker, WorkerState

RELOADED_AT_ONCE = 0.25
"""The part of the pool that a reload replaces at a time: newcomers load the handler while their predecessors serve."""

RECYCLED_AT_ONCE = 0.1
"""The part of the pool that is recycled at a time, those that still drain included."""


@dataclass
class Turnover(Fates):
    """The part of the supervisor's mind that plans."""

    def prepared(self, prepared: Prepared) -> None:
        """Everything is there: boot a canary, or with everything in this process, go on under the new terms."""
        if self.policy.resident:
            self.policy = prepared.policy
            self.generation += 1
            for worker in self.workers.values():
                worker.generation = self.generation
            self._actions.append(Commit())
            self.do(self.reload.end(self._now))
            return
        self.reload.phase = Phase.BOOTING
        self.reload.prepared = prepared
        self.start_canary(prepared.policy)

    def turn_over(self) -> None:
        """Who lost his slot goes; those of older generations, and those that have served enough, are replaced."""
        if self.is_leaving:
            return
        for worker in [each for each in self.workers.values() if self.slot_of(each) is None]:
            if self.is_whole or not worker.is_accepting:
                self.retire(worker, Order.RETIRE)
        outdated = self.outdated(WorkerState.READY)
        for worker in self._next_in_turn(outdated, outdated, RELOADED_AT_ONCE):
            self.replace(worker)
        spent = [each for each in self.workers.values() if each.spent]
        if not self.reload.is_running:
            ready = [each for each in spent if each.state is WorkerState.READY]
            for worker in self._next_in_turn(ready, spent, RECYCLED_AT_ONCE):
                self.say("INFO", f"worker {worker.slot} {worker.spent}; replacing it")
                self.replace(worker)

    def _next_in_turn(self, ready: Sequence[Worker], all_of_them: Sequence[Worker], part: float) -> list[Worker]:
        """Who may go now, if so great a part of the pool, but one in any case, may be on its way out at once."""
        leaving = [each for each in all_of_them if each.is_outgoing or each.state is not WorkerState.READY]
        room = max(0, max(1, int(len(self.slots) * part)) - len(leaving))
        return [each for each in ready if not each.is_outgoing][:room]

    def settle_reload(self) -> None:
        if self.reload.closes and not self.outdated(WorkerState.STARTING, WorkerState.READY, WorkerState.HUNG):
            self.reload.closes = False
            self._actions.append(Withdraw())
        if self.reload.is_committed and self.is_replaced and not self.outdated():
            self.do(self.reload.end(self._now))
        elif self.reload.deadline <= self._now and not self.is_replaced:
            self.do(self.reload.end(self._now, f"reload incomplete: {self._how_far()}; trying goes on"))

    @property
    def is_replaced(self) -> bool:
        """Whether every slot has a worker of the present generation, and nobody else accepts."""
        return self.is_whole and not self.outdated(WorkerState.STARTING, WorkerState.READY, WorkerState.HUNG)

    def _how_far(self) -> str:
        fresh = sum(
            worker.state is WorkerState.READY and worker.generation == self.generation
            for worker in self.workers.values()
        )
        return f"{fresh} of {len(self.slots)} workers replaced"
