"""The decisions of the supervisor, pure: slots, states, back-off, stop ladder.

A state × event table. No operating system here: time is passed in, what is to be done comes out as actions, and
``master.py`` carries them out. "What happens when a worker dies while it drains?" has one cell: ``_TABLE``.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from poolserver.commands import Command, Order
from poolserver.events import (
    NOBODY,
    Action,
    Announce,
    Answer,
    Asked,
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
from poolserver.roster import Roster
from poolserver.states import Happening, PoolState, Scaling, Slot, Worker, WorkerState

DRAIN_GRACE = 1.5
"""Seconds after ``graceful`` before KILL: a worker cuts its connections at ``graceful`` itself, and says so."""

STOP_GRACE = 2.0
"""Seconds that a worker told to stop now has before KILL."""


@dataclass
class Pool(Roster):
    """The supervisor's mind.

    ``step`` is the only way to change it; ``deadline`` says when to call it next at the latest.
    """

    jitter: Callable[[], float] = random.random
    state: PoolState = PoolState.STARTING
    _was_ever_ready: bool = False
    _boot_failure: Finish = field(default_factory=lambda: Finish(Ending.NO_WORKER_STARTED))
    _ending: Finish = field(default_factory=lambda: Finish(Ending.ASKED))
    _scaling: Scaling | None = None
    _stop_askers: list[int] = field(default_factory=list)
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
        self._settle_scaling()
        self._settle()
        return self._actions

    def deadline(self) -> float | None:
        """When ``step`` must be called again though nothing happens; None: never."""
        times = [worker.deadline for worker in self.workers.values()]
        if self._may_start:
            times += [self.start_time(slot) for slot in self.slots]
        if self._scaling is not None:
            times.append(self._scaling.deadline)
        earliest = min(times, default=math.inf)
        return None if earliest == math.inf else earliest

    def _take(self, event: Event) -> None:
        match event:
            case Command():
                _COMMANDS[event](self, Asked(event, NOBODY))
            case Asked():
                _COMMANDS[event.command](self, event)
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
        slot = self.slot_of(worker)
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
        self._say("ERROR", f"worker {worker.slot} {how}; replacing it")
        self.vacate(worker, self._now)

    def _left(self, worker: Worker, how: str, _reason: str) -> None:
        self._say("INFO", f"worker {worker.slot} {how}")
        self.vacate(worker, self._now)

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
            self.vacate(worker, self._now)
        else:
            self._failed_to_start(worker, how, reason)

    def _stop(self, asked: Asked) -> None:
        self._stop_askers.append(asked.asker)
        if not self.is_leaving:
            self._give_up_scaling("the service is stopping")
            self.state = PoolState.DRAINING
            self._say("INFO", f"stopping: open connections have {self.policy.graceful_timeout:g} s to finish")
            self._actions.append(CloseDoor())
            for worker in list(self.workers.values()):
                self._retire(worker, Order.DRAIN)

    def _stop_now(self, asked: Asked) -> None:
        self._stop_askers.append(asked.asker)
        if self.state is not PoolState.STOPPING:
            self._give_up_scaling("the service is stopping")
            self.state = PoolState.STOPPING
            self._say("INFO", "stopping now: open connections are cut")
            for worker in list(self.workers.values()):
                self._dismiss(worker)

    def _more(self, asked: Asked) -> None:
        self._scale(replace(asked, number=len(self.slots) + 1))

    def _fewer(self, asked: Asked) -> None:
        if len(self.slots) == 1 and not self._why_not_scale():
            self._say("INFO", "one worker is left, and stays")
        else:
            self._scale(replace(asked, number=len(self.slots) - 1))

    def _scale(self, asked: Asked) -> None:
        reason = self._why_not_scale() or ("" if asked.number >= 1 else "want at least 1 worker")
        if reason:
            self._refuse(asked, f"cannot scale: {reason}")
            return
        self._give_up_scaling(f"overtaken: {asked.number} workers were asked for meanwhile")
        self._say("INFO", f"scaling from {len(self.slots)} to {asked.number} workers")
        for number in range(len(self.slots), asked.number):
            self.slots.append(Slot(number, due=self._now))
        del self.slots[asked.number :]
        for worker in [each for each in self.workers.values() if self.slot_of(each) is None]:
            self._retire(worker, Order.RETIRE)
        self._scaling = Scaling(asked.asker, asked.number, self._now + self.policy.boot_timeout)

    def _why_not_scale(self) -> str:
        if self.policy.resident:
            return "everything runs in this one process (workers = 0)"
        return "the service is stopping" if self.is_leaving else ""

    def _settle_scaling(self) -> None:
        scaling = self._scaling
        if scaling is None:
            return
        if self.ready_count == scaling.number:
            self._answer(scaling.asker)
            self._scaling = None
        elif self._now >= scaling.deadline:
            self._give_up_scaling(f"{self.ready_count} of {scaling.number} workers accept by now; trying goes on")

    def _give_up_scaling(self, reason: str) -> None:
        if self._scaling is not None:
            self._answer(self._scaling.asker, reason)
            self._scaling = None

    def _reopen(self, asked: Asked) -> None:
        self._actions.append(ReopenLogs())
        for worker in self.workers.values():
            if worker.state in (WorkerState.READY, WorkerState.RETIRING):
                self._actions.append(Send(worker.serial, Order.REOPEN))
        self._answer(asked.asker)

    def _unsupported(self, asked: Asked) -> None:
        self._refuse(asked, f"{asked.command.value} is not in this version; restart to apply changes")

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

    def _fork_failed(self, worker: Worker, reason: str) -> None:
        slot = self.slot_of(worker)
        if slot is not None:
            slot.failures = max(slot.failures, 1)  # trying at once would only fail again
            slot.put_off(self._now, self.jitter())
        self._say("ERROR", f"worker {worker.slot} could not be forked: {reason}")
        self._boot_failure = Finish(Ending.NO_FORK, reason)

    def _listener_lost(self, reason: str) -> None:
        if not self.is_leaving:
            self._ending = Finish(Ending.LISTENER_LOST, reason)
        self._say("CRITICAL", f"{reason}; stopping, so that whoever supervises can start afresh")
        self._stop(Asked(Command.STOP, NOBODY))

    @property
    def _may_start(self) -> bool:
        """At the very first boot nothing is retried until one worker has shown that it can be done."""
        return not self.is_leaving and (self._was_ever_ready or not any(slot.failures for slot in self.slots))

    def _start_due(self) -> None:
        for slot in self.slots:
            if self._may_start and self.start_time(slot) <= self._now:
                self._actions.append(Start(self.enlist(slot, self._now).serial, slot.number))

    def _settle(self) -> None:
        if self.state is PoolState.STARTING and self.is_whole:
            self.state = PoolState.SERVING
            self._actions.append(Announce())
        if self.workers or self.state is PoolState.STOPPED:
            return
        hopeless = not self.is_leaving and not self._may_start
        if hopeless or self.is_leaving:
            self.state = PoolState.STOPPED
            self._give_up_scaling("the service has ended")
            for asker in self._stop_askers:
                self._answer(asker)
            self._actions.append(self._boot_failure if hopeless else self._ending)

    def _refuse(self, asked: Asked, reason: str) -> None:
        self._say("WARNING", reason)
        self._answer(asked.asker, reason)

    def _answer(self, asker: int, reason: str = "") -> None:
        """``reason``: why it did not happen; empty: it did."""
        if asker != NOBODY:
            self._actions.append(Answer(asker, not reason, reason))

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

_COMMANDS: dict[Command, Callable[[Pool, Asked], None]] = {
    Command.STOP: Pool._stop,
    Command.STOP_NOW: Pool._stop_now,
    Command.MORE: Pool._more,
    Command.FEWER: Pool._fewer,
    Command.SCALE: Pool._scale,
    Command.REOPEN: Pool._reopen,
    Command.RELOAD: Pool._unsupported,
    Command.UPGRADE: Pool._unsupported,
}
