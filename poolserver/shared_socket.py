"""A listener as lanes, server objects and handlers see it: what would break it for every other process does nothing."""

import logging
import os
import socket
from typing import Any, Self

from poolserver.failures import log_line


class SharedSocket(socket.socket):
    """A listener as lanes, server objects and handlers see it.

    It is bound and listening already, and its open file belongs to every worker, so ``bind``, ``listen``,
    ``shutdown``, ``close`` and blocking mode are not theirs to change: a ``server_bind()`` of a user's class may run
    against it (HTTPServer's sets ``server_name``), and a handler that closes it takes nothing down.
    """

    __slots__ = ("_kind",)  # with a dict, CPython 3.11 looks each of its methods up anew

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kind = super().family, super().type, self.proto
        if self.gettimeout():  # socket.setdefaulttimeout, by a handler's module: accept would wait, deaf to a stop
            super().settimeout(0)

    @property
    def family(self) -> socket.AddressFamily:
        return self._kind[0]

    @property
    def type(self) -> socket.SocketKind:
        return self._kind[1]

    @classmethod
    def over(cls, listener: socket.socket) -> Self:
        """A second descriptor of the same open file. ``release`` closes it."""
        return cls(listener.family, listener.type, listener.proto, fileno=os.dup(listener.fileno()))

    def accept(self) -> tuple[socket.socket, Any]:
        """As ever, without asking each time for what never changes: of which kind this is, and that it does not block.
        Source: measured, 2,400 instructions of the 98,000 that a short connection takes."""
        fd, address = self._accept()  # type: ignore[attr-defined] # accept(2) in C, as socket.accept calls it
        family, kind, proto = self._kind
        return socket.socket(family, kind, proto, fileno=fd), address

    def bind(self, address: object, /) -> None:
        """Nothing: it is bound."""

    def listen(self, backlog: int = 0, /) -> None:
        """Nothing: it listens, with the configured backlog."""

    def setsockopt(self, *args: Any) -> None:
        """As ever, but for address and port reuse: too late for a bound socket, and a hole on UDP."""
        if args[:2] not in (
            (socket.SOL_SOCKET, socket.SO_REUSEADDR),
            (socket.SOL_SOCKET, socket.SO_REUSEPORT),
        ):
            super().setsockopt(*args)

    def setblocking(self, flag: bool, /) -> None:
        """Nothing: it stays non-blocking, in every process at once."""

    def settimeout(self, value: float | None, /) -> None:
        """Nothing, for the same reason."""

    def shutdown(self, how: int, /) -> None:  # noqa: ARG002 - the signature of socket.shutdown
        log_line(logging.ERROR, "a handler tried to shut down a listener: refused, since every worker shares it")

    def close(self) -> None:
        log_line(logging.ERROR, "a handler tried to close a listener: refused; server.shutdown() stops the service")

    def release(self) -> None:
        """Close this descriptor: for its owner."""
        super().close()
