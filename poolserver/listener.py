"""Listeners: bind or adopt, set options, close, unlink only what we made.

Runs in the master (or the one process of a library call). The socket that lanes and handlers see is a
``SharedSocket`` over the same open file (see ``shared_socket.py``).
"""

import contextlib
import ctypes
import errno
import logging
import math
import os
import socket
import socketserver
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poolserver.address import Address, parse
from poolserver.errors import SystemRefusedError
from poolserver.holders import who_holds
from poolserver.unix_path import claimed, unlink_if_ours, unlink_if_stale

_log = logging.getLogger("poolserver")

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 60, 10, 6
"""Seconds until the first probe, between probes, and probes until the peer counts as gone: two minutes in all,
where the kernel's default takes more than two hours."""

_DUAL_PORT_TRIES = 16
"""``tcp://:0`` wants one free port in both families; the kernel picks it in the first and it may be taken in the
second."""


@dataclass(frozen=True)
class Options:
    """The section ``[socket]`` and the idle time-out, as narrow values.

    Times in seconds, sizes in bytes; 0 = leave it.
    """

    backlog: int = 1024
    reuse_address: bool = True
    nodelay: bool = True
    keepalive: bool = True
    user_timeout: float = 60.0
    ipv6_only: bool = True
    defer_accept: float = 0.0
    receive_buffer: int = 0
    unix_mode: int = 0o660
    idle_timeout: float = 60.0


@dataclass
class Listener:
    """A bound socket. Owns it, and the file of a Unix socket that it made, until ``close``."""

    address: Address
    socket: socket.socket
    options: Options
    is_adopted: bool = False
    _made_by: int = 0
    _inode: tuple[int, int] | None = field(default=None)

    @property
    def url(self) -> str:
        return self.address.url

    @property
    def is_stream(self) -> bool:
        return self.address.is_stream

    def close_door(self) -> None:
        """Take no new connections into the accept queue, so that serving what is in it comes to an end.

        Not for an adopted socket: it is one object with whoever passed it, who may go on using it.
        Source: measured, 14–36 resets in six stops without it, 1–2 with it.
        """
        if self.is_stream and not self.is_adopted:
            with contextlib.suppress(OSError):  # shut down by a handler: then nothing comes in anyway
                self.socket.listen(0)
                if self.address.is_tcp:
                    _drop_all(self.socket)

    def close(self) -> None:
        """Close it; remove the Unix socket's file if it is still the one that this process made."""
        if self._inode is not None and self._made_by == os.getpid():
            unlink_if_ours(str(self.address.sockaddr), self._inode)
            self._inode = None
        self.socket.close()

    def abandon(self) -> None:
        """In a worker whose master was killed: close our copy. Whoever closes the last one removes the file."""
        self.socket.close()
        if self._inode is not None:
            unlink_if_stale(str(self.address.sockaddr))


def bind_all(urls: Sequence[str], options: Options) -> list[Listener]:
    """Bind every URL, or none: what was bound before a failure is closed again.

    Raises:
        ConfigError: a URL cannot be parsed.
        SystemRefusedError: the system refused to bind; names the address, the reason, and who holds it.
    """
    addresses = [parse(url) for url in urls]
    listeners: list[Listener] = []
    try:
        for group in addresses:
            listeners += _bind_group(group, options)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def adopt(sock: socket.socket, options: Options) -> Listener:
    """A listener over a socket that somebody else bound (``fd://``, a library's server object). ``close`` closes it."""
    schemes = {
        (socket.AF_UNIX, socket.SOCK_STREAM): "unix",
        (socket.AF_UNIX, socket.SOCK_DGRAM): "unixgram",
        (socket.AF_INET, socket.SOCK_STREAM): "tcp",
        (socket.AF_INET6, socket.SOCK_STREAM): "tcp",
    }
    scheme = schemes.get((sock.family, sock.type), "udp")
    name = sock.getsockname()
    sockaddr = os.fsdecode(name) if sock.family == socket.AF_UNIX else name[:2]
    sock.setblocking(False)
    if scheme == "udp":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, False)  # which systemd sets: see _bound
    address = Address(scheme, socket.AddressFamily(sock.family), sockaddr)
    set_inherited_options(sock, address, options)
    return Listener(address, sock, options, is_adopted=True)


def _bind_group(group: list[Address], options: Options) -> list[Listener]:
    """Bind the addresses of one URL, with one port for all of them when the URL left it to the kernel."""
    if len(group) == 1 or group[0].sockaddr[1] != 0:
        return _bind_each(group, options)
    for attempt in range(_DUAL_PORT_TRIES):
        first = _bind(group[0], options)
        port = first.socket.getsockname()[1]
        others = [Address(each.scheme, each.family, (str(each.sockaddr[0]), port)) for each in group[1:]]
        try:
            return [first, *_bind_each(others, options)]
        except SystemRefusedError:
            first.close()
            if attempt == _DUAL_PORT_TRIES - 1:
                raise
    raise AssertionError("the loop returns or raises")


def _bind_each(group: list[Address], options: Options) -> list[Listener]:
    bound: list[Listener] = []
    for address in group:
        try:
            bound.append(_bind(address, options))
        except _NoSuchFamilyError as error:
            if len(group) == 1:
                raise
            _log.warning("%s", error)  # a machine without IPv6 still serves 0.0.0.0
        except BaseException:
            for listener in bound:
                listener.close()
            raise
    return bound


class _NoSuchFamilyError(SystemRefusedError):
    """The machine does not speak this address family."""


def _bind(address: Address, options: Options) -> Listener:
    if address.fd >= 0:
        return _adopt_fd(address.fd, options)
    try:
        if address.family == socket.AF_UNIX and not str(address.sockaddr).startswith("\0"):
            return _bind_path(address, options)
        return Listener(*_bound(address, options), options)
    except OSError as error:
        text = f"cannot bind {address.url}: {error.strerror or error}"
        if error.errno == errno.EADDRINUSE:
            text += who_holds(address.scheme, address.sockaddr)
        if error.errno == errno.EAFNOSUPPORT:
            raise _NoSuchFamilyError(text) from error
        raise SystemRefusedError(text) from error


def _bound(address: Address, options: Options) -> tuple[Address, socket.socket]:
    """The recipe of socketserver's documentation: made unbound, options set, bound, activated."""
    base = socketserver.TCPServer if address.is_stream else socketserver.UDPServer
    recipe = type("Binder", (base,), {"address_family": address.family})
    server = recipe(address.sockaddr, socketserver.BaseRequestHandler, bind_and_activate=False)
    try:
        server.socket.setblocking(False)
        # Never on UDP: any other user could bind the same port and get the packets.
        server.allow_reuse_address = options.reuse_address and address.is_tcp
        server.request_queue_size = options.backlog
        _set_options(server.socket, address, options)
        if address.family == socket.AF_UNIX:
            os.fchmod(server.socket.fileno(), options.unix_mode)  # before bind: the file is never wider than this
        server.server_bind()
        server.server_activate()
    except BaseException:
        server.server_close()
        raise
    name = server.socket.getsockname()
    sockaddr = address.sockaddr if address.family == socket.AF_UNIX else (str(name[0]), int(name[1]))
    return Address(address.scheme, address.family, sockaddr), server.socket


def _bind_path(address: Address, options: Options) -> Listener:
    """Replace a stale file, never a live one. The directory's lock keeps two starters from judging at once."""
    path = str(address.sockaddr)
    with claimed(path):
        bound, sock = _bound(address, options)
        Path(path).chmod(options.unix_mode)  # the umask took bits away at bind
        found = Path(path).stat()
    return Listener(bound, sock, options, _made_by=os.getpid(), _inode=(found.st_dev, found.st_ino))


def _drop_all(sock: socket.socket) -> None:
    """Have the kernel drop every packet to this listener: ``listen(0)`` alone still admits one connection, which lands
    after the last look at the queue and is reset (14 of 20 stops under load; none with this).

    Source: socket(7) SO_ATTACH_FILTER, linux/filter.h.
    """
    so_attach_filter, bpf_ret_k = 26, 0x06
    program = ctypes.create_string_buffer(struct.pack("HBBI", bpf_ret_k, 0, 0, 0))  # return 0: keep no byte
    sock.setsockopt(socket.SOL_SOCKET, so_attach_filter, struct.pack("HL", 1, ctypes.addressof(program)))


def _set_options(sock: socket.socket, address: Address, options: Options) -> None:
    """What accepted sockets inherit is set once, on the listener: it costs no system call for a connection."""
    if address.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, options.ipv6_only)
    if options.receive_buffer:
        _set_receive_buffer(sock, options.receive_buffer)
    set_inherited_options(sock, address, options)


def set_inherited_options(sock: socket.socket, address: Address, options: Options) -> None:
    """What accepted TCP sockets take over from their listener.

    Keep-alive covers a peer that vanishes while we receive, the user time-out one that vanishes while we send."""
    if not address.is_tcp:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.nodelay)
    if options.keepalive:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    if options.user_timeout:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(options.user_timeout * 1000))
    defer_accept(sock, options.defer_accept)
    set_idle_timeout(sock, options.idle_timeout)


def defer_accept(sock: socket.socket, seconds: float) -> None:
    """Have the kernel keep connections that have sent nothing for so long; 0 = not at all. Source: tcp(7)."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, math.ceil(seconds))


def set_idle_timeout(sock: socket.socket, seconds: float) -> None:
    """Bound each blocking receive and send. Accepted TCP sockets inherit it; accepted Unix sockets do not.

    Source: socket(7) SO_RCVTIMEO, SO_SNDTIMEO.
    """
    if seconds:
        value = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def _set_receive_buffer(sock: socket.socket, size: int) -> None:
    """Beyond ``net.core.rmem_max`` where privileges allow, else as far as the kernel goes. Source: socket(7)."""
    so_rcvbufforce = 33  # asm-generic/socket.h; the socket module does not name it
    try:
        sock.setsockopt(socket.SOL_SOCKET, so_rcvbufforce, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it for its own needs
    if granted < size:
        _log.warning("socket.receive_buffer: %d bytes granted of %d; raise net.core.rmem_max", granted, size)


def _adopt_fd(fd: int, options: Options) -> Listener:
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except (OSError, OverflowError) as error:
        raise SystemRefusedError(f"cannot adopt fd://{fd}: {error}") from error
    if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise SystemRefusedError(f"cannot adopt fd://{fd}: it is not listening")
    return adopt(sock, options)
