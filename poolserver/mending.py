"""A listener that a handler broke: closed, closed and its number reused, or shut down for every process at once."""

import contextlib
import errno
import logging
import os
import select
import socket
from collections.abc import Iterable
from typing import Any

from poolserver.failures import log_line
from poolserver.station import Station


def mend(station: Station, error: OSError, backlog: int) -> str:
    """After ``error`` from accept(2). Returns why it cannot be done, or nothing.

    Closed here: the server gets another descriptor of it. Shut down for all: it listens again.
    """
    if not station.is_intact():
        log_line(logging.ERROR, "a handler closed a listener (%s): opened again", error.strerror)
        broken = station.server.socket
        broken.detach()  # its number may be another's by now
        station.server.socket = type(broken)(fileno=os.dup(station.fd))
    elif error.errno == errno.EINVAL and _is_shut_down(station.server.socket):  # else a sibling mended it meanwhile
        if not _revive(station.server.socket, station.sockaddr, backlog):
            return f"listener {station.server.server_address!r} was shut down and cannot listen again"
        log_line(logging.ERROR, "a listener was shut down by a handler: listening again; what was queued is lost")
    return ""


def keep_nonblocking(listeners: Iterable[int]) -> None:
    """Undo what a stranger did: systemd clears O_NONBLOCK for all holders at each start without NonBlocking=yes."""
    for fd in listeners:
        if os.get_blocking(fd):
            os.set_blocking(fd, False)


def _revive(sock: socket.socket, sockaddr: tuple[Any, ...] | str, backlog: int) -> bool:
    """After EINVAL from accept(2), which means that somebody shut the listener down: listen again, if it can be done.

    TCP can, on the ``sockaddr`` that it had: a port that the kernel had chosen was given back, and listen(2) alone
    would choose another. A Unix socket that was shut down stays so. Source: inet_csk_listen_stop, tcp_set_state and
    unix_shutdown in Linux.
    """
    try:
        with contextlib.suppress(OSError):  # EINVAL: bound still, or a sibling worker was first; any other shows below
            socket.socket.bind(sock, sockaddr)
        socket.socket.listen(sock, backlog)
        if sock.getsockname() != sockaddr:
            return False
    except OSError:
        return False
    return not _is_shut_down(sock)


def _is_shut_down(sock: socket.socket) -> bool:
    """Whether somebody shut this listener down. Source: poll(2) POLLHUP, tcp_poll and unix_poll in Linux."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poller.poll(0))
