"""Listeners: bind or adopt, set options, close, unlink only what we made.

Runs in the master (or the one process of a library call). The socket that lanes and handlers see is a
``SharedSocket`` over the same open file (see ``shared_socket.py``).
"""

import contextlib
import ctypes
import errno
import logging
import os
import socket
import socketserver
import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

from poolserver.address import Address
from poolserver.errors import SystemRefusedError
from poolserver.holders import who_holds
from poolserver.privileges import Account, made_for
from poolserver.socket_options import defer_accept, set_idle_timeout, set_receive_buffer
from poolserver.unix_path import claimed, unlink_if_ours, unlink_if_stale

_log = logging.getLogger("poolserver")

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 60, 10, 6
"""Seconds until the first probe, between probes, and probes until the peer counts as gone: two minutes in all,
where the kernel's default takes more than two hours."""


@dataclass(frozen=True)
class Options:
    """The section ``[socket]``, the idle time-out, and who owns the files of Unix sockets, as narrow values.

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
    owner: Account | None = None


@dataclass
class Listener:
    """A bound socket. Owns it, and the file of a Unix socket that it made, until ``close``."""

    address: Address
    socket: socket.socket
    options: Options
    is_adopted: bool = False
    is_kept: bool = False
    """systemd holds it too, for a master that comes after this one."""
    is_lent: bool = False
    """Another master has it too, and goes on with it, as far as we know: at an upgrade."""
    is_outdated: bool = False
    """The socket does not have these options yet."""
    _made_by: int = 0
    _inode: tuple[int, int] | None = field(default=None)

    @property
    def url(self) -> str:
        return self.address.url

    @property
    def is_stream(self) -> bool:
        return self.address.is_stream

    @property
    def file(self) -> tuple[int, int] | None:
        """Device and inode of the file of its Unix socket, if that is ours to remove."""
        return self._inode

    def note_file(self) -> None:
        """The file of its Unix socket is ours to remove, as long as it is this one."""
        found = Path(str(self.address.sockaddr)).lstat()
        self.own_file((found.st_dev, found.st_ino))

    def own_file(self, file: tuple[int, int]) -> None:
        """As ``note_file``, of one that another master made."""
        self._made_by, self._inode = os.getpid(), file

    def with_options(self, options: Options) -> "Listener":
        """The same socket under other options, for the generation to come; ``apply_options`` at its commit."""
        return self if options == self.options else replace(self, options=options, is_outdated=True)

    def lend(self) -> None:
        """Another master has it, and goes on with it."""
        self.is_lent = True

    def apply_options(self) -> None:
        """What a listener that stays can change: what accepted sockets inherit, its backlog, its file's mode.

        A connection in its queue, or an old worker's next one, may have the new options already: none is worse off.
        """
        if not self.is_outdated:
            return
        self.is_outdated = False
        try:
            set_inherited_options(self.socket, self.address, self.options)
            if self.options.receive_buffer:
                set_receive_buffer(self.socket, self.options.receive_buffer)
            if self.is_stream and not self.is_adopted:
                self.socket.listen(self.options.backlog)
            if self._inode is not None:
                Path(str(self.address.sockaddr)).chmod(self.options.unix_mode)
        except OSError as error:  # its file was removed, for one: it goes on as it was
            _log.warning("%s: its options could not be changed: %s", self.url, error.strerror)

    def close_door(self) -> None:
        """Take no new connections into the accept queue, so that serving what is in it comes to an end.

        Not for one that was passed, is kept or lent: it is one object with theirs, who may go on using it.
        Source: measured, 14–36 resets in six stops without it, 1–2 with it.
        """
        if self.is_stream and not (self.is_adopted or self.is_kept or self.is_lent):
            with contextlib.suppress(OSError):  # shut down by a handler: then nothing comes in anyway
                self.socket.listen(0)
                if self.address.is_tcp:
                    _drop_all(self.socket)

    def close(self) -> None:
        """Close it; remove the Unix socket's file if it is still the one that this process made."""
        if self._inode is not None and self._made_by == os.getpid() and not self.is_lent:
            unlink_if_ours(str(self.address.sockaddr), self._inode)
            self._inode = None
        self.socket.close()

    def abandon(self) -> None:
        """In a worker whose master was killed: close our copy. Whoever closes the last one removes the file."""
        self.socket.close()
        if self._inode is not None:
            unlink_if_stale(str(self.address.sockaddr))


def adopt_passed(sock: socket.socket, url: str, options: Options) -> Listener:
    """As ``adopt``, of a socket that must be fit to accept. Closes it if it is not.

    Raises:
        SystemRefusedError: it is a stream socket that does not listen.
    """
    if sock.type == socket.SOCK_STREAM and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.close()
        raise SystemRefusedError(f"cannot adopt {url}: it is not listening")
    return adopt(sock, options)


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


class NoSuchFamilyError(SystemRefusedError):
    """The machine does not speak this address family."""


def bind(address: Address, options: Options) -> Listener:
    """Bind one address, or adopt the descriptor that it names.

    Raises:
        SystemRefusedError: the system refused; names the address, the reason, and who holds it.
    """
    if address.fd >= 0:
        return _adopt_fd(address.fd, options)
    try:
        if address.has_file:
            return _bind_path(address, options)
        return Listener(*_bound(address, options), options)
    except OSError as error:
        text = f"cannot bind {address.url}: {error.strerror or error}"
        if error.errno == errno.EADDRINUSE:
            text += who_holds(address.scheme, address.sockaddr)
        if error.errno == errno.EADDRNOTAVAIL:
            text += "; no interface of this machine has that address (see `ip address`)"
        if error.errno == errno.ENOENT:
            text += "; its folder has to be there already"
        if error.errno == errno.EACCES and not address.has_file:
            text += "; low ports are root's: start as root with server.user, or let systemd bind it (poolserver unit)"
        if error.errno == errno.EAFNOSUPPORT:
            raise NoSuchFamilyError(text) from error
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

    def make() -> Listener:
        with claimed(path):
            listener = Listener(*_bound(address, options), options)
            Path(path).chmod(options.unix_mode)  # the umask took bits away at bind
            listener.note_file()
        return listener

    return made_for(options.owner, path, make)


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
        set_receive_buffer(sock, options.receive_buffer)
    set_inherited_options(sock, address, options)


def set_inherited_options(sock: socket.socket, address: Address, options: Options) -> None:
    """What accepted TCP sockets take over from their listener.

    Keep-alive covers a peer that vanishes while we receive, the user time-out one that vanishes while we send."""
    if not address.is_tcp:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, options.nodelay)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, options.keepalive)
    if options.keepalive:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(options.user_timeout * 1000))
    defer_accept(sock, options.defer_accept)
    set_idle_timeout(sock, options.idle_timeout)


def _adopt_fd(fd: int, options: Options) -> Listener:
    try:
        sock = socket.socket(fileno=os.dup(fd))
    except (OSError, OverflowError) as error:
        why = f"{error}; whoever starts this process has to leave it open"
        raise SystemRefusedError(f"cannot adopt fd://{fd}: {why}") from error
    return adopt_passed(sock, f"fd://{fd}", options)
