"""A datagram listener as lanes, server objects and handlers see it: what a stock socket would get wrong for them.

An answer leaves from the address that the question came to, also where the listener has all of the machine's; a
datagram that is longer than it was read is noticed; who has nothing to say sends nothing.
"""

import select
import socket
import socketserver
import struct
import sys
import threading
from typing import Any, Self

from poolserver.shared_socket import SharedSocket

SEND_PATIENCE = 1
"""Seconds that an answer waits for room in the send buffer; then the handler sees BlockingIOError."""

_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
_IP_PKTINFO = 8  # linux/in.h; the socket module does not name it
_IN_PKTINFO = struct.Struct("=I4s4s")  # interface, the local address, the address in the packet's header
_IN6_PKTINFO = struct.Struct("=16sI")  # the address in the packet's header, interface
_ANCILLARY_BYTES = socket.CMSG_SPACE(_IN6_PKTINFO.size)

ControlMessage = tuple[int, int, bytes]


class _Question(threading.local):
    """What the calling lane has read last."""

    asker: Any = None
    origin: tuple[ControlMessage, ...] = ()
    """Where it came to, as the answer is to say it; nothing where the socket has one address only."""
    cut_at = 0


class SharedDatagramSocket(SharedSocket):
    """Each lane has its own question, though all have this socket: what it sends to its asker is the answer.

    A thread that a handler starts has none: what it sends leaves from whichever address the kernel takes.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._question = _Question()

    @classmethod
    def over(cls, listener: socket.socket) -> Self:
        """As for any listener. On one that has several addresses the kernel is asked to tell them."""
        shared = super().over(listener)
        if listener.family == socket.AF_INET and listener.getsockname()[0] in _WILDCARDS:
            shared.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        elif listener.family == socket.AF_INET6 and listener.getsockname()[0] in _WILDCARDS:
            shared.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        return shared

    @property
    def cut_at(self) -> int:
        """How much was read of the datagram that the calling lane has read last, if it was longer; else 0."""
        return self._question.cut_at

    @property
    def origin(self) -> tuple[ControlMessage, ...]:
        """Where it came to, as an answer is to say it; nothing where the socket has one address only."""
        return self._question.origin

    def answer(self, data: Any, address: Any, origin: tuple[ControlMessage, ...]) -> None:
        """Send ``data`` so that it leaves from ``origin``. Raises BlockingIOError where there is no room."""
        if origin:
            self.sendmsg([data], origin, 0, address)
        else:
            super().sendto(data, 0, address)

    def recvfrom(self, size: int, flags: int = 0, /) -> tuple[bytes, Any]:
        """As ever. Source: recvmsg(2) MSG_TRUNC, ip(7) IP_PKTINFO, ipv6(7) IPV6_RECVPKTINFO."""
        data, about, marks, asker = self.recvmsg(size, _ANCILLARY_BYTES, flags)
        question = self._question
        question.asker = asker
        question.origin = _origin(about[0]) if about else ()
        question.cut_at = size if marks & socket.MSG_TRUNC and not flags & socket.MSG_PEEK else 0
        return data, asker

    def sendto(self, data: Any, *args: Any) -> int:
        """As ever, but for an answer to nobody, an unnamed Unix peer; and for the empty one of
        ``DatagramRequestHandler.finish()``, which answers every datagram: two such servers would answer each other for
        ever. A handler that sends an empty datagram itself means it."""
        flags, address = args if len(args) == 2 else (0, *args)
        if not address or (not data and _is_stock_finish()):
            return len(data)
        try:
            return self._send(data, flags, address)
        except BlockingIOError:
            poller = select.poll()  # a full send buffer: a handler expects a socket that waits
            poller.register(self, select.POLLOUT)
            poller.poll(SEND_PATIENCE * 1000)
            return self._send(data, flags, address)

    def _send(self, data: Any, flags: int, address: Any) -> int:
        question = self._question
        if question.origin and address == question.asker:
            return self.sendmsg([data], question.origin, flags, address)
        return super().sendto(data, flags, address)


def shared(listener: socket.socket) -> SharedSocket:
    """What is put before lanes for a listener of either kind."""
    kind = SharedDatagramSocket if listener.type == socket.SOCK_DGRAM else SharedSocket
    return kind.over(listener)


def _is_stock_finish() -> bool:
    """Whether it is ``DatagramRequestHandler.finish`` that calls ``sendto``: nothing but the caller tells its empty
    answer from one that a handler means."""
    return sys._getframe(2).f_code is socketserver.DatagramRequestHandler.finish.__code__


def _origin(told: ControlMessage) -> tuple[ControlMessage, ...]:
    """What the kernel told of a datagram, turned into what the answer is to be sent with.

    The interface is left to the routes, since a network may be reached by another than it is heard on; but for a
    link-local address, which means nothing without it. A multicast address is no origin.
    """
    level, kind, octets = told
    if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
        _, local, _ = _IN_PKTINFO.unpack(octets)
        return ((level, kind, _IN_PKTINFO.pack(0, local, bytes(4))),)
    if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
        local, interface = _IN6_PKTINFO.unpack(octets)
        is_multicast, is_link_local = local[0] == 0xFF, local[0] == 0xFE and local[1] & 0xC0 == 0x80
        return () if is_multicast else ((level, kind, _IN6_PKTINFO.pack(local, interface if is_link_local else 0)),)
    return ()
