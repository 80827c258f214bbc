"""The roster: which worker sits in which slot, and when a slot's next worker may start. Pure; decides nothing.

``pool.py`` decides; this is what it looks at.
"""

import collections
import math
from dataclasses import dataclass, field

from poolserver.states import Policy, Slot, Worker, WorkerState

RESPAWNS_PER_SECOND = 20
"""Replacements of workers that had been ready, for the whole pool: a poisonous request neither empties it nor burns
the machine."""


@dataclass
class Roster:
    """The slots and their workers, from each one's fork to its burial."""

    policy: Policy
    workers: dict[int, Worker] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    respawns: int = 0
    _next_serial: int = 1
    _recent: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=RESPAWNS_PER_SECOND))

    @property
    def ready_count(self) -> int:
        """How many workers accept."""
        return sum(worker.state is WorkerState.READY for worker in self.workers.values())

    @property
    def is_whole(self) -> bool:
        """Whether every slot has a worker that accepts."""
        ready = {worker.slot for worker in self.workers.values() if worker.state is WorkerState.READY}
        return len(ready) == len(self.slots)

    def slot_of(self, worker: Worker) -> Slot | None:
        """None where the slot was scaled away under its worker."""
        return self.slots[worker.slot] if worker.slot < len(self.slots) else None

    def is_taken(self, slot: Slot) -> bool:
        """Whether somebody serves there, or is about to."""
        serving = (WorkerState.STARTING, WorkerState.READY)
        return any(each.slot == slot.number and each.state in serving for each in self.workers.values())

    def vacate(self, worker: Worker, now: float) -> None:
        """Its slot is free, unless a replacement is there or due already (a retiring worker shares its slot)."""
        slot = self.slot_of(worker)
        if slot is not None and slot.due is None and not self.is_taken(slot):
            slot.due = now

    def enlist(self, slot: Slot, now: float) -> Worker:
        """A new worker for ``slot``, to be forked."""
        if slot.has_started:
            self.respawns += 1
            if not slot.failures:
                self._recent.append(now)
        slot.has_started = True
        slot.due = None
        worker = Worker(self._next_serial, slot.number, WorkerState.STARTING, now + self.policy.boot_timeout)
        self._next_serial += 1
        self.workers[worker.serial] = worker
        return worker

    def start_time(self, slot: Slot) -> float:
        """When this slot's next worker may start: when it is due and the pool's rate allows; inf while it has one."""
        if slot.due is None:
            return math.inf
        if slot.failures or len(self._recent) < RESPAWNS_PER_SECOND:
            return slot.due
        return max(slot.due, self._recent[0] + 1.0)
