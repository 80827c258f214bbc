"""Socket options of listeners that take more than one call, or more than one word, to set."""

import logging
import math
import socket
import struct

_log = logging.getLogger("poolserver")


def defer_accept(sock: socket.socket, seconds: float) -> None:
    """Have the kernel keep connections that have sent nothing for so long; 0 = not at all. Source: tcp(7)."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, math.ceil(seconds))


def set_idle_timeout(sock: socket.socket, seconds: float) -> None:
    """Bound each blocking receive and send. Accepted TCP sockets inherit it; accepted Unix sockets do not.

    Source: socket(7) SO_RCVTIMEO, SO_SNDTIMEO.
    """
    value = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))  # 0: for ever
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def set_receive_buffer(sock: socket.socket, size: int) -> None:
    """Beyond ``net.core.rmem_max`` where privileges allow, else as far as the kernel goes. Source: socket(7)."""
    so_rcvbufforce = 33  # asm-generic/socket.h; the socket module does not name it
    try:
        sock.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it for its own needs
    if granted < size:
        _log.warning("socket.receive_buffer: %d bytes granted of %d; raise net.core.rmem_max", granted, size)
