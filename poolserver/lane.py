"""A lane: one thread, one accept loop, one connection at a time, on socketserver's public hooks.

Whatever a hook of the user's code raises, the lane lives on. It never decides who leaves when: that is ``crew.py``.
"""

import errno
import logging
import math
import sys
import time
from typing import Any, Protocol

from poolserver import process
from poolserver.adapter import LaneServer, log_error, peer_name, unix_peer
from poolserver.conversation import Conversation
from poolserver.door import Door
from poolserver.listener import set_idle_timeout
from poolserver.park import UNFIT, Park, Parked, look
from poolserver.scoreboard import Outcome, Row
from poolserver.shortage import OUT_OF_RESOURCES, PAUSE, Shortage
from poolserver.station import Station, Terms
from poolserver.tcp_info import has_queue, is_idle, is_reset, queue_length
from poolserver.waits import Verdict, Wait
from poolserver.wakeups import Wakeups

_log = logging.getLogger("poolserver")

MAX_TURNS = 16
"""Exchanges in a row that a client gets by sending them all at once; then others have their turn."""

DRAIN_LOOK = 0.1
"""Seconds between a leaving lane's looks whether anybody is still parked."""

LANE_LOOK = 60.0
"""Seconds between an idle lane's own looks. The crew's tick comes first, where eight lanes cost no more than one."""

MAX_FRUITLESS = 16
"""Wake-ups in a row that yield nothing before a pause. A few are normal under load, when a sibling was quicker; a
listener in a state that only seems ready would spin for ever."""

_PEER_WENT_AWAY = frozenset(
    # accept(2): on Linux errors of the new connection, to be treated like EAGAIN
    {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET}
    | {errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR, errno.EAGAIN}
)


class CrewOfLane(Protocol):
    """What a lane asks of its crew."""

    stations: dict[int, Station]
    wakeups: Wakeups[Any]
    serves_queue: bool
    shortage: Shortage

    @property
    def is_leaving(self) -> bool: ...

    @property
    def has_parked(self) -> bool: ...

    @property
    def terms(self) -> Terms: ...

    @property
    def door(self) -> Door: ...

    @property
    def park(self) -> Park: ...

    def mend(self, station: Station, error: OSError) -> None: ...


class Lane:
    """Runs in its thread.

    ``request`` and ``address`` are the connection it has, None while idle, for the crew to see.
    """

    def __init__(self, number: int, crew: CrewOfLane, row: Row) -> None:
        self.number = number
        self.request: Any = None
        self.address: Any = None
        self.is_accepting = True
        self.deadline = math.inf
        self._began = 0.0
        self._ended_from_outside: tuple[Any, Outcome] | None = None
        self._door = None if crew.door.is_open else crew.door
        self._handler_timeout = crew.terms.handler_timeout
        self._max_head = crew.terms.max_head
        self._suspended: Conversation | None = None
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
        """``request`` ends as ``outcome``, whatever its handler does now, unless this lane has another by then."""
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
        """Accept and handle until the crew is leaving; then what is queued, if that is asked, and what is parked."""
        crew, row = self._crew, self._row
        wait = crew.wakeups.wait
        row.idle()
        while not crew.is_leaving:
            post = wait(0 if crew.shortage.is_on else LANE_LOOK)
            if isinstance(post, Station):
                self.take(post)
            elif post is not None:
                self._take_up(post)
            else:  # nothing for long, or a shortage, which a try tells from its end
                for each in crew.stations.values():
                    self.take(each)
        self._serve_queues()
        self.is_accepting = False
        while crew.has_parked:
            self._take_up(crew.wakeups.wait_parked(DRAIN_LOOK))

    def take(self, station: Station) -> bool:
        """Accept one connection (or datagram) and handle it. False: there was none.

        Whatever came of it but "none", more may be queued that no edge will tell of: another lane is woken for it.
        """
        server = station.server
        self._station = station
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
        if self._door is not None and not self._door.lets_in(self._row, request, address, is_stream=station.is_stream):
            return True
        if station.wait is not Wait.NONE and not self._has_spoken(station, request, address):
            return True
        self._row.begin(peer_name(address))
        self._handle(station, request, address)
        return True

    def _has_spoken(self, station: Station, request: Any, address: Any) -> bool:
        """Whether what is waited for is there. If not, the connection is parked, or over already."""
        verdict = look(request, station.wait, self._max_head)
        if verdict in (Verdict.COMPLETE, Verdict.ENDED):
            return True
        self._row.accept()
        parked = Parked(station, request, address, time.monotonic(), self._claim())
        if verdict in UNFIT:
            parked.ending = UNFIT[verdict]
            self._crew.park.drop(parked)
        else:
            self._park(parked)
        return False

    def _claim(self) -> int:
        return self._door.claimed(self._row) if self._door is not None else 0

    def _park(self, parked: Parked) -> None:
        """Leave it to the park, and end whoever must go for it."""
        victim = self._crew.park.add(parked, self._row.number)
        if victim is not None:
            self._end(victim)

    def _take_up(self, post: Parked | int | Station | None) -> None:
        """Go on with a connection that was parked, if ``post`` is or tells of one that is ready."""
        parked = self._crew.park.take(post) if isinstance(post, int) and post >= 0 else post
        if not isinstance(parked, Parked):
            return
        if parked.ending is not None:
            self._end(parked)
            return
        self._crew.park.give(parked, self._row.number)
        self._row.resume(peer_name(parked.address))
        self._handle(parked.station, parked.request, parked.address, parked)

    def _end(self, parked: Parked) -> None:
        """It waited in vain: a handler that it has is finished, as at the end of its input."""
        if parked.conversation is not None:
            self._station = parked.station
            try:
                parked.conversation.end()
            except BaseException:  # noqa: BLE001 - finish() is the user's
                process.leave_if_forked(self._forks)
                self._on_failure(parked.station.server, parked.request, parked.address)
        self._crew.park.drop(parked)

    def _handle(self, station: Station, request: Any, address: Any, parked: Parked | None = None) -> None:
        """One connection, from admission to the closed ticket or the park, through the hooks in their documented
        order."""
        row, server = self._row, station.server
        self._station = station
        self.address = address
        self.request = request
        self._began = time.monotonic()
        if self._handler_timeout:
            self.deadline = self._began + self._handler_timeout
        try:
            end = self._serve(server, request, address, parked)
        except BaseException:  # noqa: BLE001 - a lane survives whatever a handler raises, SystemExit included
            process.leave_if_forked(self._forks)
            end = Outcome.ERRORS
            self._on_failure(server, request, address)
        process.leave_if_forked(self._forks)
        self.request = None
        if self._ended_from_outside is not None:
            cut, outcome = self._ended_from_outside
            end, self._ended_from_outside = (outcome if cut is request else end), None
        if self._suspended is not None:
            self._suspend(request, address)
            return
        row.end(end)
        if self._door is not None:
            self._door.closed(row)

    def _suspend(self, request: Any, address: Any) -> None:
        """The conversation goes on when the client speaks again."""
        conversation, self._suspended = self._suspended, None
        parked = Parked(self._station, request, address, time.monotonic(), self._claim(), conversation)
        self._row.idle()
        if conversation is not None and conversation.has_input():
            self._crew.park.pass_on(parked, self._row.number)  # no epoll would tell of what is read already
        else:
            self._park(parked)

    def _serve(self, server: LaneServer, request: Any, address: Any, parked: Parked | None) -> Outcome:
        """The hooks, unless the client is gone already."""
        if parked is not None and parked.conversation is not None:
            parked.conversation.go_on(is_last=parked.verdict is Verdict.ENDED)
            return self._converse(server, request, parked.conversation)
        if self._station.is_tcp and is_reset(request):
            server.shutdown_request(request)
            return Outcome.REFUSED_RESET
        if not server.verify_request(request, address):
            server.shutdown_request(request)
            return Outcome.REFUSED_VERIFY
        if self._station.is_conversational:
            conversation = Conversation(server.RequestHandlerClass, request, address, server)
            return self._converse(server, request, conversation)
        server.process_request(request, address)
        return Outcome.SERVED

    def _converse(self, server: LaneServer, request: Any, conversation: Conversation) -> Outcome:
        """After an exchange: as many more as the client has sent already, within bounds; then it is over or is
        suspended."""
        for _ in range(MAX_TURNS):
            if conversation.is_over or not conversation.has_input():
                break
            conversation.go_on()
        if not conversation.is_over and (self._crew.is_leaving or self.is_ended_from_outside):
            conversation.end()
        if conversation.is_over:
            server.shutdown_request(request)
        else:
            self._suspended = conversation
        return Outcome.SERVED

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
        if error.errno in OUT_OF_RESOURCES:
            self._crew.shortage.begin(error)
            self._pause()
        elif error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSOCK):
            self._crew.mend(station, error)
            self._pause()
        elif error.errno not in _PEER_WENT_AWAY or type(error).__module__ == "ssl":  # whose errno 1 is no EPERM
            # not from accept(2): a get_request of the user's that shakes hands (TLS) and failed
            _log.info("get_request failed: %s", error)
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
            _log.error(text, *args, exc_info=True)
        except BaseException:  # noqa: BLE001
            pass  # raised by a handler of the user's logging configuration: there is nowhere left to say so
