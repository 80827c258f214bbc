"""A lane: one thread, one accept loop, one connection at a time, on socketserver's public hooks.

Whatever a hook of the user's code raises, the lane lives on. It never decides who leaves when: that is ``crew.py``.
"""

import errno
import logging
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from poolserver import process
from poolserver.adapter import LaneServer, log_error, peer_name, unix_peer
from poolserver.admission import Limits
from poolserver.door import Door
from poolserver.failures import log_failure, log_line
from poolserver.listener import set_idle_timeout
from poolserver.scoreboard import Outcome, Row
from poolserver.signals import wait_readable
from poolserver.tcp_info import has_queue, is_idle, is_reset, queue_length
from poolserver.wakeups import Wakeups

_log = logging.getLogger("poolserver")

PAUSE = 0.1
"""Seconds without accepting when descriptors have run out (HAProxy's figure; nginx has 0.5)."""

LANE_LOOK = 60.0
"""Seconds between an idle lane's own looks. The crew's tick comes first, where eight lanes cost no more than one."""

MAX_FRUITLESS = 16
"""Wake-ups in a row that yield nothing before a pause. A few are normal under load, when a sibling was quicker; a
listener in a state that only seems ready would spin for ever."""

RELIEF = 1.0
"""Seconds without a shortage that end an episode: at the limit each descriptor that is given back ends one otherwise,
and each that is taken begins the next."""

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PEER_WENT_AWAY = frozenset(
    # accept(2): on Linux errors of the new connection, to be treated like EAGAIN
    {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET}
    | {errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR, errno.EAGAIN}
)


@dataclass(eq=False)
class Station:
    """A server object and the descriptor that its lanes wait on.

    ``queued`` bounds what is taken from it while draining.
    """

    server: LaneServer
    fd: int
    is_stream: bool
    is_tcp: bool
    is_unix_stream: bool
    idle_timeout: float
    sockaddr: Any
    """What the listener is bound to, to be bound to again."""
    may_block: bool = False
    """``get_request`` is the user's own and may take its time, over a TLS handshake, say."""
    queued: int = 0

    def is_intact(self) -> bool:
        """Whether the server's descriptor still is the listener: a closed number soon is another's connection."""
        try:
            return os.path.sameopenfile(self.server.socket.fileno(), self.fd)
        except OSError:
            return False  # EBADF: closed


@dataclass(frozen=True)
class Terms:
    """On which terms a crew serves. Times in seconds; 0 = off, but for ``graceful_timeout``, where 0 = cut at once."""

    backlog: int = 1024
    graceful_timeout: float = 30.0
    handler_timeout: float = 0.0
    first_byte_timeout: float = 0.0
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    service_interval: float = 0.5


class Shortage:
    """Out of descriptors or memory: one line for each episode, whichever lane of the crew meets it first.

    While it ``is_on``, lanes try accept(2) after each pause instead of waiting for the listener: one that waits there
    takes wake-ups from sibling workers that could serve.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._is_told = False
        self._since = 0.0
        self._until = 0.0
        self._lock = threading.Lock()

    def begin(self, error: OSError) -> None:
        with self._lock:
            self.is_on = True
            if self._is_told:
                return
            self._is_told = True
            self._since = time.monotonic()
        _log.error("accepting is paused: %s; raise LimitNOFILE, or serve fewer at once", error.strerror)

    def end(self) -> None:
        with self._lock:
            if self.is_on:
                self.is_on = False
                self._until = time.monotonic()

    def settle(self, now: float) -> None:
        """For the watcher, at each tick: say that the episode is over once it is."""
        with self._lock:
            if self.is_on or not self._is_told or now < self._until + RELIEF:
                return
            self._is_told = False
        _log.warning("accepting again after %.1f s", self._until - self._since)


class CrewOfLane(Protocol):
    """What a lane asks of its crew."""

    stations: dict[int, Station]
    wakeups: Wakeups[Station]
    serves_queue: bool
    shortage: Shortage

    @property
    def is_leaving(self) -> bool: ...

    @property
    def terms(self) -> Terms: ...

    @property
    def door(self) -> Door: ...

    def mend(self, station: Station, error: OSError) -> None: ...


class Lane:
    """Runs in its thread.

    ``request`` and ``address`` are the connection it has, None while idle, for the crew to see.
    """

    def __init__(self, number: int, crew: CrewOfLane, row: Row) -> None:
        self.number = number
        self.request: Any = None
        self.address: Any = None
        self.deadline = math.inf
        self._began = 0.0
        self._ended_from_outside: tuple[Any, Outcome] | None = None
        self._door = None if crew.door.is_open else crew.door
        self._handler_timeout = crew.terms.handler_timeout
        self._first_byte_timeout = crew.terms.first_byte_timeout
        self._forks = process.fork_count()
        self._crew = crew
        self._row = row
        self._fruitless = 0
        self._stop_poll = crew.wakeups.poller([crew.wakeups.stop_fd])
        self._is_one_of_many = crew.wakeups.is_shared
        self._queue_polls = {fd: crew.wakeups.poller([fd]) for fd in crew.stations}

    @property
    def is_ended_from_outside(self) -> bool:
        """Whether the connection was shut down under its handler."""
        ended = self._ended_from_outside
        return ended is not None and ended[0] is self.request

    def end_as(self, request: object, outcome: Outcome) -> None:
        """``request`` ends as ``outcome``, whatever its handler does now. Another connection that this lane has by
        then is not meant."""
        self._ended_from_outside = (request, outcome)

    def mark_hung(self) -> None:
        """Write it on the scoreboard: the lane itself cannot."""
        self._row.hung()

    def on_closing(self, request: object) -> None:
        """The connection is about to be closed: was it the idle time-out that ended it?"""
        process.leave_if_forked(self._forks)
        idle = self._station.idle_timeout
        lasted = time.monotonic() - self._began
        if idle and lasted >= idle and self._ended_from_outside is None and is_idle(request, idle):
            self.end_as(request, Outcome.TIMEOUT_IDLE)

    def serve_forever(self) -> None:
        """Accept and handle until the crew is leaving, then what the accept queues still hold if that is asked."""
        crew, row = self._crew, self._row
        wait = crew.wakeups.wait
        row.idle()
        while not crew.is_leaving:
            is_woken, station = (False, None) if crew.shortage.is_on else wait(LANE_LOOK)
            if station is not None:
                self.take(station)
            elif not is_woken:
                # Nothing for long, or a shortage, which a try tells from its end.
                for each in crew.stations.values():
                    self.take(each)
        self._serve_queues()

    def take(self, station: Station) -> bool:
        """Accept one connection (or datagram) and handle it. False: there was none.

        Whatever came of it but "none", more may be queued that no edge will tell of: another lane is woken for it.
        """
        server = station.server
        if station.may_block and self._is_one_of_many and queue_length(server.socket) > 1:
            self._crew.wakeups.look_again(station)
        try:
            request, address = server.get_request()
        except BlockingIOError:
            if station.is_stream:  # accept(2) takes the descriptor before it looks at the queue: there is one again
                self._crew.shortage.end()
            return self._on_nothing()
        except OSError as error:
            return self._on_accept_error(station, error)
        except BaseException:  # noqa: BLE001 - get_request is the user's to override
            self._report("get_request failed")
            self._crew.wakeups.look_again(station)
            return self._on_nothing()  # if it raised before its accept, the listener is as ready as before
        self._fruitless = 0
        if self._is_one_of_many and self._has_more(station):
            self._crew.wakeups.look_again(station)
        if self._crew.shortage.is_on:
            self._crew.shortage.end()
        if station.is_unix_stream:
            address = address or unix_peer(request)
            set_idle_timeout(request, station.idle_timeout)
        self._station = station
        if self._door is None:
            self._handle(server, request, address)
        elif self._door.lets_in(self._row, request, address, is_stream=station.is_stream):
            self._handle(server, request, address)
            self._door.closed(self._row)
        return True

    def _handle(self, server: LaneServer, request: Any, address: Any) -> None:
        """One connection, from admission to the closed ticket, through the hooks in their documented order."""
        row = self._row
        row.begin(peer_name(address))
        self.address = address
        self.request = request
        self._began = time.monotonic()
        if self._handler_timeout:
            self.deadline = self._began + self._handler_timeout
        try:
            end = self._serve(server, request, address)
        except BaseException:  # noqa: BLE001 - a lane survives whatever a handler raises, SystemExit included
            process.leave_if_forked(self._forks)
            end = Outcome.ERRORS
            self._on_failure(server, request, address)
        process.leave_if_forked(self._forks)
        self.request = None
        if self._ended_from_outside is not None:
            cut, outcome = self._ended_from_outside
            end, self._ended_from_outside = (outcome if cut is request else end), None
        row.end(end)

    def _serve(self, server: LaneServer, request: Any, address: Any) -> Outcome:
        """The hooks, unless the client is gone already or does not speak."""
        if self._station.is_stream and (unfit := self._unfit(request)) is not None:
            server.shutdown_request(request)
            return unfit
        if server.verify_request(request, address):
            server.process_request(request, address)
            return Outcome.SERVED
        server.shutdown_request(request)
        return Outcome.REFUSED_VERIFY

    def _unfit(self, request: Any) -> Outcome | None:
        """Why no handler is called for this connection, if so."""
        if self._station.is_tcp and is_reset(request):
            return Outcome.REFUSED_RESET
        patience = self._first_byte_timeout
        if patience and not wait_readable(self._crew.wakeups.poller([request.fileno()]), patience):
            return Outcome.TIMEOUT_FIRST_BYTE
        return None

    def _on_failure(self, server: LaneServer, request: Any, address: Any) -> None:
        """As BaseServer does: ``handle_error`` for what is an Exception, then ``shutdown_request`` in any case."""
        try:
            if isinstance(sys.exception(), Exception):
                server.handle_error(request, address)
            else:
                log_error(address)
        except BaseException:  # noqa: BLE001 - handle_error may itself raise; CPython's tests do it
            self._report("handle_error failed for %s", peer_name(address))
        try:
            server.shutdown_request(request)
        except BaseException:  # noqa: BLE001 - likewise the user's to override
            self._report("shutdown_request failed for %s", peer_name(address))

    def _has_more(self, station: Station) -> bool:
        """Whether more is queued. For TCP without letting go of the interpreter's lock, which a sibling may want."""
        if station.is_tcp:
            return has_queue(station.server.socket)
        return bool(self._queue_polls[station.fd].poll(0))

    def _on_nothing(self) -> bool:
        self._fruitless += 1
        if self._fruitless > MAX_FRUITLESS and not self._crew.is_leaving:
            self._pause()
        return False

    def _on_accept_error(self, station: Station, error: OSError) -> bool:
        if error.errno in _OUT_OF_RESOURCES:
            self._crew.shortage.begin(error)
            self._pause()
        elif error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSOCK):
            self._crew.mend(station, error)
            self._pause()
        elif error.errno not in _PEER_WENT_AWAY or type(error).__module__ == "ssl":  # whose errno 1 is no EPERM
            # not from accept(2): a get_request of the user's that shakes hands (TLS) and failed
            log_line(logging.INFO, "get_request failed: %s", error)
        self._crew.wakeups.look_again(station)
        return self._on_nothing()

    def _pause(self) -> None:
        """Wait, but not for the listener; a stop ends it."""
        self._stop_poll.poll(int(PAUSE * 1000))

    def _serve_queues(self) -> None:
        """What clients had queued when the stop was asked: up to as many as there were, or until none is left."""
        crew = self._crew
        for station in crew.stations.values():
            for _ in range(station.queued):
                if not crew.serves_queue or not self.take(station):
                    break

    def _report(self, text: str, *args: object) -> None:
        """Log an exception that has no other place to go. A log that cannot be written is no reason to die."""
        try:
            log_failure(text, *args)
        except BaseException:  # noqa: BLE001 - raised by a handler of the user's logging configuration
            pass  # by a handler of the user's logging configuration: there is nowhere left to say so
