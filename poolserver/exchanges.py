"""The next exchange of a conversation that a lane takes out of the park and, as a rule, puts back in its place.

Written for few steps, since they are what keep-alive costs: whatever is not as usual goes the way of all others.
"""

import socket
from typing import Any

from poolserver import process
from poolserver.handling import CrewOfLane
from poolserver.parked import Parked
from poolserver.process import FORKS
from poolserver.reception import Reception
from poolserver.rows import Outcome, Row, now_ns

_GLANCE = 2048
"""Bytes that are looked at first: nearly every line or head is shorter."""

_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_recv_into = socket.socket.recv_into


class Exchanges(Reception):
    """Runs in a lane's thread."""

    def __init__(self, number: int, crew: CrewOfLane, row: Row) -> None:
        super().__init__(number, crew, row)
        self._attendant, self._lot = crew.attendant, crew.park
        self._glance = bytearray(min(_GLANCE, crew.terms.max_head))

    def _exchange(self, parked: Parked) -> bool:
        """Go on with ``parked``, which was just taken out of the regulars. False: its next request is not whole; it is
        parked as any other, and ``take`` says what it is."""
        request, station = parked.request, parked.station
        try:
            octets = _recv_into(request, self._glance, 0, _PEEK)
        except OSError:
            octets = 0  # closed; or read already; or urgent, of which the epoll tells, asked so, again and again
        if not octets or self._glance.find(station.usual_end, 0, octets) < 0:
            self._lot.demote(parked)
            return False
        conversation: Any = parked.conversation
        row = self._row
        row.go_on(parked.peer)
        if self._handler_timeout:
            self.deadline = self.began + self._handler_timeout
            row.ends_by(self.deadline)
        self._station, self.address, self.request = station, parked.address, request
        self.turns += 1
        if not self._attendant.is_close:
            self._crew.watch_closely(if_full=True)
        try:
            is_as_before = conversation.goes_on_as_before()
            if FORKS.count != self._forks:
                process.leave_if_forked(self._forks)
            if is_as_before and self._is_put_back(parked):
                return True
            self._release(parked)
            end = self._converse(station.server, request, conversation, parked)
        except BaseException:  # noqa: BLE001 - as in _handle
            process.leave_if_forked(self._forks)
            if parked.is_regular:
                self._release(parked)
            end = Outcome.ERRORS
            self._on_failure(station.server, request, parked.address)
        self._come_to(end, station, request, parked.address, parked)
        return True

    def _is_put_back(self, parked: Parked) -> bool:
        """Whether it waits for its next request where it did before: nobody has cut it, and lanes still look there."""
        request = parked.request
        if self._ended_from_outside is not None or request.fileno() != parked.fd:
            return False
        self.request = None
        now = now_ns()
        parked.since = now / 1e9
        if self._lot.put_back(parked):
            self._row.pause(now)
            return True
        self.request = request
        return False

    def _release(self, parked: Parked) -> None:
        """What was among the regulars is this lane's alone, as its row says then."""
        self._lot.release(parked, self._row.number)
        self._row.keep()
