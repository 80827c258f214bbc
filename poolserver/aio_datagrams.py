"""A datagram listener as an ``asyncio.DatagramProtocol`` has it: its transport, over the socket that all workers share.

Each datagram comes through a seat, whose limits and counts apply to it. An answer to somebody who has asked here leaves
from the address that was asked, also on a wildcard address, and also some time later. Runs in the loop's thread.
"""

import asyncio
import collections
from typing import Any

from poolserver.adapter import peer_name
from poolserver.aio import LoopHandler
from poolserver.aio_protocols import derived
from poolserver.datagrams import ControlMessage, SharedDatagramSocket
from poolserver.errors import ConfigError
from poolserver.failures import log_failure
from poolserver.station import Station

MAX_REMEMBERED = 4096
"""Askers of whom it is known which address they asked; the oldest is forgotten."""

MAX_UNSENT_BYTES = 1024 * 1024
"""What may wait for room in the send buffer; more is dropped, as the network drops it."""


class DatagramTransport(asyncio.DatagramTransport):
    """``close`` closes it for this protocol object alone: the socket is every worker's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, station: Station) -> None:
        sock = station.server.socket
        super().__init__({"socket": sock, "sockname": station.sockaddr, "peername": None, "server": station.server})
        assert isinstance(sock, SharedDatagramSocket)
        self.protocol: Any = None
        self._loop = loop
        self._sock = sock
        self._origins: collections.OrderedDict[Any, tuple[ControlMessage, ...]] = collections.OrderedDict()
        self._unsent: collections.deque[tuple[bytes, Any]] = collections.deque()
        self._unsent_bytes = 0
        self._is_closing = False

    @classmethod
    def open(cls, loop: asyncio.AbstractEventLoop, station: Station) -> "DatagramTransport":
        """With a protocol object of its own.

        Raises:
            ConfigError: that cannot be made, or not connected.
        """
        handler: type[LoopHandler] = station.server.RequestHandlerClass  # type: ignore[assignment]
        transport = cls(loop, station)
        try:
            transport.protocol = derived(handler, station)()
            transport.protocol.connection_made(transport)
        except BaseException as error:
            text = f"server.handler: {handler.__name__} cannot be made: {type(error).__name__}: {error}"
            raise ConfigError(text) from error
        return transport

    def deliver(self, data: bytes, address: Any) -> None:
        """Hand over a datagram that was read just now. Raises whatever the protocol does."""
        if origin := self._sock.origin:
            self._origins[address] = origin
            self._origins.move_to_end(address)
            if len(self._origins) > MAX_REMEMBERED:
                self._origins.popitem(last=False)
        if not self._is_closing:
            self.protocol.datagram_received(data, address)

    def sendto(self, data: Any, addr: Any = None) -> None:
        """As ever; nothing is sent to nobody, and an empty datagram is not sent."""
        if not data or not addr or self._is_closing:
            return
        if not self._unsent:
            try:
                self._send(data, addr)
                return
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._send_unsent)
        if self._unsent_bytes + len(data) <= MAX_UNSENT_BYTES:
            self._unsent_bytes += len(data)
            self._unsent.append((bytes(data), addr))

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for room."""
        return self._unsent_bytes

    def is_closing(self) -> bool:
        """As ever."""
        return self._is_closing

    def close(self) -> None:
        """As ever; what waits for room is not sent any more."""
        if not self._is_closing:
            self._is_closing = True
            self._unsent.clear()
            self._unsent_bytes = 0
            self._loop.remove_writer(self._sock.fileno())
            self._loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        try:
            self.protocol.connection_lost(None)
        except BaseException:  # noqa: BLE001 - the user's
            log_failure("connection_lost failed")

    def _send(self, data: Any, addr: Any) -> None:
        try:
            self._sock.answer(data, addr, self._origins.get(addr, ()))
        except BlockingIOError:
            raise
        except OSError as error:
            self._tell(error, addr)

    def _tell(self, error: OSError, addr: Any) -> None:
        try:
            self.protocol.error_received(error)
        except BaseException:  # noqa: BLE001 - the user's
            log_failure("error_received failed for %s", peer_name(addr))

    def _send_unsent(self) -> None:
        try:
            while self._unsent:
                self._send(*self._unsent[0])
                self._unsent_bytes -= len(self._unsent.popleft()[0])
        except BlockingIOError:
            return
        self._loop.remove_writer(self._sock.fileno())
