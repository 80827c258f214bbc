"""What a lane does with a newcomer before any handler has it: PROXY header, admission, TLS, what it is to have sent.

Whatever is not there yet is waited for in the park; the lane does not wait.
"""

import logging
import socket
import time
from typing import Any

from poolserver.adapter import peer_name, unix_peer
from poolserver.failures import log_line
from poolserver.handling import CrewOfLane, Handling
from poolserver.networks import source_of
from poolserver.parked import READY, UNFIT, Parked, has_usual, look
from poolserver.proxy_protocol import MAX_BYTES, Header, MalformedError, parse
from poolserver.rows import Outcome, Row
from poolserver.socket_options import set_idle_timeout
from poolserver.station import Station
from poolserver.tls import Handshake, secured, shake_hands
from poolserver.waits import Step, Verdict, Wait


class Reception(Handling):
    """Runs in a lane's thread."""

    def __init__(self, number: int, crew: CrewOfLane, row: Row) -> None:
        super().__init__(number, crew, row)
        self._max_head = crew.terms.max_head
        self._trusted = crew.terms.proxy_trusted

    def _receive(self, station: Station, request: Any, address: Any) -> None:
        """What has just come is handled, parked or turned away."""
        if station.is_plain:
            if self._door is None or self._door.lets_in(self._row, request, address):
                self._row.begin(peer_name(address))
                self._handle(station, request, address)
            return
        if station.is_unix_stream:
            address = address or unix_peer(request)
            set_idle_timeout(request, station.idle_timeout)
        if station.first_step is not Step.REQUEST:
            self._welcome(Parked(station, request, address, time.monotonic(), step=station.first_step))
            return
        if not (station.is_stream or self._is_whole(station.server, address)):
            return
        door, row = self._door, self._row
        if door is not None:
            is_stream = station.is_stream
            if not (door.lets_in(row, request, address) if is_stream else door.lets_in_datagram(row, address)):
                return
        can_wait = station.wait is not Wait.NONE and isinstance(request, socket.socket)
        if can_wait and not self._has_spoken(station, request, address):
            return
        row.begin(peer_name(address))
        self._handle(station, request, address)

    def _is_whole(self, server: Any, address: Any) -> bool:
        """Whether a datagram was not cut at ``max_packet_size``: no handler can make sense of a part. At which size a
        ``get_request`` of the user's cuts is its own affair."""
        cut_at = getattr(server.socket, "cut_at", 0)
        if not cut_at or cut_at != getattr(server, "max_packet_size", 0):
            return True
        self._row.refuse(Outcome.REFUSED_OVERSIZED)
        text = "a datagram of %s is refused: it is longer than %s.max_packet_size = %d"
        log_line(logging.WARNING, text, peer_name(address), type(server).__name__, cut_at)
        return False

    def _has_spoken(self, station: Station, request: Any, address: Any) -> bool:
        """Whether what is waited for is there. If not, the connection is parked, or over already."""
        if has_usual(request, station.usual_end, self._max_head):
            return True
        verdict = look(request, station.wait, self._max_head, may_be_tls=station.may_be_tls)
        if verdict in READY:
            return True
        self._row.accept()
        parked = Parked(station, request, address, time.monotonic(), self._claim())
        parked.has_begun = verdict is Verdict.PARTIAL
        if verdict in UNFIT:
            self._drop(parked, UNFIT[verdict])
        else:
            self._park(parked)
        return False

    def _welcome(self, parked: Parked) -> None:
        """A newcomer of whom more than a request is wanted."""
        self._row.accept()
        if parked.step is Step.HEADER and not self._is_trusted(parked):
            self._refuse(parked, Outcome.REFUSED_PROXY, "it is not in proxy_protocol.trusted")
        elif parked.step is Step.HEADER or self._is_admitted(parked):
            self._go_on(parked)

    def _go_on(self, parked: Parked) -> None:
        """From its step to its handler, or as far as it goes now."""
        station, is_new = parked.station, parked.step is not Step.REQUEST
        if parked.step is Step.HEADER and not self._is_introduced(parked):
            return
        if parked.step is Step.HANDSHAKE and not self._is_secured(parked):
            return
        if is_new and station.wait is not Wait.NONE and not self._is_ready(parked):
            return
        if station.tls is not None and parked.conversation is None:
            parked.request.settimeout(station.idle_timeout or None)  # the kernel's, OpenSSL would only try again
        self._row.resume(peer_name(parked.address))
        self._handle(station, parked.request, parked.address, parked)

    def _is_trusted(self, parked: Parked) -> bool:
        source = source_of(parked.address, 32, 128)
        return parked.station.is_unix_stream or self._trusted.contains(source.address, source.version)

    def _is_introduced(self, parked: Parked) -> bool:
        """Whether its PROXY header said whose connection it is, and that one is admitted."""
        if not self._is_ready(parked):
            return False
        try:
            header = _read_header(parked.request, parked.station.proxy_mode)
        except (MalformedError, OSError) as error:
            self._refuse(parked, Outcome.REFUSED_PROXY, str(error))
            return False
        parked.address = header.client or parked.address
        self._enter(parked, Step.HANDSHAKE if parked.station.tls is not None else Step.REQUEST)
        return self._is_admitted(parked)

    def _is_secured(self, parked: Parked) -> bool:
        """Whether the TLS handshake is complete. TLS is put on once there is something to read: a silent client costs
        no more than it does without."""
        if not self._is_ready(parked):
            return False
        if parked.verdict is Verdict.ENDED and not parked.has_begun:
            self._drop(parked, Outcome.REFUSED_TLS)  # a look whether somebody is here, as load balancers have it
            return False
        try:
            if not parked.has_begun:
                parked.has_begun = True
                parked.request = secured(parked.request, parked.station.tls)
            progress = shake_hands(parked.request)
        except (OSError, ValueError) as error:
            self._refuse(parked, Outcome.REFUSED_TLS, f"TLS handshake: {getattr(error, 'reason', None) or error}")
            return False
        parked.wants_room = progress is Handshake.WANTS_ROOM
        if progress is not Handshake.DONE:
            self._park(parked)
            return False
        parked.has_begun = False
        self._enter(parked, Step.REQUEST)
        return True

    def _is_admitted(self, parked: Parked) -> bool:
        door = self._door
        if door is None:
            return True
        if not door.lets_in(self._row, parked.request, parked.address, Row.count):
            return False
        parked.claim = door.claimed(self._row)
        return True

    def _is_ready(self, parked: Parked) -> bool:
        """Whether what its step waits for is there. If not, it is parked, or over already."""
        if parked.look(self._max_head) in READY:
            return True
        if parked.ending is None:
            parked.has_begun |= parked.step is Step.REQUEST and parked.verdict is Verdict.PARTIAL
            self._park(parked)
        else:
            self._drop(parked, parked.ending)
        return False

    @staticmethod
    def _enter(parked: Parked, step: Step) -> None:
        parked.step = step
        parked.since = time.monotonic()

    def _refuse(self, parked: Parked, outcome: Outcome, why: str) -> None:
        log_line(logging.INFO, "a connection of %s is refused: %s", peer_name(parked.address), why)
        self._drop(parked, outcome)

    def _drop(self, parked: Parked, outcome: Outcome) -> None:
        """It is over before a handler had it."""
        parked.ending = outcome
        self._crew.park.drop(parked)
        if self._door is not None:
            self._door.closed(self._row.number)


def _read_header(request: socket.socket, mode: str) -> Header:
    """Take the header, and nothing behind it, from a connection that has it, or that has ended.

    Raises:
        MalformedError: It is none.
        OSError: The connection was reset.
    """
    header = parse(socket.socket.recv(request, MAX_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT), mode)
    if header is None:
        raise MalformedError("it ended before its PROXY header was complete")
    if len(socket.socket.recv(request, header.size, socket.MSG_DONTWAIT)) < header.size:
        raise MalformedError("descriptors came within its PROXY header")
    return header
