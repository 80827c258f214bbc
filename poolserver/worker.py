"""The child's side of a worker: reset signals, set the title, make the server objects, run the crew, leave.

Runs in the forked process, from ``Worker.run`` to ``os._exit`` in ``process.py``.
"""

import ctypes
import logging
import os
import select
import signal
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from poolserver import log, process, signals, stacks
from poolserver.aio import crew_for
from poolserver.commands import WORKER_SIGNALS, Order
from poolserver.door import Register
from poolserver.errors import ConfigError
from poolserver.generation import Generation
from poolserver.handover import Pairs
from poolserver.listener import Listener
from poolserver.rows import Quarters
from poolserver.shared_socket import SharedSocket
from poolserver.station import Station
from poolserver.tcp_info import queue_length

_log = logging.getLogger("poolserver")

LISTENER_LOST_STATUS = 74
"""Exit status of a worker that found a listener beyond repair (sysexits EX_IOERR): the master must act, not respawn."""

ORPHAN_TIMEOUT = 4.0
"""Seconds that open connections have at most when the master is dead; with the grace for cutting it stays under 5."""

BURIAL_TIMEOUT = 1.0
"""Seconds for the kernel to close a dead master's files; it needs milliseconds."""

_LAST_BELL = signal.SIGTRAP
"""What the kernel sends, once, when the master dies while we serve. Its handler is alarm(2) itself, which takes the
signal's number for seconds: 5 after it SIGALRM ends this process, though every thread hangs and one holds the
interpreter's lock. No handler in Python would run then. Source: signal-safety(7); prctl(2) PR_SET_PDEATHSIG."""

_PR_SET_PDEATHSIG = 1

_M_ARENA_MAX = -8
"""malloc.h. Threads that take turns at the interpreter's lock gain nothing by heaps of their own (measured: 2 % more
requests for one CPU-second with one heap). Source: mallopt(3)."""

# Loaded before the fork, since a child that hangs in the loader's lock would never be ready; and looked up there, since
# what ctypes makes of each would be 80 KiB of private memory in every worker.
_libc = ctypes.CDLL(None, use_errno=True)
_mallopt, _prctl, _signal = _libc.mallopt, _libc.prctl, _libc.signal
_alarm = ctypes.cast(_libc.alarm, ctypes.c_void_p)


@dataclass(frozen=True)
class Seat:
    """Where a worker sits: all that differs from one worker to the next."""

    slot: int
    lifeline_fd: int
    """Read end of a pipe whose write end only the master has: EOF means that it is dead."""
    report_fd: int
    is_canary: bool = False
    """It boots ahead of its generation, and accepts only once it is told to."""
    others: Sequence[Listener] = ()
    """The control socket's, for one: who leaves last when the master is dead removes its file."""
    stacks_fd: int = -1
    """Where its stacks go when somebody asks; -1: nobody can."""


def never_accepted(listeners: Iterable[Listener]) -> int:
    """Clients in the accept queues of our own TCP listeners: others do not tell, or live on with whoever made them."""
    own = [each for each in listeners if each.address.is_tcp and not each.is_adopted]
    return sum(queue_length(each.socket) for each in own if each.socket.fileno() >= 0)


class Worker:
    """One forked worker."""

    def __init__(
        self, seat: Seat, generation: Generation, quarters: Quarters, register: Register, pairs: Pairs
    ) -> None:
        self._seat = seat
        self._generation = generation
        self._terms = generation.terms
        self._quarters = quarters
        self._register = register
        self._pairs = pairs
        self._is_orphaned = False
        self._is_end = False
        self._master_pid = os.getppid()

    def run(self) -> int:
        """Serve until told to leave. Returns the exit status."""
        signals.reset_in_child()
        log.introduce(f"worker {self._seat.slot}", self._generation.name, self._seat.slot)
        log.keep_prints_from_waiting()
        if self._seat.stacks_fd >= 0:
            stacks.install(self._seat.stacks_fd)
        signals.unblock_all()  # until the crew stands, TERM and INT simply end us
        self._follow_the_master()
        _mallopt(_M_ARENA_MAX, 1)
        try:
            stations = self._generation.make_stations()
            self._generation.on_start()
        except BaseException as error:  # noqa: BLE001 - the user's module; SystemExit at import too
            self._report_failure(error)
            return ConfigError.exit_code
        return self._serve(stations)

    def _serve(self, stations: list[Station]) -> int:
        self._inbox: signals.Inbox[Order] = signals.Inbox.open()
        self._crew = crew_for(stations)(
            stations,
            self._quarters,
            self._terms,
            self._register,
            self._pairs,
            on_stop_asked=lambda: self._report(process.STOP_ASKED),
            on_released=self._close_stream_listeners,
        )
        signals.take(self._inbox, WORKER_SIGNALS)
        self._report(process.BOOTED)
        if self._seat.is_canary and not self._may_go():
            self._generation.leave()
            return 0
        self._set_last_bell()
        try:
            self._crew.start(lambda: self._report(process.READY))
        except ConfigError as error:
            self._report_failure(error)
            return ConfigError.exit_code
        self._crew.watch({self._inbox.fileno(): self._on_orders, self._seat.lifeline_fd: self._on_orphaned})
        self._tell_left()
        if self._is_orphaned:
            self._abandon(stations)
        self._generation.leave()
        if self._crew.lost_listener:
            self._report(process.FAILED + self._crew.lost_listener.encode())
            return LISTENER_LOST_STATUS
        return 0

    def _may_go(self) -> bool:
        """Wait for the commit. Any other order means that it will not come, and so does the master's death."""
        poller = select.poll()
        poller.register(self._inbox.fileno(), select.POLLIN)
        poller.register(self._seat.lifeline_fd, select.POLLIN)
        while True:
            signals.wait_readable(poller, None)
            for order in self._inbox.take():
                if order is not Order.REOPEN:
                    return order is Order.GO
            if self._is_master_dead():
                return False

    def _on_orders(self) -> bool:
        for order in self._inbox.take():
            if order is Order.REOPEN:
                log.reopen()
            elif order is Order.STOP_NOW:
                self._is_end = True
                self._crew.cut()
            elif order is not Order.GO:
                self._is_end = is_end = order is Order.DRAIN
                self._crew.retire(self._terms.graceful_timeout, serve_queue=is_end, hand_over=not is_end)
        return True

    def _on_orphaned(self) -> bool:
        """The master is dead. Leave the address to a new one at once; ``os._exit`` ends what is hung."""
        _log.error("the master is gone: leaving")
        self._is_orphaned = True
        self._crew.retire(min(self._terms.graceful_timeout, ORPHAN_TIMEOUT), serve_queue=False)
        self._crew.release_streams()
        return False  # EOF stays readable

    def _abandon(self, stations: list[Station]) -> None:
        """What the master would have tidied up: the files of Unix sockets, when no copy of theirs is open, not even the
        master's, which says that it dies before the kernel has closed them all."""
        self._wait_for_burial()
        for station in stations:
            if isinstance(station.server.socket, SharedSocket):
                station.server.socket.release()
        for listener in [*self._generation.listeners, *self._seat.others]:
            listener.abandon()

    def _wait_for_burial(self) -> None:
        """Its children get a new parent last. Source: Linux, do_exit."""
        if os.getppid() != self._master_pid:
            return
        try:
            pidfd = os.pidfd_open(self._master_pid)
        except OSError:
            return  # buried meanwhile, or no pidfds here
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll(int(BURIAL_TIMEOUT * 1000))
        os.close(pidfd)

    def _tell_left(self) -> None:
        """At the service's end: who is still in the accept queues is not accepted any more."""
        if self._is_end:
            self._is_end = False
            self._quarters.crew.left(never_accepted(self._generation.listeners))

    def _close_stream_listeners(self) -> None:
        self._tell_left()
        for listener in self._generation.listeners:
            if listener.is_stream:
                listener.socket.close()

    def _follow_the_master(self) -> None:
        """Have the kernel end us when it dies, until the lifeline is watched; it may have died before we asked.

        Source: prctl(2).
        """
        signals.default(signal.SIGALRM)  # before the user's module, which may have a use for it
        _signal(int(_LAST_BELL), _alarm)
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if self._is_master_dead():
            os._exit(0)

    def _set_last_bell(self) -> None:
        """The lifeline is about to be watched; what is left to the kernel is the end of those that cannot look at it.

        A signal of the lifeline itself (O_ASYNC) would come again with the end of each sibling, and start the seconds
        anew. Source: Linux, pipe_release.
        """
        _prctl(_PR_SET_PDEATHSIG, int(_LAST_BELL), 0, 0, 0)
        if self._is_master_dead():
            signal.raise_signal(_LAST_BELL)

    def _is_master_dead(self) -> bool:
        poller = select.poll()
        poller.register(self._seat.lifeline_fd, select.POLLIN)
        return bool(poller.poll(0))

    def _report_failure(self, error: BaseException) -> None:
        """Why it could not start, up the pipe, where the master says it once for all workers."""
        if isinstance(error, ConfigError):
            text = f"{error}\n{error.details}".strip()
        else:
            text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        self._report(process.FAILED + text.encode("utf-8", "replace")[: process.MAX_REASON_BYTES - 1])

    def _report(self, octets: bytes) -> None:
        try:
            os.write(self._seat.report_fd, octets)
        except OSError:
            pass  # the master is gone, which the lifeline tells
