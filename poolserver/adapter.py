"""What makes any socketserver server class fit for lanes: a mix-in over its hooks, and the classes it passes over.

The mix-ins of ``server.py`` inherit it, and ``adapted`` puts it before a class that knows nothing of poolserver. It
touches no private name of socketserver. It runs wherever lanes run.
"""

import contextlib
import fcntl
import logging
import os
import socket
import socketserver
import struct
import sys
import termios
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

from poolserver.failures import log_failure, log_line

LINGER_TIMEOUT = 2.0
LINGER_BYTES = 16 * 1024 * 1024
"""Bounds of reading on after the reply, for a client that is still sending: closing with unread input sends a reset
that destroys the reply on its way. nginx lingers for up to 30 s; a lane is dearer than an nginx connection."""

MAX_PEERS_NAMED = 10

_SO_MEMINFO = 55
"""asm-generic/socket.h; its first word is the memory that the receive queue takes."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER. Source: socket(7)."""

_NOTHING = bytes(struct.calcsize("i"))

_LEFT = ConnectionResetError | ConnectionAbortedError | BrokenPipeError
"""Not ConnectionRefusedError: whoever refused was no client, but a database, say."""


class CrewFace(Protocol):
    """What a server object knows of the crew whose lanes serve it."""

    @property
    def is_leaving(self) -> bool: ...

    @property
    def here(self) -> Any: ...

    def ask_stop(self) -> None: ...


if TYPE_CHECKING:
    _Server = socketserver.TCPServer
else:
    _Server = object


class LaneServer(_Server):
    """Mixed in before a socketserver class. ``crew`` is set while lanes serve it."""

    crew: CrewFace | None = None

    @property
    def draining(self) -> bool:
        """True once this worker is to leave, so that a long conversation can end politely."""
        return self.crew is not None and self.crew.is_leaving

    def extend(self, seconds: float) -> None:
        """In a handler: move this connection's handler deadline (``timeouts.handler``) by ``seconds``."""
        if self.crew is not None:
            self.crew.here.extend(seconds)

    def shutdown(self) -> None:
        """Stop the whole service. From a handler it returns at once: the handler itself is waited for."""
        if self.crew is None:
            super().shutdown()
        else:
            self.crew.ask_stop()

    def server_close(self) -> None:
        """As ever; in a handler refused, since it would close the listener under the other lanes."""
        if self.crew is not None and self.crew.here.is_lane:
            log_line(logging.ERROR, "a handler called server_close(): refused; server.shutdown() stops the service")
            return
        super().server_close()


def log_error(client_address: Any, error: BaseException | None = None) -> None:
    """Log the exception being handled, or ``error``, naming the peer.

    One that a client causes by leaving or by its silence is one line, no traceback.
    """
    error = error or sys.exception()
    if isinstance(error, _LEFT | TimeoutError | BlockingIOError):  # the last by a blocking call that met timeouts.idle
        log_line(logging.INFO, "connection of %s ended by %s", peer_name(client_address), type(error).__name__)
    else:
        log_failure("handler failed for %s", peer_name(client_address), error=error)


def peer_name(client_address: Any) -> str:
    """How a peer is written in the log and in the scoreboard."""
    if isinstance(client_address, tuple) and len(client_address) >= 2:
        host, port = client_address[0], client_address[1]
        if ":" not in (host if isinstance(host, str) else str(host)):
            return f"{host}:{port}"
        return host if isinstance(host, str) and host.startswith("unix:") else f"[{host}]:{port}"
    return str(client_address or "unix:unnamed")


def peer_names(addresses: Iterable[Any]) -> str:
    """The first few of them, and how many more there are."""
    names = [peer_name(address) for address in addresses]
    more = f" and {len(names) - MAX_PEERS_NAMED} more" if len(names) > MAX_PEERS_NAMED else ""
    return ", ".join(names[:MAX_PEERS_NAMED]) + more


def unix_peer(sock: socket.socket) -> tuple[str, int]:
    """A client address for a Unix peer, whose own is ``''``: http.server's logging, for one, wants a pair.

    Source: unix(7) SO_PEERCRED: the credentials of whoever connected, as of connect(2).
    """
    try:
        pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (OSError, AttributeError):
        return ("unix:unnamed", 0)  # a get_request of the user's gave something that is no Unix socket
    return (f"unix:uid={uid},pid={pid}", 0)


def has_service_actions(server: socketserver.BaseServer) -> bool:
    """Whether they do anything: to wake twice a second for nothing is what this pool is not for."""
    return type(server).service_actions is not socketserver.BaseServer.service_actions


def run_service_actions(servers: Iterable[socketserver.BaseServer]) -> None:
    """They are the user's to override; serving goes on whatever they raise."""
    for server in servers:
        try:
            server.service_actions()
        except BaseException:  # noqa: BLE001
            log_failure("service_actions failed")


def shut(request: object) -> None:
    """Unblock a handler by shutting its connection down under it; a datagram has none."""
    if isinstance(request, socket.socket):
        try:
            socket.socket.shutdown(request, socket.SHUT_RDWR)  # a TLS socket's own would go on in the clear
        except OSError:
            pass  # closed or reset meanwhile: unblocked already


def cut(request: object) -> None:
    """``shut``, and have the kernel forget what the client has not taken, by a reset once the handler has closed: for
    one that takes a byte now and then it would keep megabytes. A client that has taken all sees an end."""
    if isinstance(request, socket.socket):
        try:
            if fcntl.ioctl(request.fileno(), termios.TIOCOUTQ, _NOTHING) != _NOTHING:
                request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        except (OSError, ValueError):
            pass  # closed or reset meanwhile
    shut(request)


def close_for_good(request: Any) -> None:
    """``socket.close`` waits for every file made of it; a ``setup()`` that raised, a reset in ``wfile.close()``, or a
    handler that was not finished, leaves one open until some later garbage collection."""
    request.close()
    if request.fileno() >= 0:
        os.close(request.detach())


def _linger(sock: socket.socket) -> None:
    """Half-close and read on, until the client has seen the reply and closes."""
    with contextlib.suppress(OSError, ValueError):  # reset, or closed by a thread of the handler: nothing to save
        sock.shutdown(socket.SHUT_WR)
        give_up = time.monotonic() + LINGER_TIMEOUT
        left = LINGER_BYTES
        scratch = bytearray(65536)
        while left > 0 and (patience := give_up - time.monotonic()) > 0:
            sock.settimeout(patience)
            count = socket.socket.recv_into(sock, scratch)
            if count == 0:
                return
            left -= count


def has_input(sock: socket.socket) -> bool:
    """Whether anything is unread: by SO_MEMINFO, which keeps the interpreter's lock and mostly says that nothing is;
    else by FIONREAD, which does not count an end of file. Neither waits, as recv on a socket with a time-out would.

    Source: Linux, sock_getsockopt; ioctl(2).
    """
    try:
        if sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4) == _NOTHING:
            return False
        return fcntl.ioctl(sock.fileno(), termios.FIONREAD, _NOTHING) != _NOTHING
    except (OSError, ValueError):
        return False


class _CarefulClosing(socketserver.TCPServer):
    """Stands right before TCPServer: a reply is not destroyed by unread input, and the descriptor is closed for
    certain. So a user's own ``shutdown_request`` may keep the connection."""

    crew: CrewFace | None = None

    def shutdown_request(self, request: Any) -> None:
        if self.crew is not None:
            self.crew.here.lane.on_closing(request)
        if has_input(request):
            _linger(request)
        super().shutdown_request(request)
        if request.fileno() >= 0:
            close_for_good(request)


class _LoggedErrors(socketserver.BaseServer):
    """Stands right before BaseServer, whose ``handle_error`` prints: a full disk behind standard error then ends its
    loop. So a user's own, too, logs where it calls ``super()``."""

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        log_error(client_address)


class _InlineThreading(socketserver.ThreadingMixIn):
    """Stands before ThreadingMixIn: the lane handles the request, as a thread beside the lanes would be unbounded."""

    def process_request(self, request: Any, client_address: Any) -> None:
        super(socketserver.ThreadingMixIn, self).process_request(request, client_address)  # type: ignore[misc]


class _InlineForking(socketserver.ForkingMixIn):
    """Stands before ForkingMixIn: likewise, and its ``waitpid`` would steal the exit status of others' children."""

    def process_request(self, request: Any, client_address: Any) -> None:
        super(socketserver.ForkingMixIn, self).process_request(request, client_address)  # type: ignore[misc]

    def service_actions(self) -> None:
        super(socketserver.ForkingMixIn, self).service_actions()  # type: ignore[misc]

    def handle_timeout(self) -> None:
        super(socketserver.ForkingMixIn, self).handle_timeout()  # type: ignore[misc]


_PASSED_OVER: dict[type, type] = {
    socketserver.ThreadingMixIn: _InlineThreading,
    socketserver.ForkingMixIn: _InlineForking,
}


_IMPROVED: dict[type, type] = {
    socketserver.TCPServer: _CarefulClosing,
    socketserver.BaseServer: _LoggedErrors,
}


def pass_over_stock_mixins(cls: type) -> None:
    """Where a stock mix-in is an ancestor of ``cls``, put the class that passes it over right before it.

    Adding a base puts it just there in the method resolution order, so a ``process_request`` that the user wrote in a
    nearer class is kept, and its ``super()`` call meets ours. BaseServer's ``handle_error`` is passed over likewise.
    """
    for stock, inline in [*_PASSED_OVER.items(), *_IMPROVED.items()]:
        if issubclass(cls, stock) and not issubclass(cls, inline):
            bases = list(cls.__bases__)
            bases.insert(bases.index(stock) if stock in bases else len(bases), inline)
            cls.__bases__ = tuple(bases)


def passed_over(cls: type) -> list[str]:
    """The stock mix-ins that ``cls`` has and that lanes pass over."""
    return [stock.__name__ for stock in _PASSED_OVER if issubclass(cls, stock)]


def adapted(cls: type[socketserver.BaseServer]) -> type[socketserver.BaseServer]:
    """``cls`` with LaneServer before it."""
    if issubclass(cls, LaneServer):
        return cls
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    made = type(cls.__name__, (LaneServer, cls), names)
    pass_over_stock_mixins(made)
    return made
