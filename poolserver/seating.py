"""The server objects that lanes serve: a user's class, or socketserver's own, on a listener that the master bound."""

import errno
import inspect
import socket
import socketserver
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar, cast

from poolserver.adapter import LaneServer, adapted
from poolserver.aio import LoopHandler
from poolserver.datagrams import shared
from poolserver.errors import ConfigError
from poolserver.listener import Listener
from poolserver.shared_socket import SharedSocket


class PlainHTTPServer(HTTPServer):
    """HTTPServer without its look-up of the host's full name, which a dead resolver makes a wait of seconds."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        address: Any = self.server_address
        self.server_name, self.server_port = (str(address), 0) if isinstance(address, str) else address[:2]


class LargeUDPServer(socketserver.UDPServer):
    """For asyncio's protocols, to which 8192 bytes are no bound."""

    max_packet_size = 65536


class _Seated(LaneServer):
    """A server object on the master's listener, ``seat``, in place of the socket that its constructor makes.

    Its own ``server_bind`` and ``server_activate`` run once, against a socket on which ``bind`` and ``listen`` do
    nothing; in the constructor, if the class binds there whatever it is told.
    """

    seat: ClassVar[SharedSocket]
    _is_bound = False

    def take_seat(self) -> None:
        """After the constructor."""
        refuse_wrapped(self.socket)
        if not self._is_bound:
            self.server_bind()
            self.server_activate()

    def server_bind(self) -> None:
        """Run the class's own, on the seat."""
        self._is_bound = True
        refuse_wrapped(self.socket)
        self.socket.close()
        self.socket = self.seat
        super().server_bind()


def refuse_wrapped(sock: socket.socket) -> None:
    """Refuse a listener that speaks TLS: one silent client would stop a lane for ever, and over a plain descriptor of
    it everything would be sent in the clear.

    Raises:
        ConfigError: says where to wrap instead.
    """
    if getattr(sock, "context", None) is not None:
        raise ConfigError("a TLS-wrapped listener cannot be shared: bind tls://, or wrap each connection in setup()")


def server_for(handler: Any, server_class: type[socketserver.BaseServer] | None, listener: Listener) -> LaneServer:
    """The server object for a listener; without a ``server_class`` socketserver's own for its kind.

    Raises:
        ConfigError: the class does not take its listener; ``details`` has the traceback.
    """
    stock = server_class or _stock_class(handler, listener)
    names = {"address_family": listener.address.family, "seat": shared(listener.socket)}
    cls = type(stock.__name__, (_Seated, adapted(stock)), names | {"__module__": stock.__module__})
    try:
        server = _made(cls, listener, handler)
        server.take_seat()
        return server
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"server class {stock.__name__} cannot be made for {listener.url}: {type(error).__name__}: {error}",
            traceback.format_exc(),
        ) from error


def _made(cls: type[_Seated], listener: Listener, handler: Any) -> _Seated:
    """The constructor opens a socket, if only to throw it away: where no family but AF_UNIX may be opened, one of that.

    Source: systemd.exec(5), RestrictAddressFamilies=.
    """
    address = listener.socket.getsockname()
    try:
        return cast(_Seated, _call(cls, address, handler))
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
    cls.address_family = socket.AF_UNIX
    server = cast(_Seated, _call(cls, address, handler))
    server.address_family = listener.address.family
    return server


def _call(cls: type[socketserver.BaseServer], address: Any, handler: Any) -> socketserver.BaseServer:
    """``cls(address, handler, bind_and_activate=False)``, less what its signature lacks."""
    make: Any = cls
    if handler is not None and cls.__init__ is socketserver.TCPServer.__init__:
        # Most are so, and inspect would touch, and so copy, 0.1 MiB of what every worker shares with its master.
        return cast(socketserver.BaseServer, make(address, handler, bind_and_activate=False))
    parameters = inspect.signature(cls).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    others = [each for name, each in parameters.items() if each.kind in positional and name != "bind_and_activate"]
    places = sum(99 if each.kind is positional[2] else 1 for each in others)
    arguments = [address] if handler is None or places < 2 else [address, handler]
    if takes_any or "bind_and_activate" in parameters:
        return cast(socketserver.BaseServer, make(*arguments, bind_and_activate=False))
    return cast(socketserver.BaseServer, make(*arguments))


def _stock_class(handler: Any, listener: Listener) -> type[socketserver.BaseServer]:
    if not listener.is_stream:
        is_on_loop = isinstance(handler, type) and issubclass(handler, LoopHandler)
        return LargeUDPServer if is_on_loop else socketserver.UDPServer
    if isinstance(handler, type) and issubclass(handler, BaseHTTPRequestHandler):
        return PlainHTTPServer
    return socketserver.TCPServer
