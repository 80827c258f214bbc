"""How much waits at a listener, as the kernel tells it. Nothing here waits itself.

Read by the master for ``status`` and metrics; lanes have ``tcp_info.py``.
"""

import os
import socket
import struct
from dataclasses import dataclass

_TCP_INFO_WAITING = 24  # struct tcp_info: for a listener tcpi_unacked is its queue, tcpi_sacked the most it may hold

_SO_MEMINFO = 55  # asm-generic/socket.h: nine 32-bit words, SK_MEMINFO_RMEM_ALLOC first, SK_MEMINFO_DROPS last

# linux/sock_diag.h, linux/unix_diag.h, linux/netlink.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_ANY = 0xFFFFFFFF  # every state; every cookie
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE_BYTES = 16
_ATTRIBUTE = struct.Struct("=HHII")


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits: connections, for a stream listener with room for ``backlog``; bytes, for a datagram one, with
    ``drops`` datagrams thrown away for want of room so far. None: the kernel does not tell."""

    waiting: int | None = None
    backlog: int | None = None
    drops: int | None = None


def queue_of(sock: socket.socket) -> Queue:
    """The queue of a listener or of a bound datagram socket; nothing is known of one that was closed meanwhile."""
    try:
        if sock.type == socket.SOCK_DGRAM:
            return _datagram_queue(sock)
        if sock.family == socket.AF_UNIX:
            return _unix_queue(os.fstat(sock.fileno()).st_ino)
        return _tcp_queue(sock)
    except (OSError, struct.error):
        return Queue()  # closed, or forbidden by a sandbox


def _tcp_queue(sock: socket.socket) -> Queue:
    """Source: tcp(7), linux/tcp.h."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_WAITING + 8)
    return Queue(*struct.unpack_from("=II", info, _TCP_INFO_WAITING))


def _datagram_queue(sock: socket.socket) -> Queue:
    """Source: Linux, sock_getsockopt. Datagrams on Unix sockets are their senders' memory: nothing is told of them."""
    words = struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))
    return Queue(drops=words[-1]) if sock.family == socket.AF_UNIX else Queue(waiting=words[0], drops=words[-1])


def _unix_queue(inode: int) -> Queue:
    """Ask the kernel by netlink, as ``ss`` does. It has answered when send(2) returns. Source: sock_diag(7)."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _UDIAG_SHOW_RQLEN, _ANY, _ANY)
    header = _HEADER.pack(_HEADER.size + _REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(header + request)
        answer = kernel.recv(4096, socket.MSG_DONTWAIT)
    _length, kind, waiting, backlog = _ATTRIBUTE.unpack_from(answer, _HEADER.size + _MESSAGE_BYTES)
    return Queue(waiting, backlog) if kind == _UNIX_DIAG_RQLEN else Queue()
