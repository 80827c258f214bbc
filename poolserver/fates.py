"""What can befall a worker, and what is done about it: a state × event table. Pure.

"What happens when a worker dies while it drains?" has one cell: ``_TABLE``.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from poolserver.commands import Order
from poolserver.events import (
    Abandon,
    Action,
    Commit,
    Ending,
    Event,
    Examine,
    Finish,
    ForkFailed,
    Say,
    Send,
    WorkerBooted,
    WorkerExited,
    WorkerReady,
    WorkerRevived,
    WorkerSick,
    WorkerSpent,
)
from poolserver.roster import DRAIN_GRACE, STOP_GRACE, Roster
from poolserver.states import Happening, PoolState, Slot, Worker, WorkerState


@dataclass
class Fates(Roster):
    """The half of the supervisor's mind that looks at single workers."""

    jitter: Callable[[], float] = random.random
    _was_ever_ready: bool = False
    _boot_failure: Finish = field(default_factory=lambda: Finish(Ending.NO_WORKER_STARTED))
    _untold: list[Action] = field(default_factory=list)  # failures at the first boot: if no worker starts, Finish tells

    def take_fact(self, event: Event) -> None:
        """What has happened to a worker."""
        match event:
            case WorkerBooted(serial):
                self.befall(self.workers[serial], Happening.BOOTED)
            case WorkerReady(serial):
                self.befall(self.workers[serial], Happening.READY)
            case WorkerExited(serial, how, reason):
                self.befall(self.workers.pop(serial), Happening.EXITED, how, reason)
            case WorkerSpent(serial, why):
                if serial in self.workers:
                    self.workers[serial].spent = why
            case WorkerSick(serial, why, is_silent):
                self.fell_sick(self.workers[serial], why, is_silent=is_silent)
            case WorkerRevived(serial):
                self.revived(self.workers[serial])
            case ForkFailed(serial, reason):
                self.fork_failed(self.workers.pop(serial), reason)

    def befall(self, worker: Worker, happening: Happening, how: str = "", reason: str = "") -> None:
        """A missing cell: nothing is to be done (a worker that retires before its ready byte was read, for one)."""
        act = _TABLE.get((worker.state, happening))
        if act is not None:
            act(self, worker, how, reason)

    def fork_failed(self, worker: Worker, reason: str) -> None:
        """The system refused: trying at once would only fail again."""
        if worker.state is WorkerState.CANARY:
            self._canary_failed(worker, f"could not be forked: {reason}", "")
            return
        self.respawns -= worker.is_respawn  # nobody was there
        slot = self.slot_of(worker)
        if slot is not None and not self.is_taken(slot):
            slot.failures = max(slot.failures, 1)
            slot.put_off(self._now, self.jitter())
        self.say("ERROR", f"worker {worker.slot} could not be forked: {reason}")
        self._boot_failure = Finish(Ending.NO_FORK, reason)

    def fell_sick(self, worker: Worker, why: str, *, is_silent: bool) -> None:
        """It is replaced first. One that still answers then has its time to finish; a silent one is killed."""
        if not worker.is_accepting:
            return
        worker.is_silent = worker.is_silent or is_silent
        worker.state = WorkerState.HUNG
        self.say("ERROR", f"worker {worker.slot} {why}; replacing it")
        if is_silent:
            self._actions.append(Examine(worker.serial))
        self.replace(worker)

    def revived(self, worker: Worker) -> None:
        """It may finish what it has; a replacement is on its way already."""
        if worker.state is WorkerState.HUNG and worker.is_silent:
            worker.is_silent = False
            self.say("WARNING", f"worker {worker.slot} gives signs of life again; it leaves when it is replaced")

    def _canary_booted(self, worker: Worker, _how: str, _reason: str) -> None:
        """The commit point."""
        prepared = self.reload.commit(math.inf)
        self.generation += 1
        self.policy = prepared.policy
        self.reload.deadline = self._now + self.policy.boot_timeout * self.policy.workers
        self._actions.append(Commit())
        worker.state = WorkerState.STARTING
        self._actions.append(Send(worker.serial, Order.GO))
        self.resize(self.policy.workers)
        self.slots[worker.slot].due = None
        for each in self.in_slot(worker.slot, WorkerState.READY):
            self.replace(each)

    def _canary_failed(self, worker: Worker, how: str, reason: str) -> None:
        """Nothing was changed yet, and nothing is."""
        self._actions.append(Abandon())
        why = reason or f"the first new worker {worker.killed_for or how}"
        self.do(self.reload.end(self._now, f"reload failed, nothing is changed: {why}"))

    def resize(self, workers: int) -> None:
        """So many slots. Who has none any more goes as soon as those that are left all have a worker."""
        for number in range(len(self.slots), workers):
            slot = Slot(number, due=None)
            self.slots.append(slot)
            if not self.is_taken(slot):  # by one that had lost it and has not gone yet
                slot.due = self._now
        del self.slots[workers:]

    def _became_ready(self, worker: Worker, _how: str, _reason: str) -> None:
        worker.state = WorkerState.READY
        worker.was_ready = self._was_ever_ready = True
        worker.deadline = math.inf
        self._actions += self._untold
        self._untold = []
        self.slots[worker.slot].failures = 0  # it has a slot: who loses his is told to leave
        for other in [each for each in self.workers.values() if each.slot == worker.slot and each.is_accepting]:
            if other is not worker:
                self.retire(min(other, worker, key=lambda each: (each.generation, each.serial)), Order.RETIRE)

    def _ready_too_late(self, worker: Worker, _how: str, _reason: str) -> None:
        """Told to leave while its ready byte was on the way: it may have a connection, so it has the time of one
        that drains."""
        if self._stage is not PoolState.STOPPING:
            worker.state = WorkerState.RETIRING
            worker.deadline = self._now + worker.policy.graceful_timeout + DRAIN_GRACE

    def _failed_to_start(self, worker: Worker, how: str, reason: str) -> None:
        """A death before it was ready: back off, for the next one will most likely fare alike."""
        slot = self.slot_of(worker)
        if slot is None or self.is_taken(slot):
            return  # scaled away meanwhile, and perhaps back
        first, _, details = (worker.killed_for or reason or how).partition("\n")
        slot.put_off(self._now, self.jitter())
        delay = (slot.due or self._now) - self._now
        retry = f"; next try in {delay:.1f} s" if self._was_ever_ready else ""
        say = Say("ERROR", f"worker {worker.slot} could not start: {first}{retry}", details)
        (self._actions if self._was_ever_ready else self._untold).append(say)
        self._boot_failure = Finish(Ending.NO_WORKER_STARTED, f"{first}\n{details}".strip())

    def _died(self, worker: Worker, how: str, _reason: str) -> None:
        """A death after it was ready: replaced at once, up to the rate for the whole pool."""
        how, _, details = how.partition("\n")
        self.say("ERROR", f"worker {worker.slot} {how}; replacing it", details)
        self.vacate(worker)

    def _left(self, worker: Worker, how: str, _reason: str) -> None:
        how, _, details = how.partition("\n")
        self.say("INFO", f"worker {worker.slot} {how}", details)
        self.vacate(worker)

    def _boot_overdue(self, worker: Worker, _how: str, _reason: str) -> None:
        limit = f"timeouts.boot = {worker.policy.boot_timeout:g} s"
        worker.killed_for = f"was not accepting within {limit} (poolserver check shows where an import waits)"
        self.kill(worker)

    def _drain_overdue(self, worker: Worker, _how: str, _reason: str) -> None:
        limit = worker.policy.graceful_timeout
        self.say("WARNING", f"worker {worker.slot} did not leave within {limit:g} s; killing it")
        self.kill(worker)

    def _stop_overdue(self, worker: Worker, _how: str, _reason: str) -> None:
        self.say("WARNING", f"worker {worker.slot} did not stop within {STOP_GRACE:g} s; killing it")
        self.kill(worker)

    def _buried(self, worker: Worker, how: str, reason: str) -> None:
        """One that we killed: if it never was ready, that is a failed start like any other."""
        if worker.was_ready or self.is_leaving:
            self.vacate(worker)
        elif worker.generation > self.generation:
            self._canary_failed(worker, how, reason)
        else:
            self._failed_to_start(worker, how, reason)


_S, _H = WorkerState, Happening
_TABLE: dict[tuple[WorkerState, Happening], Callable[[Fates, Worker, str, str], None]] = {
    (_S.CANARY, _H.BOOTED): Fates._canary_booted,
    (_S.CANARY, _H.EXITED): Fates._canary_failed,
    (_S.CANARY, _H.OVERDUE): Fates._boot_overdue,
    (_S.STARTING, _H.READY): Fates._became_ready,
    (_S.STARTING, _H.EXITED): Fates._failed_to_start,
    (_S.STARTING, _H.OVERDUE): Fates._boot_overdue,
    (_S.READY, _H.EXITED): Fates._died,
    (_S.HUNG, _H.EXITED): Fates._died,
    (_S.RETIRING, _H.EXITED): Fates._left,
    (_S.RETIRING, _H.OVERDUE): Fates._drain_overdue,
    (_S.STOPPING, _H.READY): Fates._ready_too_late,
    (_S.STOPPING, _H.EXITED): Fates._left,
    (_S.STOPPING, _H.OVERDUE): Fates._stop_overdue,
    (_S.KILLED, _H.EXITED): Fates._buried,
}
