"""What the kernel knows of a TCP socket: ``getsockopt(TCP_INFO)``, which neither waits nor lets others run.

Offsets are of ``struct tcp_info``, which only ever grows at its end. Source: tcp(7), linux/tcp.h.
"""

import select
import socket
import ssl
import struct
import sys

_STATE = 0
_UNACKED = 24  # for a listener: the length of its accept queue
_LAST_SENT = 44  # milliseconds since data went, since an acknowledgement went, and since data came

_RECEIVED = 128
_NOT_SENT = 144
_SENT = 200  # and after it what of this was sent again

_JIFFY = 10  # milliseconds: what the kernel counts in, at its coarsest

_TCP_CLOSE = 7
_ENDED_STATES = (6, 8, 9, 11)
"""TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: the peer has sent its end. Source: net/tcp_states.h."""
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


def transferred(request: socket.socket) -> tuple[int, int] | None:
    """Bytes that the peer has sent, and that were written to it, on the wire or still to go; None: not TCP, or an old
    kernel. TLS and a reply that the peer has not taken count as what they are; the peer's end, which the kernel counts
    as a byte, does not. Source: Linux 4.19, tcp_get_info, tcp_fin."""
    try:
        info = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT + 16)
        (received,) = struct.unpack_from("=Q", info, _RECEIVED)
        (waiting,) = struct.unpack_from("=I", info, _NOT_SENT)
        sent, again = struct.unpack_from("=2Q", info, _SENT)
    except (OSError, struct.error):
        return None
    return received - (info[_STATE] in _ENDED_STATES), sent - again + waiting


def is_idle(request: object, seconds: float) -> bool:
    """Whether ``SO_RCVTIMEO`` or ``SO_SNDTIMEO`` of ``seconds`` has ended this connection, as far as can be told by a
    handler that is through with it; for TLS, whose sockets have it as their own time-out, that. It took at least so
    long, or do not ask.

    Either the time-out's exception is being handled, or the client is there, has sent nothing that is unread, and on
    TCP nothing went either way for so long. What cannot be told apart: a handler that was busy elsewhere all that
    time and neither heard from its client nor told it anything; on a Unix socket, whatever it told it. A time-out that
    a handler has set itself is another matter: then these do not apply. Source: tcp(7), socket(7).
    """
    own = seconds if isinstance(request, ssl.SSLSocket) else None
    if not isinstance(request, socket.socket) or request.gettimeout() != own:
        return False
    if isinstance(sys.exception(), BlockingIOError if own is None else TimeoutError):
        return True
    try:
        if _is_readable(request):
            return False
        info = request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_SENT + 12)
    except (OSError, ValueError):
        return request.family == socket.AF_UNIX and request.fileno() >= 0
    sent, _, received = struct.unpack_from("=3I", info, _LAST_SENT)
    return bool(min(sent, received) >= seconds * 1000 - _JIFFY)


def quiet_seconds(sock: socket.socket) -> float:
    """For how long nothing came on this TCP connection and nothing went; 0 for one that is closed."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_SENT + 12)
    except OSError:
        return 0.0
    sent, _, received = struct.unpack_from("=3I", info, _LAST_SENT)
    return float(min(sent, received)) / 1000


def _is_readable(request: socket.socket) -> bool:
    """Whether there is something to read, an end or an error included."""
    poller = select.poll()
    poller.register(request, select.POLLIN | select.POLLRDHUP)
    return bool(poller.poll(0))


def is_reset(request: socket.socket) -> bool:
    """Whether the peer has reset this connection already: nobody would see what a handler does.

    After a FIN alone the state is CLOSE_WAIT, which must still be served: half-close is legal.
    """
    try:
        return request.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _TCP_CLOSE
    except OSError:
        return False  # not TCP after all: let the handler find out
