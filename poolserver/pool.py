"""The decisions of the supervisor, pure: what operators ask, what has happened, what is due.

No operating system here: time is passed in, what is to be done comes out as actions, and ``master.py`` carries them
out. What befalls single workers is ``fates.py``'s.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from poolserver.commands import Command, Order
from poolserver.events import (
    NOBODY,
    Abandon,
    Action,
    Announce,
    Asked,
    AskerLeft,
    CloseDoor,
    Depart,
    Ending,
    EndSuccessor,
    Event,
    Finish,
    ListenerLost,
    NotPrepared,
    Predecessor,
    PredecessorIs,
    Prepare,
    Prepared,
    ReopenLogs,
    Send,
    StartSuccessor,
    SuccessorFailed,
    SuccessorReady,
)
from poolserver.states import Happening, PoolState, Scaling, Slot, WorkerState
from poolserver.turnover import Turnover


@dataclass
class Pool(Turnover):
    """The supervisor's mind.

    ``step`` is the only way to change it; ``deadline`` says when to call it next at the latest.
    """

    _ending: Finish = field(default_factory=lambda: Finish(Ending.ASKED))
    _scaling: Scaling | None = None
    _door_closes: float = math.inf
    """When a stop goes on from accepting (``timeouts.lame_duck``) to draining."""
    _successor: int = 0
    """The master's pid that has taken over; 0: none has."""

    def __post_init__(self) -> None:
        self.slots = [Slot(number) for number in range(self.policy.workers)]

    @property
    def state(self) -> PoolState:
        """Where the service is."""
        if self._stage is PoolState.SERVING and self.reload.is_running:
            return PoolState.RELOADING
        if self._was_ever_ready and not self.is_leaving and any(slot.failures for slot in self.slots):
            return PoolState.DEGRADED
        return self._stage

    def step(self, event: Event, now: float) -> list[Action]:
        """Take ``event`` at ``now`` (monotonic seconds) and say what is to be done, in order."""
        self._now = now
        self._actions = []
        if self._stage is PoolState.STOPPED:
            return []
        if event is not None:
            self._take(event)
        if self._door_closes <= now:
            self._close_door()
        for worker in [each for each in self.workers.values() if each.deadline <= now]:
            self.befall(worker, Happening.OVERDUE)
        self.turn_over()
        self._start_due()
        self._begin_reload()
        self.settle_reload()
        self._settle_upgrade()
        self._settle_scaling()
        self._settle()
        return self._actions

    def deadline(self) -> float | None:
        """When ``step`` must be called again though nothing happens; None: never."""
        times = [self._door_closes, *(worker.deadline for worker in self.workers.values())]
        if self._may_start:
            times += [self.start_time(slot) for slot in self.slots]
        if self._may_reload:
            times.append(self.reload.due)
        if self._scaling is not None:
            times.append(self._scaling.deadline)
        if not self.is_replaced:
            times.append(self.reload.deadline)
        times.append(self.upgrade.deadline)
        earliest = min(times, default=math.inf)
        return None if earliest == math.inf else earliest

    def _take(self, event: Event) -> None:
        match event:
            case Command():
                _COMMANDS[event](self, Asked(event, NOBODY))
            case Asked():
                _COMMANDS[event.command](self, event)
            case AskerLeft(asker):
                self.forget(asker)
            case ListenerLost(serial, reason):
                self.workers.pop(serial)
                self._listener_lost(reason)
            case Prepared():
                self.prepared(event)
            case NotPrepared(reason):
                self.do(self.reload.end(self._now, f"reload failed, nothing is changed: {reason}"))
            case SuccessorReady():
                self._depart(event)
            case SuccessorFailed(reason):
                self._upgrade_failed(reason)
            case PredecessorIs(state):
                self.upgrade.predecessor = state
            case _:
                self.take_fact(event)

    # Stop

    def _stop(self, asked: Asked) -> None:
        if self._is_not_ours(asked):
            return
        self._stop_askers.add(asked.asker)
        if not self.is_leaving:
            self._give_up_waiting()
            self._stage = PoolState.DRAINING
            self._door_closes = self._now + self.policy.lame_duck_timeout
            if self.policy.lame_duck_timeout:
                self.say("INFO", f"stopping: accepting for {self.policy.lame_duck_timeout:g} s more")

    def _close_door(self) -> None:
        self._door_closes = math.inf
        self.say("INFO", f"stopping: open connections have {self.policy.graceful_timeout:g} s to finish")
        self._actions.append(CloseDoor())
        for worker in list(self.workers.values()):
            self.retire(worker, Order.DRAIN)

    def _is_not_ours(self, asked: Asked) -> bool:
        """Whoever has reached us by the control socket means the service, which is another master's by now."""
        if self._successor == 0 or asked.asker == NOBODY:
            return False
        self.refuse(asked, f"this master has handed over to pid {self._successor}, and is leaving: ask again")
        return True

    def _stop_now(self, asked: Asked) -> None:
        if self._is_not_ours(asked):
            return
        self._stop_askers.add(asked.asker)
        if self._stage is not PoolState.STOPPING:
            self._give_up_waiting()
            self._stage = PoolState.STOPPING
            self._door_closes = math.inf
            self.say("INFO", "stopping now: open connections are cut")
            for worker in list(self.workers.values()):
                self.dismiss(worker)

    def _give_up_waiting(self) -> None:
        """What was asked for and has not happened will not."""
        self._give_up_scaling("the service is stopping")
        if self.upgrade.is_running:
            self._actions.append(EndSuccessor())
            self.do(self.upgrade.end(self._now, "upgrade given up: the service is stopping"))
        if self.reload.prepared is not None:
            self._actions.append(Abandon())
        for worker in [each for each in self.workers.values() if each.state is WorkerState.CANARY]:
            self.dismiss(worker)
        self.do(self.reload.give_up(self._now, "reload given up: the service is stopping"))

    def _listener_lost(self, reason: str) -> None:
        if not self.is_leaving:
            self._ending = Finish(Ending.LISTENER_LOST, reason)
        self.say("CRITICAL", f"{reason}; stopping, so that whoever supervises can start afresh")
        self._stop(Asked(Command.STOP, NOBODY))

    # Scale

    def _more(self, asked: Asked) -> None:
        self._scale(replace(asked, number=len(self.slots) + 1))

    def _fewer(self, asked: Asked) -> None:
        if len(self.slots) == 1 and not self._why_not_scale(1):
            self.refuse(asked, "one worker is left, and stays")
        else:
            self._scale(replace(asked, number=len(self.slots) - 1))

    def _scale(self, asked: Asked) -> None:
        if reason := self._why_not_scale(asked.number):
            self.refuse(asked, f"cannot scale: {reason}")
            return
        self._give_up_scaling(f"overtaken: {asked.number} workers were asked for meanwhile")
        self.say("INFO", f"scaling from {len(self.slots)} to {asked.number} workers")
        self.resize(asked.number)
        self._scaling = Scaling(asked.asker, asked.number, self._now + self.policy.boot_timeout)

    def _why_not_scale(self, number: int) -> str:
        if self.policy.resident:
            return "everything runs in this one process (workers = 0)"
        if self.is_leaving:
            return "the service is stopping"
        if self.reload.is_running:
            return "a reload is under way, and sets the number of workers itself"
        if self.upgrade.is_running:
            return "an upgrade is under way"
        if not 1 <= number <= self.policy.most_workers:
            return f"want 1 to {self.policy.most_workers} workers"
        return ""

    def _settle_scaling(self) -> None:
        scaling = self._scaling
        if scaling is None:
            return
        if self.ready_count == scaling.number:
            self.answer(scaling.asker)
            self._scaling = None
        elif self._now >= scaling.deadline:
            self._give_up_scaling(f"{self.ready_count} of {scaling.number} workers accept by now; trying goes on")

    def _give_up_scaling(self, reason: str) -> None:
        if self._scaling is not None:
            self.answer(self._scaling.asker, reason)
            self._scaling = None

    # Reload

    def _reload(self, asked: Asked) -> None:
        if self.is_leaving:
            self.refuse(asked, "cannot reload: the service is stopping")
        elif self.upgrade.is_running:
            self.refuse(asked, "cannot reload: an upgrade is under way")
        else:
            self.reload.ask(asked.asker, self._now)

    @property
    def _may_reload(self) -> bool:
        """Not before one worker has shown what works now."""
        return self._was_ever_ready and not (self.is_leaving or self.upgrade.is_running)

    def _begin_reload(self) -> None:
        if self._may_reload and self.reload.due <= self._now:
            self._give_up_scaling("overtaken by a reload, which sets the number of workers")
            self.reload.begin()
            self._actions.append(Prepare())

    # The rest

    def _reopen(self, asked: Asked) -> None:
        self._actions.append(ReopenLogs())
        for worker in self.workers.values():
            if worker.state in (WorkerState.READY, WorkerState.RETIRING):
                self._actions.append(Send(worker.serial, Order.REOPEN))
        self.answer(asked.asker)

    # Upgrade

    def _upgrade(self, asked: Asked) -> None:
        if reason := self._why_not_upgrade():
            self.refuse(asked, f"cannot upgrade: {reason}")
            return
        self.say("INFO", "upgrade: starting a new master on the same listeners")
        self.upgrade.begin(asked.asker, self._now + self.policy.boot_timeout)
        self._actions.append(StartSuccessor())

    def _why_not_upgrade(self) -> str:
        if self.policy.resident:
            return "everything runs in this one process (workers = 0)"
        if self.is_leaving:
            return "the service is stopping"
        if obstacle := self.upgrade.obstacle():
            return obstacle
        if self.reload.is_running:
            return "a reload is under way"
        return "" if self._was_ever_ready else "the service is starting"

    def _depart(self, successor: SuccessorReady) -> None:
        """Another master serves. Ours finish what they have; who is queued on a listener that goes on is its affair."""
        if not self.upgrade.is_running:
            return
        self.say("INFO", f"upgrade done: the new master has pid {successor.pid}; leaving")
        self._stage = PoolState.DRAINING
        self._successor = successor.pid
        if not successor.has_all:
            self._actions.append(Depart())  # closes doors, so that the queues to be served come to an end
        for worker in list(self.workers.values()):
            self.retire(worker, Order.RETIRE if successor.has_all else Order.DRAIN)
        if successor.has_all:
            self._actions.append(Depart())
        self.do(self.upgrade.end(self._now))
        self._give_up_waiting()

    @property
    def _hears_another(self) -> bool:
        """Whether we stay to pass on what the master before us tells: it knows of no other."""
        is_between = self._successor != 0 and self.upgrade.predecessor is Predecessor.LEAVES
        return is_between and self._stage is not PoolState.STOPPING

    def _upgrade_failed(self, reason: str) -> None:
        if self.upgrade.is_running:
            self.do(self.upgrade.end(self._now, f"upgrade failed, nothing is changed: {reason}"))

    def _settle_upgrade(self) -> None:
        if self.upgrade.deadline <= self._now:
            self._actions.append(EndSuccessor())
            self._upgrade_failed(f"the new master did not serve within timeouts.boot = {self.policy.boot_timeout:g} s")

    @property
    def _may_start(self) -> bool:
        """At the very first boot nothing is retried until one worker has shown that it can be done."""
        if self.is_leaving:
            return self._door_closes != math.inf and self._was_ever_ready
        return self._was_ever_ready or not any(slot.failures for slot in self.slots)

    def _start_due(self) -> None:
        for slot in self.slots:
            if self._may_start and self.start_time(slot) <= self._now:
                self.start(slot)

    def _settle(self) -> None:
        if self._stage is PoolState.STARTING and self.is_whole:
            self._stage = PoolState.SERVING
            self._actions.append(Announce())
        if self.workers or self._stage is PoolState.STOPPED or self._hears_another:
            return
        hopeless = not self.is_leaving and not self._may_start
        if hopeless or (self.is_leaving and self._door_closes == math.inf):
            self._give_up_waiting()
            self._stage = PoolState.STOPPED
            for asker in sorted(self._stop_askers):
                self.answer(asker)
            self._actions.append(self._boot_failure if hopeless else self._ending)


_COMMANDS: dict[Command, Callable[[Pool, Asked], None]] = {
    Command.STOP: Pool._stop,
    Command.STOP_NOW: Pool._stop_now,
    Command.MORE: Pool._more,
    Command.FEWER: Pool._fewer,
    Command.SCALE: Pool._scale,
    Command.REOPEN: Pool._reopen,
    Command.RELOAD: Pool._reload,
    Command.UPGRADE: Pool._upgrade,
}
