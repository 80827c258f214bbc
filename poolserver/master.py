"""The master: one loop that waits, turns what happened into events for the pure pool, and carries out its actions.

Single-threaded for ever in a daemon. It never touches a client's connection and never blocks on anything but its own
poll. In a process that forks nothing (``-w 0``, thread servers) the same loop runs beside a ``Resident`` crew.
"""

import collections
import logging
import math
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence

from poolserver import log, process
from poolserver.commands import Command
from poolserver.door import Register
from poolserver.errors import ConfigError, PoolserverError, SystemRefusedError
from poolserver.events import (
    Abandon,
    Action,
    Announce,
    Answer,
    CloseDoor,
    Commit,
    Depart,
    Ending,
    EndSuccessor,
    Event,
    Examine,
    Finish,
    ForkFailed,
    ListenerLost,
    Prepare,
    ReopenLogs,
    Say,
    Send,
    Start,
    StartSuccessor,
    Withdraw,
    WorkerBooted,
    WorkerExited,
    WorkerReady,
)
from poolserver.parties import (
    Attendant,
    Desk,
    NoDesk,
    NoSuccession,
    NoUpgrader,
    Spawn,
    Succession,
    Upgrader,
    WorkerHandle,
)
from poolserver.pool import Pool
from poolserver.process import Report
from poolserver.scoreboard import Berth, Scoreboard
from poolserver.signals import Inbox, wait_readable
from poolserver.tally import Tally
from poolserver.worker import LISTENER_LOST_STATUS

_log = logging.getLogger("poolserver")

UNTOLD_EXIT_INTERVAL = 0.1
"""Seconds between looks at workers whose death no descriptor tells (no pidfd)."""


_STOPS = (Command.STOP, Command.STOP_NOW)


class Master:
    """Owns the workers' handles and berths until ``run`` returns. Inbox and scoreboard are its caller's."""

    def __init__(
        self,
        pool: Pool,
        spawn: Spawn,
        inbox: Inbox[Command],
        board: Scoreboard,
        *,
        on_ready: Callable[[], None],
        on_close_door: Callable[[], None],
        register: Register,
        tally: Tally,
        succession: Succession | None = None,
        upgrader: Upgrader | None = None,
        attendants: Sequence[Attendant] = (),
    ) -> None:
        self._pool = pool
        self._spawn = spawn
        self._inbox = inbox
        self._board = board
        self._on_ready = on_ready
        self._on_close_door = on_close_door
        self._register = register
        self._tally = tally
        self._succession = succession or NoSuccession()
        self._upgrader = upgrader or NoUpgrader()
        self._attendants = attendants
        self._desk: Desk = NoDesk()
        self._workers: dict[int, tuple[WorkerHandle, Berth]] = {}
        self._finish: Finish | None = None

    def run(self) -> None:
        """Supervise until the pool has ended.

        Raises:
            ConfigError: no worker could start at the first boot; names the cause.
            SystemRefusedError: the system refused every fork.
            PoolserverError: a listener was lost.
        """
        try:
            self._step(None)
            while self._finish is None:
                for event in self._events():
                    self._step(event)
                self._step(None)
                self._say_refusals(time.monotonic())
        finally:
            self._abandon()
        self._say_refusals(math.inf)
        _raise_for(self._finish)

    def report_to(self, desk: Desk) -> None:
        """From here on an operator can be answered."""
        self._desk = desk

    def roster(self) -> dict[int, tuple[int, Berth]]:
        """The pid and the berth of each worker that is not buried, by its serial."""
        return {serial: (worker.pid, berth) for serial, (worker, berth) in self._workers.items()}

    def signal(self, serial: int, signum: int) -> None:
        """Signal a worker, if it is still there."""
        if serial in self._workers:
            self._workers[serial][0].send(signum)

    def _step(self, event: Event) -> None:
        """One event, and what follows from carrying out its actions: a fork that fails, for one."""
        events = collections.deque([event])
        while events:
            for action in self._pool.step(events.popleft(), time.monotonic()):
                follow_up = self._carry_out(action)
                if follow_up is not None:
                    events.append(follow_up)

    def _events(self) -> Iterator[Event]:
        """Wait for the pool's deadline or for anything to happen; what workers told comes before what is asked of us.

        Not before a stop, which may have been for the whole process group: who has left on it is not to be replaced.
        """
        self._wait()
        commands = self._inbox.take()
        if Command.REAP in commands:
            self._reap_strangers()
            commands = [command for command in commands if command is not Command.REAP]
        stops = [command for command in commands if command in _STOPS]
        yield from stops
        for serial, (worker, _) in list(self._workers.items()):
            yield from self._told_by(serial, worker)
        yield from (command for command in commands if command not in _STOPS)
        for attendant in self._attendants:
            yield from attendant.attend(self._readable, time.monotonic())

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._inbox.fileno(), select.POLLIN)
        deadline = min(self._pool.deadline() or math.inf, self._tally.deadline())
        for attendant in self._attendants:
            deadline = min(deadline, attendant.deadline())
            for fd, events in attendant.interests().items():
                poller.register(fd, events)
        seconds: float | None = max(0.0, deadline - time.monotonic())
        for worker, _ in self._workers.values():
            for fd in worker.descriptors():
                poller.register(fd, select.POLLIN)
            if not worker.has_exit_descriptor:
                seconds = UNTOLD_EXIT_INTERVAL if seconds is None else min(seconds, UNTOLD_EXIT_INTERVAL)
        self._readable = set(wait_readable(poller, seconds))

    def _say_refusals(self, now: float) -> None:
        if now >= self._tally.deadline():
            for line in self._tally.lines(self._board.all_totals(), now):
                _log.warning("%s", line)

    def _told_by(self, serial: int, worker: WorkerHandle) -> Iterator[Event]:
        if worker.has_exit_descriptor and worker.status is None and self._readable.isdisjoint(worker.descriptors()):
            return
        exited = worker.has_exited()  # asked first: what it wrote before is then all in the pipe
        for report in worker.reports():
            yield _told(serial, report)
        if exited:
            yield self._buried(serial, worker)

    def _buried(self, serial: int, worker: WorkerHandle) -> Event:
        _, berth = self._workers.pop(serial)
        self._board.release(berth)
        self._register.claims.clear(berth.first, berth.lanes, berth.ordinal)
        worker.close()
        if worker.status is not None and os.waitstatus_to_exitcode(worker.status) == LISTENER_LOST_STATUS:
            return ListenerLost(serial, worker.reason)
        how = f"(pid {worker.pid}) {worker.how}\n{self._desk.last_words(serial)}".strip()
        return WorkerExited(serial, how, worker.reason)

    def _reap_strangers(self) -> None:
        def known(pid: int, status: int) -> bool:
            for worker, _ in self._workers.values():
                if worker.pid == pid:
                    worker.note_reaped(status)
                    return True
            return False

        if strangers := process.reap_strangers(known):
            _log.debug("buried %d orphans", strangers)

    def _carry_out(self, action: Action) -> Event:
        match action:
            case Start():
                return self._start(action)
            case Send(serial, order):
                self._workers[serial][0].send(order.value)
            case Examine(serial):
                self._desk.examine(serial)
            case Announce():
                self._on_ready()
            case CloseDoor():
                self._on_close_door()
            case ReopenLogs():
                log.reopen()
            case Say(level, text, details):
                _log.log(logging.getLevelNamesMapping()[level], "%s", text, extra={"details": details})
            case Answer(asker, ok, reason):
                self._desk.answer(asker, ok, reason)
            case Finish():
                self._finish = action
            case _:
                return self._change(action)
        return None

    def _change(self, action: Action) -> Event:
        """The steps of a reload, and of an upgrade."""
        match action:
            case Prepare():
                return self._succession.prepare()
            case Commit():
                self._succession.commit()
            case Abandon():
                self._succession.abandon()
            case Withdraw():
                self._succession.withdraw()
            case StartSuccessor():
                return self._upgrader.start()
            case EndSuccessor():
                self._upgrader.end()
            case Depart():
                self._upgrader.depart()
        return None

    def _start(self, action: Start) -> Event:
        try:
            berth = self._board.allot(action.lanes)
        except SystemRefusedError as error:
            return ForkFailed(action.serial, str(error))
        self._register.claims.use(self._board.rows_in_use, self._board.workers_in_use)
        try:
            siblings = [worker for worker, _ in self._workers.values()]
            self._workers[action.serial] = (self._spawn(action, berth, siblings), berth)
        except SystemRefusedError as error:
            self._board.release(berth)
            return ForkFailed(action.serial, str(error))
        return None

    def _abandon(self) -> None:
        """Only after a defect of ours is anyone left here: nobody must stay behind without a master."""
        for worker, _ in self._workers.values():
            worker.end()


def _told(serial: int, report: Report) -> Event:
    match report:
        case Report.BOOTED:
            return WorkerBooted(serial)
        case Report.READY:
            return WorkerReady(serial)
        case Report.STOP_ASKED:
            return Command.STOP


def _raise_for(finish: Finish | None) -> None:
    if finish is None or finish.ending is Ending.ASKED:
        return
    text, _, details = finish.reason.partition("\n")
    if finish.ending is Ending.NO_WORKER_STARTED:
        raise ConfigError(f"no worker could start: {text}", details)
    if finish.ending is Ending.NO_FORK:
        raise SystemRefusedError(f"no worker could be forked: {text}")
    raise PoolserverError(text)
