"""A seat: one of the connections that an event loop serves at once, from accept to the closed ticket.

What comes before a handler (PROXY header, admission, what it is to have sent) is a lane's affair, whose code this is;
then a task serves it, and the loop goes on. Runs in the loop's thread.
"""

import asyncio
import logging
import math
import socket
import time
from typing import Any, Protocol

from poolserver import access, process
from poolserver.adapter import log_error, peer_name
from poolserver.aio import LoopHandler
from poolserver.aio_datagrams import DatagramTransport
from poolserver.aio_lobby import Guest, Lobby
from poolserver.aio_protocols import HearingStream, Presented, Stream, feed, naming, present, protocol_for
from poolserver.failures import log_line
from poolserver.handling import CrewOfLane
from poolserver.handover import Intake
from poolserver.lane import Lane
from poolserver.parked import Parked
from poolserver.rows import Outcome, Row
from poolserver.station import Station
from poolserver.tcp_info import is_reset, quiet_seconds
from poolserver.waits import Verdict


class Introduced(socket.socket):
    """A connection whose real client the PROXY protocol has told: ``get_extra_info("peername")`` says so."""

    client: Any = None

    @classmethod
    def over(cls, sock: socket.socket, client: Any) -> "Introduced":
        """In place of ``sock``."""
        made = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        made.client = client
        return made

    def getpeername(self) -> Any:
        """Who it is."""
        return self.client


def seat_here() -> "Seat | None":
    """The one whose handler asks, be it in a task that it has started; None where nobody's does."""
    owner = present.get()
    seat: Seat | None = owner.seat if isinstance(owner, Guest) else owner
    return seat


class FloorOfSeat(Protocol):
    """What a seat asks of the floor that it stands on."""

    loop: asyncio.AbstractEventLoop
    datagrams: dict[int, DatagramTransport]
    lobby: Lobby

    def begin(self, seat: "Seat") -> None: ...

    def release(self, seat: "Seat") -> None: ...

    def hold_back(self) -> None: ...


class Seat(Lane):
    """``task`` is what serves its connection, None once that is through; ``transport`` what it is served over."""

    def __init__(self, number: int, crew: CrewOfLane, row: Row, floor: FloorOfSeat) -> None:
        super().__init__(number, crew, row)
        self.task: asyncio.Task[None] | None = None
        self.transport: Any = None
        self.next_look = math.inf
        """When it may have been idle for too long, at the earliest."""
        self._floor = floor
        self._protocol: Any = None
        self._writer: asyncio.StreamWriter | None = None
        self._is_lost = False
        self._outcome = Outcome.SERVED

    def attend(self, post: Station | Intake | Parked | int | None) -> None:
        """See to what woke the loop: something for a seat that is free."""
        if isinstance(post, Station):
            self.take(post)
        elif isinstance(post, Intake):
            self._take_in(post)
        elif post is not None:
            self._take_up(post)

    def take_in(self, intake: Intake) -> bool:
        """Take what another worker sent. False: there was none."""
        return self._take_in(intake)

    def leave(self) -> None:
        """It is not there for new connections any more."""
        self.is_accepting = False
        self._row.absent()

    def open(self) -> None:
        """It is there."""
        self._row.idle()

    def receive(self, guest: Guest) -> None:
        """Go on with a connection that has been in the lobby."""
        parked = guest.parked
        guest.seat = self
        self._crew.park.give(parked, self._row.number)
        self._row.resume(peer_name(parked.address))
        self._handle(parked.station, parked.request, parked.address, parked, guest=guest)

    def cancel(self, outcome: Outcome) -> None:
        """End its connection as ``outcome``: cancel the handler, which may still say goodbye; a protocol has no say."""
        self.end_as(self.request, outcome)
        if self.task is not None and self._writer is not None:
            self.task.cancel()
        elif self.transport is not None:
            self.transport.abort()

    def abort(self, outcome: Outcome) -> None:
        """Cut its connection under the handler, which sees the end of its input."""
        self.end_as(self.request, outcome)
        if self.transport is not None:
            self.transport.abort()

    def look(self, now: float) -> None:
        """Cut it if it has been idle for too long: nothing came and nothing went, and its handler waits for that."""
        if self.transport is None:
            return
        if self._is_gone():
            self._finish()
            return
        idle = self._station.idle_timeout
        quiet = self._quiet(now)
        if quiet < idle or not self._is_waiting():
            self.next_look = now + max(idle - quiet, idle / 4)
        elif not self.is_ended_from_outside:
            self.abort(Outcome.TIMEOUT_IDLE)

    def on_stream(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The connection has its streams."""
        writer.server = self._station.server  # type: ignore[attr-defined]
        if self.presented(writer.transport) is not writer.transport:  # whose other methods can stay
            writer.get_extra_info = naming(self.address, writer.get_extra_info)  # type: ignore[method-assign]
        self._writer = writer
        if isinstance(self._protocol, HearingStream):
            self._protocol.listen_to(writer)

    def presented(self, transport: Any) -> Any:
        """``transport``, or what stands for it where it does not know the real client."""
        is_told = self._station.proxy_mode and transport.get_extra_info("peername") != self.address
        return Presented(transport, self.address) if is_told else transport

    def on_failure(self, error: BaseException) -> None:
        """A callback of the protocol raised: said, and counted when the connection is over."""
        self._outcome = Outcome.ERRORS
        self._say(error)

    def on_lost(self, protocol: object) -> None:
        """The transport is closed."""
        if protocol is self._protocol:
            self._is_lost = True
            self._measure()
            if self.task is None:
                self._finish()

    def _handle(
        self,
        station: Station,
        request: Any,
        address: Any,
        parked: Parked | None = None,
        *,
        guest: Guest | None = None,
    ) -> None:
        self._station = station
        self.address = address
        if not station.is_stream:
            self._deliver(station, request[0])
            return
        self.request = request
        if self._by_fd:
            self._crew.watch_closely()
        now = time.monotonic()
        self._born = parked.born if parked is not None else now
        if self._handler_timeout:
            self.deadline = now + self._handler_timeout
            self._row.ends_by(self.deadline)
        self.next_look = now + station.idle_timeout if station.idle_timeout else math.inf
        self._is_lost = False
        self._outcome = Outcome.SERVED
        self._floor.begin(self)
        if station.is_tcp and is_reset(request):
            request.close()
            self._outcome = Outcome.REFUSED_RESET
            self._finish()
            return
        self.task = self._floor.loop.create_task(self._attend_to(station, request, guest))

    def _deliver(self, station: Station, data: bytes) -> None:
        """A datagram is over when the protocol comes back, whatever tasks it has started."""
        end = Outcome.SERVED
        try:
            self._floor.datagrams[station.fd].deliver(data, self.address)
        except BaseException as error:  # noqa: BLE001 - the user's
            end = Outcome.ERRORS
            self._say(error)
        process.leave_if_forked(self._forks)
        self._row.end(end)
        if self._has_access_log:
            access.tell(station, self.address, self.number, time.monotonic(), (len(data), None), end)

    async def _attend_to(self, station: Station, request: socket.socket, guest: Guest | None) -> None:
        """The task: whatever a handler raises, SystemExit included, ends here."""
        present.set(self)
        handler: type[LoopHandler] = station.server.RequestHandlerClass  # type: ignore[assignment]
        try:
            await self._run(handler, request, guest)
        except asyncio.CancelledError:
            if not self.is_ended_from_outside:
                self._outcome = Outcome.ERRORS  # by itself, or by a task of its own
        except BaseException as error:  # noqa: BLE001
            self.on_failure(error)
        self.task = None
        if self.transport is None:
            self._measure()
            request.close()
            self._is_lost = True
        elif handler.is_coroutine or self.is_ended_from_outside:
            self._close()
        if self._is_lost:
            self._finish()

    async def _run(self, handler: type[LoopHandler], request: socket.socket, guest: Guest | None) -> None:
        """All of a coroutine; of a protocol, which goes on by itself, the beginning."""
        loop = self._floor.loop
        if not handler.is_coroutine:
            await self._connect(protocol_for(handler, self._station, self), request, guest)
            return
        reader = asyncio.StreamReader(loop=loop)
        kind = Stream if self._station.is_tcp else HearingStream
        await self._connect(kind(self, request, reader, loop), request, guest)
        if not self.is_ended_from_outside:
            await handler.target(reader, self._writer)

    async def _connect(self, protocol: Any, request: socket.socket, guest: Guest | None) -> None:
        self._protocol = protocol
        if guest is None:
            self.transport, _ = await self._floor.loop.connect_accepted_socket(lambda: protocol, request)
            return
        self.transport = guest.transport
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if guest.early:
            feed(protocol, guest.early)
        if guest.has_ended:
            protocol.eof_received()
        self.transport.resume_reading()

    def _is_introduced(self, parked: Parked) -> bool:
        """As for lanes; and asyncio is told the real client, too."""
        if not super()._is_introduced(parked):
            return False
        parked.request = Introduced.over(parked.request, parked.address)
        return True

    def _is_secured(self, parked: Parked) -> bool:
        """Once it has spoken, the handshake is the lobby's affair."""
        if not self._is_ready(parked):
            return False
        if parked.verdict is Verdict.ENDED:
            self._drop(parked, Outcome.REFUSED_TLS)
        else:
            self._floor.lobby.enter(parked, self._row.number)
        return False

    def _close(self) -> None:
        """Once all is sent; so that what the client is still sending does not destroy the reply."""
        # Of a handler that has put TLS on by itself, the one on top: its end is told.
        transport, protocol = self.transport if self._writer is None else self._writer.transport, self._protocol
        can_linger = isinstance(protocol, Stream) and not transport.is_closing() and transport.can_write_eof()
        if can_linger and not self.is_ended_from_outside and protocol.has_unread:
            protocol.linger(transport)
        else:
            transport.close()

    def _measure(self) -> None:
        """While the connection has a descriptor still."""
        if self._has_access_log:
            self._moved = access.moved(self.request)

    def _finish(self) -> None:
        process.leave_if_forked(self._forks)
        end = self._outcome
        if self._ended_from_outside is not None:
            end, self._ended_from_outside = self._settled(self.request, end), None
        station, moved = self._station, self._moved or access.UNCOUNTED
        if self._has_access_log and not end.is_refusal:
            access.tell(station, self.address, self.number, self._born, moved, end)
        self.request = self.transport = self._moved = self._protocol = self._writer = None
        self.deadline = self.next_look = math.inf
        if self._door is not None:
            self._door.closed(self._row.number)
        self._row.end(end)
        self._floor.release(self)

    def _is_gone(self) -> bool:
        """Whether the connection was closed while another protocol, which says nothing to us, had its transport."""
        return self.task is None and self.transport.is_closing() and self.request.fileno() < 0

    def _quiet(self, now: float) -> float:
        """Seconds in which nothing came and nothing went. On a Unix socket the kernel does not tell."""
        if self._station.is_tcp:
            return quiet_seconds(self.request)
        return now - self._protocol.heard if self._writer is not None else 0.0

    def _is_waiting(self) -> bool:
        """Whether it is the client that is waited for."""
        if self.transport.get_write_buffer_size():
            return True
        if self._writer is None:
            return bool(self.transport.is_reading())
        return bool(self._protocol.is_read_from)

    def _on_accept_error(self, station: Station, error: OSError) -> bool:
        """As for lanes, but nobody waits here."""
        is_taken = super()._on_accept_error(station, error)
        if self._crew.shortage.is_on:
            self._floor.hold_back()
        return is_taken

    def _pause(self) -> None:
        self._floor.hold_back()

    def _is_of_loss(self, error: BaseException) -> bool:
        """Whether the handler wrote to a connection that was gone. Source: uvloop 0.23, where asyncio says nothing."""
        is_gone = self._is_lost or self.is_ended_from_outside
        return is_gone and isinstance(error, RuntimeError) and "the handler is closed" in str(error)

    def _say(self, error: BaseException) -> None:
        try:
            if isinstance(error, asyncio.IncompleteReadError) or self._is_of_loss(error):  # left within a message
                text = "connection of %s ended by %s"
                log_line(logging.INFO, text, peer_name(self.address), type(error).__name__)
            else:
                log_error(self.address, error)
        except BaseException:  # noqa: BLE001
            pass  # raised by a handler of the user's logging configuration: there is nowhere left to say so
