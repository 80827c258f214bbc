"""What a lane does with a connection that it has: socketserver's public hooks, in their documented order.

Whatever a hook of the user's code raises, the lane lives on.
"""

import math
import socket
import sys
import time
from typing import Any, Protocol

from poolserver import access, process
from poolserver.adapter import LaneServer, log_error, peer_name
from poolserver.conversation import Conversation
from poolserver.door import Door
from poolserver.failures import log_failure
from poolserver.handover import Intake
from poolserver.park import Park
from poolserver.parked import Parked
from poolserver.process import FORKS
from poolserver.rows import Outcome, Row
from poolserver.shortage import Shortage
from poolserver.station import Station, Terms
from poolserver.tcp_info import is_idle, is_reset
from poolserver.waits import Verdict
from poolserver.wakeups import Wakeups

MAX_TURNS = 16
"""Exchanges in a row that a client gets by sending them all at once; then others have their turn."""


_SERVED = Outcome.SERVED  # to look it up in its class takes as long as ten other look-ups


class Watcher(Protocol):
    """Who looks after the parked; ``is_close``: often. ``hands_over``: to other workers, since this one leaves."""

    hands_over: bool

    @property
    def is_close(self) -> bool: ...


class CrewOfLane(Protocol):
    """What a lane asks of its crew."""

    stations: dict[int, Station]
    intakes: list[Intake]
    wakeups: Wakeups[Any]
    serves_queue: bool
    is_leaving: bool
    shortage: Shortage

    @property
    def attendant(self) -> Watcher: ...

    @property
    def has_parked(self) -> bool: ...

    @property
    def terms(self) -> Terms: ...

    @property
    def door(self) -> Door: ...

    @property
    def park(self) -> Park: ...

    def watch_closely(self, *, if_full: bool = False) -> None: ...

    def hand_over(self, parked: Parked) -> None: ...

    def step_back(self) -> None: ...

    def mend(self, station: Station, error: OSError) -> None: ...


class Handling:
    """Runs in a lane's thread.

    ``request`` and ``address`` are the connection it has, None while idle, for the crew to see.
    ``turns``: how many it had. ``thread_id``: the kernel's number of its thread.
    """

    def __init__(self, number: int, crew: CrewOfLane, row: Row) -> None:
        self.number = number
        self.request: Any = None
        self.address: Any = None
        self.deadline = math.inf
        self.turns = self.thread_id = 0
        self._ended_from_outside: tuple[Any, Outcome] | None = None
        self._suspended: Parked | None = None
        self._door = None if crew.door.is_open else crew.door
        self._handler_timeout = crew.terms.handler_timeout
        self._has_access_log = crew.terms.has_access_log
        self._moved: access.Moved | None = None
        self._forks = process.fork_count()
        self._crew = crew
        self._row = row
        self._by_fd, self._regulars = crew.park.by_fd, crew.park.regulars

    @property
    def began(self) -> float:
        """Since when it has the connection that it has, or had last; monotonic."""
        return self._row.began_ns / 1e9

    @property
    def is_ended_from_outside(self) -> bool:
        """Whether the connection was shut down under its handler."""
        ended = self._ended_from_outside
        return ended is not None and ended[0] is self.request

    def extend(self, seconds: float) -> None:
        """Move the handler deadline of the connection that it has."""
        self.deadline += seconds
        self._row.ends_by(self.deadline)

    def end_as(self, request: object, outcome: Outcome) -> None:
        """``request`` ends as ``outcome``, whatever its handler does now, unless this lane has another by then."""
        self._ended_from_outside = (request, outcome)

    @property
    def ending(self) -> Outcome:
        """How its connection ended, should its handler never come back to count it."""
        return self._settled(self.request, Outcome.CUT)

    def _settled(self, request: object, end: Outcome) -> Outcome:
        """How ``request`` ended: as whoever shut it down said, else as its handler did."""
        ended = self._ended_from_outside
        return ended[1] if ended is not None and ended[0] is request else end

    @property
    def is_hung(self) -> bool:
        """Whether its handler has been given up."""
        return self._row.is_hung

    def mark_hung(self) -> None:
        """Write it on the scoreboard: the lane itself cannot."""
        self._row.hung()

    def on_closing(self, request: object) -> None:
        """The connection is about to be closed: was it the idle time-out that ended it?"""
        if FORKS.count != self._forks:
            process.leave_if_forked(self._forks)
        if self._has_access_log:
            self._moved = access.moved(request)
        idle = self._station.idle_timeout
        may_be_idle = idle and time.monotonic() - self.began >= idle
        if may_be_idle and self._ended_from_outside is None and is_idle(request, idle):
            self.end_as(request, Outcome.TIMEOUT_IDLE)

    def _handle(self, station: Station, request: Any, address: Any, parked: Parked | None = None) -> None:
        """One connection, from admission to the closed ticket or the park, through the hooks in their documented
        order."""
        row, server = self._row, station.server
        self._station = station
        if self._handler_timeout:
            self.deadline = self.began + self._handler_timeout
            row.ends_by(self.deadline)
        self.address = address
        self.request = request  # after its deadline: the watcher cuts what is past the one that it finds
        self.turns += 1
        if self._by_fd or self._regulars:
            self._crew.watch_closely(if_full=True)
        try:
            end = self._serve(server, request, address, parked)
        except BaseException:  # noqa: BLE001 - a lane survives whatever a handler raises, SystemExit included
            process.leave_if_forked(self._forks)
            end = Outcome.ERRORS
            self._on_failure(server, request, address)
        self._come_to(end, station, request, address, parked)

    def _come_to(self, end: Outcome, station: Station, request: Any, address: Any, parked: Parked | None) -> None:
        """The connection is out of the handler's hands, suspended or over, as ``end`` or whoever cut it says."""
        row = self._row
        if FORKS.count != self._forks:
            process.leave_if_forked(self._forks)
        self.request = None
        if self._ended_from_outside is not None:
            end, self._ended_from_outside = self._settled(request, end), None
        if self._suspended is not None:
            suspended, self._suspended = self._suspended, None
            suspended.ending = end if end is not Outcome.SERVED else None  # cut just now
            self._suspend(suspended)
            return
        if self._door is not None:
            self._door.closed(row.number)
        row.end(end)
        if self._has_access_log:
            sizes, self._moved = self._moved, None
            if not end.is_refusal:
                born = parked.born if parked is not None else self.began
                access.tell(station, address, self.number, born, sizes or access.moved(request), end)

    def _suspend(self, parked: Parked) -> None:
        """The conversation goes on when the client speaks again, or at once, after others, if it has spoken."""
        self._row.idle()
        if parked.has_news or parked.ending is not None:
            self._crew.park.pass_on(parked, self._row.number)
        else:
            self._park(parked)

    def _serve(self, server: LaneServer, request: Any, address: Any, parked: Parked | None) -> Outcome:
        """The hooks, unless the client is gone already."""
        if parked is not None and parked.conversation is not None:
            parked.conversation.go_on(is_last=parked.verdict is Verdict.ENDED)
            return self._converse(server, request, parked.conversation, parked)
        station = self._station
        may_be_reset: Any = station.is_tcp
        if parked is None and station.is_direct:
            # Nobody has taken its error yet, and SO_ERROR takes half as long as TCP_INFO (0.5 us of 0.9).
            may_be_reset = request.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if may_be_reset and is_reset(request):
            server.shutdown_request(request)
            return Outcome.REFUSED_RESET
        if not server.verify_request(request, address):
            server.shutdown_request(request)
            return Outcome.REFUSED_VERIFY
        if station.is_conversational and isinstance(request, socket.socket):
            conversation = Conversation(server.RequestHandlerClass, request, address, server)
            return self._converse(server, request, conversation, parked)
        server.process_request(request, address)
        return _SERVED

    def _converse(self, server: LaneServer, request: Any, conversation: Conversation, parked: Parked | None) -> Outcome:
        """After an exchange: as many more as the client has sent already, within bounds; then it is over or is
        suspended."""
        turns = MAX_TURNS
        while not conversation.is_over and (has_input := conversation.has_input()) and turns:
            if FORKS.count != self._forks:
                process.leave_if_forked(self._forks)
            conversation.go_on()
            turns -= 1
        if not conversation.is_over and self._is_to_end(has_input):
            conversation.end()
        if conversation.is_over:
            server.shutdown_request(request)
        else:
            if parked is None:
                parked = Parked(self._station, request, self.address, self.began)
            parked.wait_again(conversation, self._claim(), has_news=has_input)
            self._suspended = parked
        return Outcome.SERVED

    def _is_to_end(self, has_input: bool) -> bool:
        """Whether a conversation that could go on ends here: its connection was cut, or its worker leaves and nobody
        is to have it."""
        is_left = self._crew.is_leaving and not self._crew.attendant.hands_over and not has_input
        return is_left or self.is_ended_from_outside

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

    def _claim(self) -> int:
        return self._door.claimed(self._row) if self._door is not None else 0

    def _park(self, parked: Parked) -> None:
        """Leave it to the park, and end whoever must go for it."""
        for victim in self._crew.park.add(parked, self._row.number):
            self._end(victim)
        if self._crew.park.has_too_many:
            self._crew.step_back()
        if self._crew.is_leaving:
            self._crew.watch_closely()

    def _end(self, parked: Parked) -> None:
        """It waited in vain: a handler that it has is finished, as at the end of its input."""
        if parked.conversation is not None:
            self._station = parked.station
            try:
                parked.conversation.end()
            except BaseException:  # noqa: BLE001 - finish() is the user's
                process.leave_if_forked(self._forks)
                self._on_failure(parked.station.server, parked.request, parked.address)
                self._moved = None
                parked.is_leaving = False
        if parked.is_leaving and self._crew.attendant.hands_over:
            parked.conversation = None
            self._crew.hand_over(parked)
        else:
            self._crew.park.drop(parked)

    def _report(self, text: str, *args: object) -> None:
        """Log an exception that has no other place to go. A log that cannot be written is no reason to die."""
        try:
            log_failure(text, *args)
        except BaseException:  # noqa: BLE001
            pass  # raised by a handler of the user's logging configuration: there is nowhere left to say so
