"""The new master's side of an upgrade: take what the running one leaves, say when all is taken, then serve alone.

Runs in the master that an upgrade started, from the reading of its environment on. Until the other has let go, nothing
that both have is changed: no file removed, no door closed, nothing told to the service manager. ``upgrader.py`` is the
other side.
"""

import contextlib
import json
import logging
import math
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Self

from poolserver import estate, nurse, process, unix_path, variables
from poolserver.address import Address
from poolserver.binding import Group
from poolserver.door import Register
from poolserver.errors import ConfigError, PoolserverError
from poolserver.estate import Estate, FileId, PassedFile, PassedSocket, Word
from poolserver.events import Event, Predecessor, PredecessorIs
from poolserver.handover import Pairs
from poolserver.listener import Listener, Options
from poolserver.pool import Pool
from poolserver.reload import Attempt
from poolserver.scoreboard import Scoreboard
from poolserver.systemd import STORED, Passed

_log = logging.getLogger("poolserver")

MAX_WORD_BYTES = 65536
"""The last word, with all counts, has a twentieth of it."""

SILENCE = 5.0
"""Seconds without a word, of which there is one each second, from which on the master before counts as stopped."""


class Heir:
    """Owns what was passed until somebody takes it, and the line to the master before. Use it as a context manager:
    what is raised in the block is told there."""

    def __init__(self, left: Estate) -> None:
        self.stored: Sequence[str] = left["stored"]
        """The names of what the service manager keeps."""
        self.on_take: Callable[[], None] = _nothing
        """To have what only one can have."""
        self.on_alone: Callable[[], None] = _nothing
        """Once the other has let go."""
        self.on_done: Callable[[], None] = _nothing
        """Once we serve alone, and all workers accept."""
        self.listeners: Callable[[], Iterable[Listener]] = tuple
        """What is listened on."""
        self._left = left
        self._taken: set[int] = set()
        self._sockets = {fd: _socket(fd) for fd in _socket_fds(left)}
        self._line: socket.socket | None = _socket(left["line"])
        self._report, self._leash = left["report"], left["leash"]
        self._pidfile = left["pidfile"]
        self._received = b""
        self._heard = 0.0
        self._predecessor = Predecessor.HOLDS
        self._is_ready = self._has_taken = self._is_alone = False
        for fd in (self._report, self._leash, *([self._pidfile["fd"]] if self._pidfile is not None else [])):
            os.set_inheritable(fd, False)
        process.withhold(left["line"])
        process.withhold(self._report)
        process.withhold(self._leash)

    @classmethod
    def arrived(cls) -> "Heir | None":
        """None: nobody is there before us.

        Raises:
            SystemRefusedError: what was left cannot be read.
        """
        pid, _, paper = variables.taken_out(estate.VARIABLE).partition(":")
        if pid != str(os.getppid()):
            return None
        fd = int(paper)
        try:
            return cls(estate.read(os.pread(fd, os.fstat(fd).st_size, 0)))
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self._report >= 0:
            told = str(error) if isinstance(error, PoolserverError) else f"{type(error).__name__}: {error}"
            if isinstance(error, ConfigError):
                told = f"{told}\n{error.details}".strip()
            with contextlib.suppress(OSError):  # nobody waits for it any more
                os.write(self._report, process.FAILED + told.encode("utf-8", "replace")[: process.MAX_REASON_BYTES])

    # What was left

    def groups(self, urls: Collection[str], options: Options) -> list[Group]:
        """The listeners of those of these bind URLs that the other serves, where new clients still reach it."""
        return [
            Group(each["url"], tuple(self._listener(one, options) for one in each["sockets"]))
            for each in self._left["groups"]
            if each["url"] in urls and all(self._has_its_file(one["fd"], one["file"]) for one in each["sockets"])
        ]

    def passed(self, urls: Collection[str]) -> Passed:
        """The sockets that none of these URLs names, which may be for them all the same; and what systemd passed."""
        found = [(each["name"], self._sockets[each["fd"]]) for each in self._left["unclaimed"]]
        for group in self._left["groups"]:
            if group["url"] not in urls:
                named = group["url"].partition("systemd:")[2] or "unknown"
                for one in group["sockets"]:
                    found.append((STORED + group["url"] if one["is_own"] else named, self._sockets[one["fd"]]))
        return Passed(found)

    def control(self, key: str, options: Options) -> Listener | None:
        """The control socket, if the other's has this key."""
        return self._file(self._left["control"], key, options)

    def metrics(self, url: str, options: Options) -> Listener | None:
        """The metrics' listener, if the other's was configured by this URL."""
        return self._file(self._left["metrics"], url, options)

    def pidfile(self, path: str) -> int | None:
        """The descriptor of the pid file, with its lock, if the other's has this path, and is still there."""
        found = self._pidfile
        if found is None or found["name"] != path:
            return None
        held = os.fstat(found["fd"])
        if not unix_path.is_there(path, (held.st_dev, held.st_ino)):
            return None
        self._pidfile = None
        self._taken.add(found["fd"])
        return found["fd"]

    def pairs(self) -> Pairs:
        """The ways on which the other's workers send us what is parked there."""
        self._taken.update(self._left["pairs"])
        return Pairs.passed([self._sockets[fd] for fd in self._left["pairs"]])

    def lend(self, listeners: Iterable[Listener]) -> None:
        """Those of these that the other has too are lent, as yet."""
        for listener in listeners:
            if listener.socket.fileno() in self._sockets:
                listener.lend()

    def endow(self, pool: Pool, board: Scoreboard, register: Register) -> None:
        """What was counted, and who is banned, follows."""
        left, now = self._left, time.monotonic_ns()
        board.add(**left["counts"])
        pool.respawns = left["respawns"]
        pool.reload.reloads, pool.reload.reloads_failed = left["reloads"], left["reloads_failed"]
        pool.upgrade.last = Attempt(ok=True, reason="", at=time.monotonic())
        pool.upgrade.predecessor, pool.upgrade.predecessor_pid = self._predecessor, self._peer()
        for key, seconds in left["bans"]:
            register.connections.ban(bytes.fromhex(key), now, now + int(seconds * 1e9))
        self._board = board

    # The take-over

    def ready(self) -> None:
        """All workers accept."""
        self._is_ready = True
        if self._is_alone:
            self.on_done()
            return
        self._take()
        self._say({"taken": sorted(self._taken), "pid": os.getpid()})
        self._leave_nurse()

    def interests(self) -> dict[int, int]:
        """What to poll."""
        return {self._line.fileno(): select.POLLIN} if self._line is not None else {}

    def deadline(self) -> float:
        """When to ``attend`` at the latest, in monotonic seconds."""
        return self._heard + SILENCE if self._predecessor is Predecessor.LEAVES else math.inf

    def attend(self, ready: Collection[int], now: float) -> list[Event]:
        """What the other says. Its end is as good as its word: there is nobody else."""
        before = self._predecessor
        if self._line is not None and self._line.fileno() in ready:
            self._heard = now
            self._listen(self._line)
        elif self.deadline() <= now:
            self._predecessor = Predecessor.SILENT
            _log.warning("the master before this one (pid %d) %s", self._peer(), self._predecessor.value)
        return [PredecessorIs(self._predecessor)] if self._predecessor is not before else []

    def _listen(self, line: socket.socket) -> None:
        try:
            octets = line.recv(MAX_WORD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        *words, self._received = (self._received + octets).split(b"\n")
        for word in words:
            self._told(json.loads(word))
        if self._is_alone:
            self._predecessor = Predecessor.LEAVES
        if not octets:
            self._predecessor = Predecessor.GONE
            self._be_alone()
            process.release(line.fileno())
            line.close()
            self._line = None

    def _told(self, word: Word) -> None:
        if word.get("is_over"):
            os._exit(0)  # our workers see it, and leave
        if word.get("is_yours"):
            self._be_alone()
        if "counts" in word:
            self._board.add(**word["counts"])

    def _peer(self) -> int:
        """The pid of the master before. Source: unix(7), SO_PEERCRED of a socketpair."""
        if self._line is None:
            return 0
        credentials = self._line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def _take(self) -> None:
        """What we have not in use is closed."""
        self._has_taken = True
        listening = {listener.socket.fileno() for listener in self.listeners()}
        self._taken |= listening & self._sockets.keys()
        for part in (self._left["control"], self._left["metrics"]):
            if part is not None and part["fd"] not in self._taken:
                self._drop(part["fd"])
        if self._pidfile is not None:
            os.close(self._pidfile["fd"])
        self.on_take()

    def _leave_nurse(self) -> None:
        process.release(self._leash)
        nurse.let_go(self._leash)

    def _be_alone(self) -> None:
        """The other has let go; or it is dead, and we are the service though not all workers accept as yet."""
        if self._is_alone:
            return
        self._is_alone = True
        if not self._has_taken:
            self._take()
            self._leave_nurse()
        process.release(self._report)
        os.close(self._report)
        self._report = -1
        self.on_alone()
        if self._is_ready:
            self.on_done()

    def _say(self, word: Word) -> None:
        assert self._line is not None
        try:
            self._line.send(json.dumps(word).encode() + b"\n")
        except OSError:
            pass  # it is dead: ``attend`` sees it, too

    def _listener(self, one: PassedSocket, options: Options) -> Listener:
        sock = self._sockets[one["fd"]]
        address = _address(one["scheme"], sock)
        listener = Listener(address, sock, options, is_adopted=not one["is_own"], is_lent=True, is_outdated=True)
        if one["file"] is not None:
            listener.own_file((one["file"][0], one["file"][1]))
        return listener

    def _has_its_file(self, fd: int, file: FileId | None) -> bool:
        """Or its path leads elsewhere by now: it was removed, is another's, or is relative to another folder. Then it
        is not ours: who wants the path binds it anew."""
        if file is None or unix_path.is_there(os.fsdecode(self._sockets[fd].getsockname()), (file[0], file[1])):
            return True
        self._drop(fd)
        return False

    def _drop(self, fd: int) -> None:
        """Its number may be another's from now on."""
        if fd in self._sockets:
            self._sockets.pop(fd).close()

    def _file(self, found: PassedFile | None, name: str, options: Options) -> Listener | None:
        if found is None or found["name"] != name or not self._has_its_file(found["fd"], found["file"]):
            return None
        self._taken.add(found["fd"])
        scheme = "unix" if self._sockets[found["fd"]].family == socket.AF_UNIX else "tcp"
        return self._listener(PassedSocket(fd=found["fd"], scheme=scheme, is_own=True, file=found["file"]), options)


def _socket_fds(left: Estate) -> list[int]:
    files = [*left["unclaimed"], left["control"], left["metrics"]]
    named = [each["fd"] for each in files if each is not None]
    return [*named, *left["pairs"], *(one["fd"] for group in left["groups"] for one in group["sockets"])]


def _socket(fd: int) -> socket.socket:
    """Of what was passed; no program that a handler starts is to have it."""
    os.set_inheritable(fd, False)
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return sock


def _address(scheme: str, sock: socket.socket) -> Address:
    name = sock.getsockname()
    where = os.fsdecode(name) if sock.family == socket.AF_UNIX else (str(name[0]), int(name[1]))
    return Address(scheme, socket.AddressFamily(sock.family), where)


def _nothing() -> None:
    """As long as nobody has said what is to be done."""
