"""The roster: which worker sits in which slot, when a slot's next worker may start, the orders that go to a worker.

Pure. What befalls a worker is ``fates.py``'s, what is to become of the service ``pool.py``'s.
"""

import collections
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from poolserver.commands import Order
from poolserver.events import NOBODY, Action, Answer, Asked, Say, Send, Start, Withdraw
from poolserver.reload import Reload
from poolserver.states import Policy, PoolState, Slot, Worker, WorkerState
from poolserver.upgrade import Upgrade

RESPAWNS_PER_SECOND = 20
"""Replacements of workers that had been ready, for the whole pool: a poisonous request neither empties it nor burns
the machine."""

DRAIN_GRACE = 1.5
"""Seconds after ``graceful`` before KILL: a worker cuts its connections at ``graceful`` itself, and says so."""

STOP_GRACE = 2.0
"""Seconds that a worker told to stop now has before KILL."""


@dataclass
class Roster:
    """The slots and their workers, from each one's fork to its burial; and the actions of the present step."""

    policy: Policy
    workers: dict[int, Worker] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    generation: int = 1
    respawns: int = 0
    """Replacements of workers that died or hung; planned ones (a reload, recycling) are not counted."""
    reload: Reload = field(default_factory=Reload)
    upgrade: Upgrade = field(default_factory=Upgrade)
    _stage: PoolState = PoolState.STARTING
    _stop_askers: set[int] = field(default_factory=set)
    _next_serial: int = 1
    _recent: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=RESPAWNS_PER_SECOND))
    _now: float = 0.0
    _actions: list[Action] = field(default_factory=list)

    @property
    def is_leaving(self) -> bool:
        """Stopping is a state, not a loop: events are taken in it like in any other."""
        return self._stage in (PoolState.DRAINING, PoolState.STOPPING, PoolState.STOPPED)

    @property
    def ready_count(self) -> int:
        """How many workers accept."""
        return sum(worker.state is WorkerState.READY for worker in self.workers.values())

    @property
    def is_whole(self) -> bool:
        """Whether every slot has a worker that accepts."""
        ready = {worker.slot for worker in self.workers.values() if worker.state is WorkerState.READY}
        return len(ready & {slot.number for slot in self.slots}) == len(self.slots)

    def outdated(self, *states: WorkerState) -> list[Worker]:
        """Workers of older generations, of these states or of any."""
        return [
            worker
            for worker in self.workers.values()
            if worker.generation < self.generation and (not states or worker.state in states)
        ]

    def slot_of(self, worker: Worker) -> Slot | None:
        """None where the slot was scaled away under its worker."""
        return self.slots[worker.slot] if worker.slot < len(self.slots) else None

    def in_slot(self, slot: int, *states: WorkerState) -> list[Worker]:
        """Who sits there, of these states."""
        return [each for each in self.workers.values() if each.slot == slot and each.state in states]

    def is_taken(self, slot: Slot) -> bool:
        """Whether somebody serves there and stays, or is about to."""
        ready = self.in_slot(slot.number, WorkerState.READY)
        return bool(self.in_slot(slot.number, WorkerState.STARTING)) or not all(each.is_outgoing for each in ready)

    def vacate(self, worker: Worker) -> None:
        """Its slot is free, unless a replacement is there or due already (a retiring worker shares its slot)."""
        slot = self.slot_of(worker)
        if slot is not None and slot.due is None and not self.is_taken(slot):
            slot.due = self._now

    def replace(self, worker: Worker) -> None:
        """It serves until another accepts in its slot, which is to start now."""
        worker.is_outgoing = True
        self.vacate(worker)

    def start_time(self, slot: Slot) -> float:
        """When this slot's next worker may start: when it is due and the pool's rate allows; inf while it has one."""
        if slot.due is None:
            return math.inf
        if slot.failures or len(self._recent) < RESPAWNS_PER_SECOND or self._is_planned(slot):
            return slot.due
        return max(slot.due, self._recent[0] + 1.0)

    def start(self, slot: Slot) -> None:
        """Its next worker, of the present generation."""
        is_respawn = slot.has_started and not self._is_planned(slot)
        self.respawns += is_respawn
        if is_respawn and not slot.failures:
            self._recent.append(self._now)
        slot.has_started = True
        slot.due = None
        self._enlist(slot.number, self.generation, self.policy, is_canary=False).is_respawn = is_respawn

    def start_canary(self, policy: Policy) -> None:
        """The first worker of the next generation, beside whoever is in its slot."""
        self._enlist(0, self.generation + 1, policy, is_canary=True)

    def _enlist(self, slot: int, generation: int, policy: Policy, *, is_canary: bool) -> Worker:
        state = WorkerState.CANARY if is_canary else WorkerState.STARTING
        worker = Worker(self._next_serial, slot, state, self._now + policy.boot_timeout, policy, generation)
        self._next_serial += 1
        self.workers[worker.serial] = worker
        self._actions.append(Start(worker.serial, slot, generation, policy.lanes, is_canary))
        return worker

    def _is_planned(self, slot: Slot) -> bool:
        """Whether its next worker replaces one that serves."""
        return bool(self.in_slot(slot.number, WorkerState.READY))

    # Orders

    def retire(self, worker: Worker, order: Order) -> None:
        """Finish what is open, and leave; with ``DRAIN`` the accept queue is its affair too."""
        if worker.state in (WorkerState.STARTING, WorkerState.CANARY):
            self.dismiss(worker)
        elif worker.state is WorkerState.HUNG and worker.is_silent:
            self.kill(worker)
        elif worker.is_accepting:
            order = self._withdrawn(worker, order)
            worker.state = WorkerState.RETIRING
            worker.deadline = self._now + worker.policy.graceful_timeout + DRAIN_GRACE
            self._send(worker, order)
        elif order is Order.DRAIN and worker.state is WorkerState.RETIRING:
            self._send(worker, order)

    def dismiss(self, worker: Worker) -> None:
        """Leave at once. One that is starting has nothing to finish: TERM ends it, where QUIT would dump core."""
        if worker.state in (WorkerState.STOPPING, WorkerState.KILLED):
            return
        is_booting = worker.state in (WorkerState.STARTING, WorkerState.CANARY)
        worker.state = WorkerState.STOPPING
        worker.deadline = self._now + STOP_GRACE
        self._send(worker, Order.DRAIN if is_booting else Order.STOP_NOW)

    def kill(self, worker: Worker) -> None:
        worker.state = WorkerState.KILLED
        worker.deadline = math.inf
        self._send(worker, Order.KILL)

    def _withdrawn(self, worker: Worker, order: Order) -> Order:
        """Where listeners go with the old generation, its last worker serves what is queued there."""
        others = self.outdated(WorkerState.STARTING, WorkerState.READY, WorkerState.HUNG)
        if self.reload.closes and others == [worker]:
            self._actions.append(Withdraw())
            self.reload.closes = False
            return Order.DRAIN
        return order

    def _send(self, worker: Worker, order: Order) -> None:
        self._actions.append(Send(worker.serial, order))

    # Words

    def answer(self, asker: int, reason: str = "") -> None:
        """``reason``: why it did not happen; empty: it did."""
        if asker != NOBODY:
            self._actions.append(Answer(asker, not reason, reason))

    def refuse(self, asked: Asked, reason: str) -> None:
        self.say("WARNING", reason)
        self.answer(asked.asker, reason)

    def forget(self, asker: int) -> None:
        """It has left. Those who come, ask and leave while a stop or a reload takes its time would become many."""
        self._stop_askers.discard(asker)
        self.reload.forget(asker)

    def say(self, level: str, text: str, details: str = "") -> None:
        self._actions.append(Say(level, text, details))

    def do(self, actions: Iterable[Action]) -> None:
        self._actions += actions
