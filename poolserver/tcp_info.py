"""What the kernel knows of a TCP socket: ``getsockopt(TCP_INFO)``, which neither waits nor lets others run.

Offsets are of ``struct tcp_info``, which only ever grows at its end. Source: tcp(7), linux/tcp.h.
"""

import socket
import struct

_STATE = 0
_UNACKED = 24  # for a listener: the length of its accept queue
_LAST_RECEIVED = 52  # milliseconds since data came

_TCP_CLOSE = 7
_NONE = bytes(4)

UNTOLD_QUEUE = 4096
"""For sockets that do not tell their queue's length: the default of somaxconn, which bounds any."""


def queue_length(sock: socket.socket) -> int:
    """How many connections wait to be accepted; for sockets that do not tell, the most there can be.

    Source: unix(7) has nothing like it.
    """
    if sock.family == socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        return UNTOLD_QUEUE
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
    except OSError:
        return UNTOLD_QUEUE
    return int(struct.unpack_from("=I", info, _UNACKED)[0])


def has_queue(sock: socket.socket) -> bool:
    """Whether a connection waits on this TCP listener to be accepted."""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)[_UNACKED:] != _NONE
    except OSError:
        return True  # closed by a handler: whoever looks will mend it


def is_idle(request: object, seconds: float) -> bool:
    """Whether nothing was received on this connection for so long, as far as the kernel tells. Source: tcp(7)."""
    if not isinstance(request, socket.socket):
        return False
    try:
        info = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED + 4)
    except OSError:
        return True  # a Unix socket does not tell; the handler was at it for long enough
    return bool(struct.unpack_from("=I", info, _LAST_RECEIVED)[0] >= seconds * 1000 - 10)


def is_reset(request: socket.socket) -> bool:
    """Whether the peer has reset this connection already: nobody would see what a handler does.

    After a FIN alone the state is CLOSE_WAIT, which must still be served: half-close is legal.
    """
    try:
        return request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:
        return False  # not TCP after all: let the handler find out
