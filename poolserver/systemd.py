"""systemd's side of this process: the sockets that it passed, and what it is told.

The protocol is text over one Unix datagram socket, and descriptors beside it; nothing here decides when to tell what
(that is ``herald.py``). Runs in the master only. Source: sd_listen_fds(3), sd_notify(3), sd_watchdog_enabled(3).
"""

import array
import errno
import ipaddress
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from poolserver.address import Address
from poolserver.errors import ConfigError, PoolserverError, SystemRefusedError

_log = logging.getLogger("poolserver")

FIRST_PASSED_FD = 3
"""SD_LISTEN_FDS_START."""

STORED = "poolserver."
"""How the names of descriptors begin that we put into systemd's store ourselves."""

_MAX_NAME = 255
"""FDNAME_MAX."""

_MAX_DIGITS = 20
"""Those of 2⁶⁴."""

_OURS = (
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "FDSTORE"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"),
)
"""What systemd says to this process alone: a program that a handler starts must not take itself for the service."""


@dataclass(frozen=True)
class Adopted:
    """A socket that was passed, for the address that it is served as."""

    address: Address
    socket: socket.socket
    is_stored: bool
    """We bound it ourselves, in an earlier life, and systemd kept it since."""


class Passed:
    """Sockets that systemd passed, and those from its store, until a listener takes them. Owns what is not taken."""

    def __init__(self, sockets: Sequence[tuple[str, socket.socket]] = ()) -> None:
        self._sockets = list(sockets)

    def claim(self, group: Sequence[Address]) -> tuple[list[Adopted], list[Address]]:
        """Take what is for the addresses of one URL. Returns that, and the addresses that are still to be bound.

        Raises:
            SystemRefusedError: the URL can mean nothing but a passed socket, and there is none.
        """
        if group[0].scheme == "systemd":
            return self._named(group[0]), []
        adopted: list[Adopted] = []
        for address in group:
            found = next((each for each in self._sockets if _is_for(address, each[1])), None)
            if found is not None:
                self._sockets.remove(found)
                adopted.append(Adopted(address, found[1], found[0].startswith(STORED)))
        taken = [each.address for each in adopted]
        covers_both = any(_is_dual(each.socket) for each in adopted)
        return adopted, [] if covers_both else [address for address in group if address not in taken]

    def unclaimed(self) -> list[tuple[str, socket.socket]]:
        """What is not taken, by its name. It stays ours."""
        return list(self._sockets)

    def left(self) -> list[str]:
        """What is not taken, as people know it."""
        return [f"{name} ({_url(sock)})" for name, sock in self._sockets]

    def drop_stored(self) -> list[str]:
        """Close what came from the store and was not taken; its names."""
        names = [name for name, _ in self._sockets if name.startswith(STORED)]
        for each in self._take(lambda name: name.startswith(STORED)):
            each.close()
        return names

    def close(self) -> None:
        """Close what nobody took."""
        for _, sock in self._sockets:
            sock.close()
        self._sockets = []

    def _named(self, address: Address) -> list[Adopted]:
        wanted = str(address.sockaddr)
        there = ", ".join(self.left()) or "nothing"
        found = self._take(lambda name: name == wanted if wanted else not name.startswith(STORED))
        if not found:
            remedy = "a socket unit has it do so (see `poolserver unit`)"
            raise SystemRefusedError(f"cannot adopt {address.url}: systemd passed {there}; {remedy}")
        return [Adopted(address, each, is_stored=False) for each in found]

    def _take(self, is_wanted: Callable[[str], bool]) -> list[socket.socket]:
        found = [sock for name, sock in self._sockets if is_wanted(name)]
        self._sockets = [(name, sock) for name, sock in self._sockets if not is_wanted(name)]
        return found


def is_there() -> bool:
    """Whether systemd expects this process to be the service."""
    return "NOTIFY_SOCKET" in os.environ or "LISTEN_FDS" in os.environ


@dataclass
class Manager:
    """The service manager that started us, if one did. Without one, nothing is told and nothing was passed."""

    notify_address: str = ""
    watchdog: float = 0.0
    """Seconds within which it wants a sign of life each time; 0 = it wants none."""
    has_store: bool = False
    """It is known to keep descriptors for us: systemd 254 says so by $FDSTORE, and our units do for older ones."""
    passed: Passed = field(default_factory=Passed)
    is_muted: bool = False
    """Another master speaks for the service. Source: systemd.service(5), NotifyAccess=main."""
    _kept: dict[str, socket.socket] = field(default_factory=dict)

    @classmethod
    def taken_from_environment(cls) -> "Manager":
        """Take what systemd passed to this process out of its environment.

        Raises:
            SystemRefusedError: what it says cannot be.
        """
        said = {name: os.environ.pop(name) for name in _OURS if name in os.environ}
        return cls(
            said.get("NOTIFY_SOCKET", ""),
            _watchdog(said),
            _number(said, "FDSTORE") > 0,
            Passed(_received(said)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, PoolserverError):
            self.failed(error)
        self.passed.close()

    def environment_of(self, pid: int, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of a successor with this pid, that it be to systemd what we are; its listeners it gets
        otherwise.

        Args:
            pid: Its pid, from the fork on: variables with ours would make it deaf.
            environ: The environment that we were started with.
        """
        said = {
            "NOTIFY_SOCKET": self.notify_address,
            "WATCHDOG_PID": str(pid) if self.watchdog else "",
            "WATCHDOG_USEC": str(round(self.watchdog * 1e6)) if self.watchdog else "",
            "FDSTORE": "1" if self.has_store else "",
        }
        others = {name: value for name, value in environ.items() if name not in _OURS}
        return others | {name: value for name, value in said.items() if value}

    def tell(self, *assignments: str, fd: int | None = None) -> bool:
        """Send one message, such as ``READY=1``. Never waits; False: it could not be sent.

        Whoever listens may have gone, and a service must not care. Source: sd_notify(3).
        """
        if not self.notify_address:
            return True
        if self.is_muted:
            return False
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        address = self.notify_address.replace("@", "\0", 1) if self.notify_address[0] == "@" else self.notify_address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                octets = "\n".join(assignments).encode("utf-8", "replace")
                sender.sendmsg([octets], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)
        except OSError as error:
            _log.debug("%s: cannot tell %s: %s", self.notify_address, assignments[0], error)
            return False
        return True

    def ready(self, status: str) -> bool:
        """The workers accept: also after a reload."""
        return self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> bool:
        """A reload begins; ``ready`` ends it. Without the time stamp, systemd 257 waits for ever."""
        return self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, extension: float) -> bool:
        """The service ends, and asks for this many seconds, whatever its unit gives it."""
        return self.tell("STOPPING=1", "STATUS=stopping", _extended(extension))

    def extend(self, seconds: float) -> bool:
        """Give a start or a stop this much time from now; again and again, as long as it gets on."""
        return self.tell(_extended(seconds))

    def main_pid(self, pid: int) -> bool:
        """The service's main process is this one from now on: the new master of an upgrade."""
        return self.tell(f"MAINPID={pid}")

    def failed(self, error: PoolserverError) -> bool:
        """The service ends, and why: in words, and by the number that the system gave where it was the system."""
        number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
        if isinstance(error, ConfigError):
            number = errno.EINVAL
        words = [f"STATUS={str(error).partition(chr(10))[0]}"]
        return self.tell(*words, *([f"ERRNO={number}"] if number else []))

    def keep(self, listeners: Mapping[str, socket.socket]) -> None:
        """Have it hold these sockets, and no others: a master that is killed loses no connection that is queued there.

        Args:
            listeners: By URL. What it holds already is not told again.
        """
        named = {_store_name(url): sock for url, sock in listeners.items()}
        for name in [name for name, sock in self._kept.items() if named.get(name) is not sock]:
            self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")
            del self._kept[name]
        for name, sock in named.items():
            # FDPOLL: kept whatever state it is in; by default an error on it makes systemd throw it away.
            if name not in self._kept and self.tell("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fd=sock.fileno()):
                self._kept[name] = sock

    @property
    def stored(self) -> list[str]:
        """The names of what it holds for us."""
        return list(self._kept)

    def take_over(self, stored: Sequence[str], listeners: Mapping[str, socket.socket]) -> None:
        """From here on we speak for the service. What it holds already, for the master before, is not told again."""
        self.is_muted = False
        named = {_store_name(url): sock for url, sock in listeners.items()}
        self._kept = {name: named[name] for name in stored if name in named}
        for name in stored:
            if name not in named:
                self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")

    def let_go(self) -> None:
        """The service stops, and is about to close its listeners to newcomers: nobody must find them so in the store.

        Not where systemd is known to keep them: they stay open, and a restart loses nobody."""
        if not self.has_store:
            self.keep({})

    def drop_unclaimed(self) -> None:
        """After every listener has taken its own: give up what was stored for others, and name what was passed."""
        for name in self.passed.drop_stored():
            self.tell("FDSTOREREMOVE=1", f"FDNAME={name}")
        for text in self.passed.left():
            _log.warning("%s was passed, but no server.bind is for it: its clients wait in vain", text)


def _is_for(address: Address, sock: socket.socket) -> bool:
    """Whether it is bound to this address. A host may be written in more than one way: ``[::1]``, ``[0:0::1]``."""
    if address.fd >= 0:
        return sock.fileno() == address.fd
    if (sock.family, sock.type == socket.SOCK_STREAM) != (address.family, address.is_stream):
        return False
    name = sock.getsockname()
    if isinstance(address.sockaddr, str):
        return os.fsdecode(name) == address.sockaddr and _can_be_reached(address.sockaddr)
    host, port = address.sockaddr[:2]
    return ipaddress.ip_address(name[0]) == ipaddress.ip_address(host) and name[1] == port


def _can_be_reached(path: str) -> bool:
    """A stored Unix socket whose file is gone is of no use to anybody."""
    return path.startswith("\0") or Path(path).is_socket()


def _is_dual(sock: socket.socket) -> bool:
    """Whether it takes IPv4 clients too, as ``ListenStream=8080`` in a socket unit does: 0.0.0.0 is taken with it."""
    if sock.family != socket.AF_INET6 or sock.getsockname()[0] != "::":
        return False
    return not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def _url(sock: socket.socket) -> str:
    scheme = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}.get(sock.type, "?")
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return "unix:" + os.fsdecode(name).replace("\0", "@", 1)
    return Address(scheme, socket.AddressFamily(sock.family), name[:2]).url


def _received(said: Mapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The sockets that were passed, if it was to this process; close-on-exec, so that no program that a handler starts
    keeps them."""
    if _number(said, "LISTEN_PID") != os.getpid():
        return []
    count = _number(said, "LISTEN_FDS")
    names = said["LISTEN_FDNAMES"].split(":") if said.get("LISTEN_FDNAMES") else []
    found = []
    for number, fd in enumerate(range(FIRST_PASSED_FD, FIRST_PASSED_FD + count)):
        name = names[number] if number < len(names) else "unknown"
        try:
            os.set_inheritable(fd, False)
            found.append((name, socket.socket(fileno=fd)))
        except OSError as error:
            raise SystemRefusedError(f"descriptor {fd} ({name}), passed by systemd: {error.strerror}") from error
    return found


def _watchdog(said: Mapping[str, str]) -> float:
    """Without a pid it is meant for whoever reads it. Source: sd_watchdog_enabled(3)."""
    is_ours = "WATCHDOG_PID" not in said or _number(said, "WATCHDOG_PID") == os.getpid()
    return _number(said, "WATCHDOG_USEC") / 1e6 if is_ours else 0.0


def _number(said: Mapping[str, str], name: str) -> int:
    text = said.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS):
        raise SystemRefusedError(f"${name}, which systemd sets, is no number: {text!r}")
    return int(text)


def _extended(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}"


def _store_name(url: str) -> str:
    """A name that systemd takes for it (no colon), the same in each life."""
    return (STORED + re.sub(r"[^A-Za-z0-9.\[\]-]+", "-", url))[:_MAX_NAME]
