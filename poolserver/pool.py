"""The decisions of the supervisor, pure: slots, states, back-off, stop ladder.

A state × event table. No operating system here: time is passed in, what is to be done comes out as actions, and
``master.py`` carries them out. "What happens when a worker dies while it drains?" has one cell: ``_TABLE``.
"""

import collections
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from poolserver.commands import Command, Order
from poolserver.events import (
    Action,
    Announce,
    CloseDoor,
    Ending,
    Event,
    Finish,
    ForkFailed,
    ListenerLost,
    ReopenLogs,
    Say,
    Send,
    Start,
    WorkerExited,
    WorkerReady,
)
from poolserver.states import Happening, Policy, PoolState, Slot, Worker, WorkerState

RESPAWNS_PER_SECOND = 20
"""Replacements of workers that had been ready, for the whole pool: a poisonous request neither empties it nor burns
the machine."""

DRAIN_GRACE = 1.5
"""Seconds after ``graceful`` before KILL: a worker cuts its connections at ``graceful`` itself, and says so."""

STOP_GRACE = 2.0
"""Seconds that a worker told to stop now has before KILL."""


@dataclass
class Pool:
    """The supervisor's mind.

    ``step`` is the only way to change it; ``deadline`` says when to call it next at the latest.
    """

    policy: Policy
    jitter: Callable[[], float] = random.random
    state: PoolState = PoolState.STARTING
    workers: dict[int, Worker] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    respawns: int = 0
    _was_ever_ready: bool = False
    _boot_failure: Finish = field(default_factory=lambda: Finish(Ending.NO_WORKER_STARTED))
    _ending: Finish = field(default_factory=lambda: Finish(Ending.ASKED))
    _next_serial: int = 1
    _recent: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=RESPAWNS_PER_SECOND))
    _now: float = 0.0
    _actions: list[Action] = field(default_factory=list)
    _untold: list[Action] = field(default_factory=list)  # failures at the first boot: if no worker starts, Finish tells

    def __post_init__(self) -> None:
        self.slots = [Slot(number) for number in range(self.policy.workers)]

    @property
    def is_leaving(self) -> bool:
        """Stopping is a state, not a loop: events are taken in it like in any other."""
        return self.state in (PoolState.DRAINING, PoolState.STOPPING, PoolState.STOPPED)

    def step(self, event: Event, now: float) -> list[Action]:
        """Take ``event`` at ``now`` (monotonic seconds) and say what is to be done, in order."""
        self._now = now
        self._actions = []
        if self.state is PoolState.STOPPED:
            return []
        if event is not None:
            self._take(event)
        for worker in [each for each in self.workers.values() if each.deadline <= now]:
            self._befall(worker, Happening.OVERDUE, "", "")
        self._start_due()
        self._settle()
        return self._actions

    def deadline(self) -> float | None:
        """When ``step`` must be called again though nothing happens; None: never."""
        times = [worker.deadline for worker in self.workers.values()]
        if self._may_start:
            times += [self._start_time(slot) for slot in self.slots if slot.due is not None]
        earliest = min(times, default=math.inf)
        return None if earliest == math.inf else earliest

    def _take(self, event: Event) -> None:
        match event:
            case Command():
                _COMMANDS[event](self)
            case WorkerReady(serial):
                self._befall(self.workers[serial], Happening.READY, "", "")
            case WorkerExited(serial, how, reason):
                self._befall(self.workers.pop(serial), Happening.EXITED, how, reason)
            case ForkFailed(serial, reason):
                self._fork_failed(self.workers.pop(serial), reason)
            case ListenerLost(serial, reason):
                self.workers.pop(serial)
                self._listener_lost(reason)

    def _befall(self, worker: Worker, happening: Happening, how: str, reason: str) -> None:
        act = _TABLE.get((worker.state, happening))
        if act is not None:
            act(self, worker, how, reason)

    def _became_ready(self, worker: Worker, _how: str, _reason: str) -> None:
        worker.state = WorkerState.READY
        worker.was_ready = self._was_ever_ready = True
        worker.deadline = math.inf
        self._actions += self._untold
        self._untold = []
        slot = self._slot_of(worker)
        if slot is not None:
            slot.failures = 0

    def _ready_too_late(self, worker: Worker, _how: str, _reason: str) -> None:
        """Told to leave while its ready byte was on the way: it may have a connection, so it has the time of one
        that drains."""
        if self.state is not PoolState.STOPPING:
            worker.state = WorkerState.RETIRING
            worker.deadline = self._now + self.policy.graceful_timeout + DRAIN_GRACE

    def _failed_to_start(self, worker: Worker, how: str, reason: str) -> None:
        """A death before it was ready: back off, for the next one will most likely fare alike."""
        slot = self._slot_of(worker)
        if slot is None or self._is_taken(slot):
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
        self._say("ERROR", f"worker {worker.slot} {how}; replacing it")
        self._vacate(worker)

    def _left(self, worker: Worker, how: str, _reason: str) -> None:
        self._say("INFO", f"worker {worker.slot} {how}")
        self._vacate(worker)

    def _boot_overdue(self, worker: Worker, _how: str, _reason: str) -> None:
        worker.killed_for = f"was not accepting within timeouts.boot = {self.policy.boot_timeout:g} s"
        self._kill(worker)

    def _drain_overdue(self, worker: Worker, _how: str, _reason: str) -> None:
        limit = self.policy.graceful_timeout
        self._say("WARNING", f"worker {worker.slot} did not leave within {limit:g} s; killing it")
        self._kill(worker)

    def _stop_overdue(self, worker: Worker, _how: str, _reason: str) -> None:
        self._say("WARNING", f"worker {worker.slot} did not stop within {STOP_GRACE:g} s; killing it")
        self._kill(worker)

    def _buried(self, worker: Worker, how: str, reason: str) -> None:
        """One that we killed: if it never was ready, that is a failed start like any other."""
        if worker.was_ready or self.is_leaving:
            self._vacate(worker)
        else:
            self._failed_to_start(worker, how, reason)

    def _stop(self) -> None:
        if not self.is_leaving:
            self.state = PoolState.DRAINING
            self._say("INFO", f"stopping: open connections have {self.policy.graceful_timeout:g} s to finish")
            self._actions.append(CloseDoor())
            for worker in list(self.workers.values()):
                self._retire(worker, Order.DRAIN)

    def _stop_now(self) -> None:
        if self.state not in (PoolState.STOPPING, PoolState.STOPPED):
            self.state = PoolState.STOPPING
            self._say("INFO", "stopping now: open connections are cut")
            for worker in list(self.workers.values()):
                self._dismiss(worker)

    def _more(self) -> None:
        if self._can_scale("add"):
            self.slots.append(Slot(len(self.slots), due=self._now))
            self._say("INFO", f"one worker more: {len(self.slots)}")

    def _fewer(self) -> None:
        if not self._can_scale("take away"):
            return
        if len(self.slots) == 1:
            self._say("INFO", "one worker is left, and stays")
            return
        slot = self.slots.pop()
        self._say("INFO", f"one worker less: {len(self.slots)}")
        for worker in [each for each in self.workers.values() if each.slot == slot.number]:
            self._retire(worker, Order.RETIRE)

    def _can_scale(self, verb: str) -> bool:
        if self.policy.resident:
            self._say("WARNING", f"cannot {verb} a worker: everything runs in this one process (workers = 0)")
        return not (self.policy.resident or self.is_leaving)

    def _reopen(self) -> None:
        self._actions.append(ReopenLogs())
        for worker in self.workers.values():
            if worker.state in (WorkerState.READY, WorkerState.RETIRING):
                self._actions.append(Send(worker.serial, Order.REOPEN))

    def _unsupported(self) -> None:
        self._say(
            "WARNING",
            "reload and upgrade are not in this version: nothing is changed; restart to apply changes",
        )

    def _retire(self, worker: Worker, order: Order) -> None:
        if worker.state is WorkerState.STARTING:
            self._dismiss(worker)
        elif worker.state is WorkerState.READY:
            worker.state = WorkerState.RETIRING
            worker.deadline = self._now + self.policy.graceful_timeout + DRAIN_GRACE
            self._actions.append(Send(worker.serial, order))
        elif order is Order.DRAIN and worker.state is WorkerState.RETIRING:
            self._actions.append(Send(worker.serial, order))  # now the queue is its affair too

    def _dismiss(self, worker: Worker) -> None:
        """Leave at once. One that is starting has nothing to finish: TERM ends it, where QUIT would dump core."""
        if worker.state in (WorkerState.STARTING, WorkerState.READY, WorkerState.RETIRING):
            order = Order.DRAIN if worker.state is WorkerState.STARTING else Order.STOP_NOW
            worker.state = WorkerState.STOPPING
            worker.deadline = self._now + STOP_GRACE
            self._actions.append(Send(worker.serial, order))

    def _kill(self, worker: Worker) -> None:
        worker.state = WorkerState.KILLED
        worker.deadline = math.inf
        self._actions.append(Send(worker.serial, Order.KILL))

    def _vacate(self, worker: Worker) -> None:
        """Its slot is free, unless a replacement is there or due already (a retiring worker shares its slot)."""
        slot = self._slot_of(worker)
        if slot is not None and slot.due is None and not self._is_taken(slot):
            slot.due = self._now

    def _is_taken(self, slot: Slot) -> bool:
        serving = (WorkerState.STARTING, WorkerState.READY)
        return any(each.slot == slot.number and each.state in serving for each in self.workers.values())

    def _slot_of(self, worker: Worker) -> Slot | None:
        return self.slots[worker.slot] if worker.slot < len(self.slots) else None

    def _fork_failed(self, worker: Worker, reason: str) -> None:
        slot = self._slot_of(worker)
        if slot is not None:
            slot.failures = max(slot.failures, 1)  # trying at once would only fail again
            slot.put_off(self._now, self.jitter())
        self._say("ERROR", f"worker {worker.slot} could not be forked: {reason}")
        self._boot_failure = Finish(Ending.NO_FORK, reason)

    def _listener_lost(self, reason: str) -> None:
        if not self.is_leaving:
            self._ending = Finish(Ending.LISTENER_LOST, reason)
        self._say("CRITICAL", f"{reason}; stopping, so that whoever supervises can start afresh")
        self._stop()

    @property
    def _may_start(self) -> bool:
        """At the very first boot nothing is retried until one worker has shown that it can be done."""
        return not self.is_leaving and (self._was_ever_ready or not any(slot.failures for slot in self.slots))

    def _start_time(self, slot: Slot) -> float:
        """When this slot's worker may start: when it is due and the pool's rate allows."""
        due = slot.due or 0.0
        if slot.failures or len(self._recent) < RESPAWNS_PER_SECOND:
            return due
        return max(due, self._recent[0] + 1.0)

    def _start_due(self) -> None:
        for slot in self.slots:
            if self._may_start and slot.due is not None and self._start_time(slot) <= self._now:
                self._start(slot)

    def _start(self, slot: Slot) -> None:
        if slot.has_started:
            self.respawns += 1
            if not slot.failures:
                self._recent.append(self._now)
        slot.has_started = True
        slot.due = None
        worker = Worker(self._next_serial, slot.number, WorkerState.STARTING, self._now + self.policy.boot_timeout)
        self._next_serial += 1
        self.workers[worker.serial] = worker
        self._actions.append(Start(worker.serial, slot.number))

    def _settle(self) -> None:
        if self.state is PoolState.STARTING and self._is_whole:
            self.state = PoolState.SERVING
            self._actions.append(Announce())
        if self.workers or self.state is PoolState.STOPPED:
            return
        hopeless = not self.is_leaving and not self._may_start
        if hopeless or self.is_leaving:
            self.state = PoolState.STOPPED
            self._actions.append(self._boot_failure if hopeless else self._ending)

    @property
    def _is_whole(self) -> bool:
        ready = {worker.slot for worker in self.workers.values() if worker.state is WorkerState.READY}
        return len(ready) == len(self.slots)

    def _say(self, level: str, text: str, details: str = "") -> None:
        self._actions.append(Say(level, text, details))


_S, _H = WorkerState, Happening
_TABLE: dict[tuple[WorkerState, Happening], Callable[[Pool, Worker, str, str], None]] = {
    (_S.STARTING, _H.READY): Pool._became_ready,
    (_S.STARTING, _H.EXITED): Pool._failed_to_start,
    (_S.STARTING, _H.OVERDUE): Pool._boot_overdue,
    (_S.READY, _H.EXITED): Pool._died,
    (_S.RETIRING, _H.EXITED): Pool._left,
    (_S.RETIRING, _H.OVERDUE): Pool._drain_overdue,
    (_S.STOPPING, _H.READY): Pool._ready_too_late,
    (_S.STOPPING, _H.EXITED): Pool._left,
    (_S.STOPPING, _H.OVERDUE): Pool._stop_overdue,
    (_S.KILLED, _H.EXITED): Pool._buried,
}
"""A missing cell: nothing is to be done (a worker that retires before its ready byte was read, for one)."""

_COMMANDS: dict[Command, Callable[[Pool], None]] = {
    Command.STOP: Pool._stop,
    Command.STOP_NOW: Pool._stop_now,
    Command.MORE: Pool._more,
    Command.FEWER: Pool._fewer,
    Command.REOPEN: Pool._reopen,
    Command.RELOAD: Pool._unsupported,
    Command.UPGRADE: Pool._unsupported,
}
