"""What stands between a transport and a handler: it tells the seat when the connection is over, and when it failed.

Runs in the loop's thread. Data passes through here only on Unix sockets, of which the kernel does not tell when
something came last.
"""

import asyncio
import functools
import socket
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from poolserver.adapter import LINGER_BYTES, LINGER_TIMEOUT, has_input
from poolserver.aio import LoopHandler
from poolserver.rows import Outcome
from poolserver.station import Station

present: ContextVar[Any] = ContextVar("poolserver_present", default=None)
"""Whose connection the running callback or task is of: a seat, or a guest of the lobby, who may have one."""


class SeatOfProtocol(Protocol):
    """What a protocol tells its seat."""

    def on_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...

    def presented(self, transport: Any) -> Any: ...

    def on_failure(self, error: BaseException) -> None: ...

    def abort(self, outcome: Outcome) -> None: ...

    def on_lost(self, protocol: object) -> None: ...


class Stream(asyncio.StreamReaderProtocol):
    """For a coroutine function. ``heard``: when something came last, in monotonic seconds."""

    def __init__(
        self,
        seat: SeatOfProtocol,
        request: socket.socket,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # A callback, though none is needed: only with one StreamWriter.start_tls knows that this is the server's side.
        super().__init__(reader, seat.on_stream, loop)
        self.seat = seat
        self.request = request
        self.reader = reader
        """Kept: StreamReaderProtocol does not, and cuts the connection when its reader is collected."""
        self.heard = time.monotonic()

    @property
    def is_read_from(self) -> bool:
        """Whether the handler waits for its client."""
        return getattr(self.reader, "_waiter", self) is not None

    def data_received(self, data: bytes) -> None:
        """As ever, without the weak reference to the reader in between."""
        self.reader.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """As ever."""
        super().connection_lost(exc)
        self.seat.on_lost(self)

    @property
    def has_unread(self) -> bool:
        """Whether the handler has left something unread, whether it was read for it already or not."""
        return bool(getattr(self.reader, "_buffer", b"")) or has_input(self.request)

    def linger(self, transport: Any) -> None:
        """Half-close and read on, bounded, until the client has seen the reply and closes: see ``adapter.py``."""
        transport.set_protocol(Lingering(self, transport))
        transport.write_eof()
        transport.resume_reading()
        asyncio.get_running_loop().call_later(LINGER_TIMEOUT, transport.abort)


class Lingering(asyncio.Protocol):
    """Takes the place of a stream whose handler is through: nothing that comes is for anybody."""

    def __init__(self, stream: Stream, transport: Any) -> None:
        self._stream = stream
        self._transport = transport
        self._left = LINGER_BYTES

    def data_received(self, data: bytes) -> None:
        """Read, and forgotten."""
        self._left -= len(data)
        if self._left <= 0:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream is to know."""
        self._stream.connection_lost(exc)


class HearingStream(Stream):
    """For Unix sockets. What goes counts as heard, too."""

    def data_received(self, data: bytes) -> None:
        """As ever."""
        self.heard = time.monotonic()
        super().data_received(data)

    def listen_to(self, writer: asyncio.StreamWriter) -> None:
        """Note what is written there."""
        write, writelines = writer.write, writer.writelines

        def noting(act: Callable[[Any], None], what: Any) -> None:
            self.heard = time.monotonic()
            act(what)

        writer.write = functools.partial(noting, write)  # type: ignore[method-assign]
        writer.writelines = functools.partial(noting, writelines)  # type: ignore[method-assign]


class Presented:
    """A transport that names its real client, told by the PROXY protocol, as uvloop's cannot be made to."""

    def __init__(self, transport: Any, client: Any) -> None:
        self._transport = transport
        self._client = client

        self.get_extra_info = naming(client, transport.get_extra_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def secured(self, start_tls: Callable[..., Any], *args: Any, **options: Any) -> "Presented":
        """What stands for the transport that the loop's ``start_tls`` makes of ours."""
        return Presented(await start_tls(self._transport, *args, **options), self._client)


def naming(client: Any, get_extra_info: Callable[..., Any]) -> Callable[..., Any]:
    """``get_extra_info``, but that the peer is ``client``."""

    def told(name: str, default: Any = None) -> Any:
        return client if name == "peername" else get_extra_info(name, default)

    return told


def accept_presented(loop: Any) -> None:
    """Have ``loop.start_tls`` take what stands for a transport: uvloop's takes transports of its own alone."""
    start_tls = loop.start_tls

    async def start(transport: Any, *args: Any, **options: Any) -> Any:
        if isinstance(transport, Presented):
            return await transport.secured(start_tls, *args, **options)
        return await start_tls(transport, *args, **options)

    loop.start_tls = start


class _Watched:
    """Stands before a protocol class of the user's."""

    _poolserver_seat: SeatOfProtocol

    def connection_made(self, transport: Any) -> None:
        """As ever, but that one which raises ends the connection."""
        try:
            super().connection_made(self._poolserver_seat.presented(transport))  # type: ignore[misc]
        except BaseException as error:  # noqa: BLE001
            self._poolserver_seat.on_failure(error)
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """As ever."""
        seat = self._poolserver_seat
        try:
            super().connection_lost(exc)  # type: ignore[misc]
        except BaseException as error:  # noqa: BLE001
            seat.on_failure(error)
        seat.on_lost(self)


def protocol_for(handler: type[LoopHandler], station: Station, seat: SeatOfProtocol) -> Any:
    """A protocol of the user's class; its ``server`` is there from the constructor on.

    Raises:
        Exception: whatever its constructor does.
    """
    cls = derived(handler, station, _Watched)
    protocol = cls.__new__(cls)
    protocol._poolserver_seat = seat
    protocol.__init__()
    return protocol


def feed(protocol: Any, data: bytes) -> None:
    """Give a protocol of either kind what came before it was there. Source: asyncio.BufferedProtocol."""
    if not isinstance(protocol, asyncio.BufferedProtocol):
        protocol.data_received(data)
        return
    left = memoryview(data)
    while left:
        buffer = memoryview(protocol.get_buffer(len(left)))
        count = min(len(buffer), len(left))
        buffer[:count] = left[:count]
        protocol.buffer_updated(count)
        left = left[count:]


def seat_of(protocol: object) -> SeatOfProtocol | None:
    """Whose connection ``protocol`` has; None for a stranger."""
    seat: SeatOfProtocol | None = getattr(
        protocol, "seat" if isinstance(protocol, Stream) else "_poolserver_seat", None
    )
    return seat


def derived(handler: type[LoopHandler], station: Station, *bases: type) -> Any:
    """The user's class with ``bases`` before it, and with the attribute ``server`` unless it has one of its own."""
    return _derived(handler.target, station.server, bases)


@functools.cache
def _derived(target: Any, server: Any, bases: tuple[type, ...]) -> Any:
    members = {"__module__": target.__module__, "__qualname__": target.__qualname__, "__doc__": target.__doc__}
    own = {} if hasattr(target, "server") else {"server": server}
    return type(target.__name__, (*bases, target), members | own)
