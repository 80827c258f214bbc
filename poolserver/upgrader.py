"""The old master's side of an upgrade: start another on the same listeners, and hand over to it. Runs in its loop.

The new one is this program as it was first started: its arguments, its environment, its folder by its name, so that a
switched link leads to new code. It gets the listeners, and whatever else only one can have, as open descriptors, and
says which of them it has taken once its workers accept. Until then the old one owns all of it. ``heir.py`` is the
other side.
"""

import json
import logging
import math
import os
import select
import shutil
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from poolserver import estate, nurse, process, signals
from poolserver.errors import SystemRefusedError
from poolserver.estate import Counts, Estate, FileId, PassedFile, Word
from poolserver.events import Event, SuccessorFailed, SuccessorReady
from poolserver.process import Process
from poolserver.systemd import Manager

_log = logging.getLogger("poolserver")

UNTOLD_EXIT_INTERVAL = 0.5
"""Seconds between looks where no descriptor tells of its death (no pidfd)."""

COUNTS_INTERVAL = 1.0
"""Seconds between words of what the workers that drain have counted."""

MAX_WORD_BYTES = 65536
"""One descriptor's number has 7 characters at most."""


@dataclass(frozen=True)
class Launch:
    """How this process was started, to be started so again."""

    program: str
    arguments: tuple[str, ...]
    folder: str
    environ: Mapping[str, str]

    @classmethod
    def noted(cls, environ: Mapping[str, str]) -> "Launch":
        """As of now, before anybody enters another folder. Its name is the shell's: of a link, not of its target."""
        folder = environ.get("PWD", "")
        try:
            if not (folder and Path(folder).samefile(".")):
                folder = str(Path.cwd())
        except OSError:
            folder = "/"  # removed under us; a relative path could not be found there either
        arguments = sys.orig_argv
        named = arguments[0] if "/" in arguments[0] else sys.executable or shutil.which(arguments[0]) or arguments[0]
        return cls(str(Path(folder, named)), tuple(arguments), folder, environ)


@dataclass
class Passed:
    """Descriptors on their way, each with the number that it will have there, and what is to be done here once the heir
    has taken it."""

    fds: list[int] = field(default_factory=list)
    needed: set[int] = field(default_factory=set)
    """Unless the heir takes all of these, something ends with us."""
    on_taken: dict[int, Callable[[], None]] = field(default_factory=dict)

    def add(self, fd: int, on_taken: Callable[[], None] | None = None, *, is_needed: bool = False) -> int:
        """Pass it on; the number that it will have."""
        number = estate.FIRST_FD + len(self.fds)
        self.fds.append(fd)
        if on_taken is not None:
            self.on_taken[number] = on_taken
        if is_needed:
            self.needed.add(number)
        return number

    def file(self, fd: int, name: str, on_taken: Callable[[], None], file: FileId | None = None) -> PassedFile:
        """The same of what has a name."""
        return PassedFile(fd=self.add(fd, on_taken), name=name, file=file)


class Legacy(Protocol):
    """What is left."""

    def drawn_up(self, passed: Passed) -> Estate:
        """All of it, ``line`` and ``report`` aside, with every descriptor among those passed."""

    def counts(self) -> Counts:
        """What the service has counted so far."""

    def take_back(self) -> None:
        """What the heir may have taken before it failed is ours again."""


class Upgrader:
    """Owns the successor's nurse and the line to it.

    Args:
        name: The service's.
        launch: How this process was started.
        manager: The service manager.
        legacy: What is left.
        on_departed: What is to be done with what the successor has not taken.
    """

    def __init__(
        self, name: str, launch: Launch, manager: Manager, legacy: Legacy, on_departed: Callable[[], None]
    ) -> None:
        self._name = name
        self._launch = launch
        self._manager = manager
        self._legacy = legacy
        self._on_departed = on_departed
        self._counted = Counts(totals={}, durations=[])
        self._next_counts = math.inf
        self._passed = Passed()
        self._taken: list[int] = []
        self._pid = 0
        self._nurse: Process | None = None
        self._line: socket.socket | None = None
        self._received = b""
        self._has_departed = False

    def start(self) -> Event:
        """Start it. The event, if there is one, tells why it cannot be."""
        if os.getpid() == 1:
            return SuccessorFailed("this is PID 1, whose end is the container's: replace the container")
        try:
            self._start()
        except (OSError, SystemRefusedError) as error:
            self._close()
            return SuccessorFailed(f"a new master cannot be started: {error}")
        return None

    def end(self) -> None:
        """It is not wanted any more. Its workers see that it is dead, and leave."""
        if self._nurse is not None:
            self._nurse.end()
            self._tell({"is_over": True})  # where its nurse has just let it go
            self._legacy.take_back()
            self._close()

    def depart(self) -> None:
        """It has taken over: say so to the service manager, which listens to us as yet, and to the successor."""
        self._has_departed = True
        self._manager.main_pid(self._pid)
        self._manager.is_muted = True
        for number in self._taken:
            self._passed.on_taken.get(number, lambda: None)()
        self._on_departed()
        self._tell_counts()
        self._tell({"is_yours": True})

    def leave(self) -> None:
        """This process's end: what it has counted since is told. It waits in the line for its reader."""
        if self._has_departed:
            self._tell_counts()
        if self._nurse is not None:
            self._nurse.end()
        self._close()

    def interests(self) -> dict[int, int]:
        """What to poll."""
        return dict.fromkeys(self._fds(), select.POLLIN)

    def deadline(self) -> float:
        """When to ``attend`` at the latest, in monotonic seconds."""
        if self._has_departed and self._line is not None:
            return self._next_counts
        is_told = self._nurse is None or self._nurse.has_exit_descriptor
        return math.inf if is_told else time.monotonic() + UNTOLD_EXIT_INTERVAL

    def attend(self, ready: Collection[int], now: float) -> list[Event]:
        """What it has told, and its end. Once it serves, it is told what is counted here."""
        if self._has_departed and self._line is not None and self._next_counts <= now:
            self._tell_counts()
        is_due = self._nurse is not None and not self._nurse.has_exit_descriptor
        return list(self._told()) if is_due or set(ready).intersection(self._fds()) else []

    def _fds(self) -> list[int]:
        line = [self._line.fileno()] if self._line is not None else []
        return [*line, *(self._nurse.descriptors() if self._nurse is not None else [])]

    def _told(self) -> Iterator[Event]:
        """It has taken over when it has said so and its nurse has left; it has failed when both are gone."""
        for word in self._words():
            if "taken" in word:
                self._taken, self._pid = word["taken"], word["pid"]
        successor = self._nurse
        if successor is None:
            return  # we are leaving
        successor.reports()
        if not successor.has_exited():
            return
        if self._line is None:
            self._legacy.take_back()
            yield SuccessorFailed(successor.reason or f"the new master {successor.how}")
            self._close()
        elif self._pid:
            yield SuccessorReady(self._pid, self._passed.needed <= set(self._taken))
            self._end_nurse()

    def _words(self) -> Iterator[Word]:
        try:
            octets = self._line.recv(MAX_WORD_BYTES) if self._line is not None else b""
        except BlockingIOError:
            return
        except OSError:
            octets = b""  # it died with a line of ours unread
        if not octets and self._line is not None:
            self._hang_up()
        *lines, self._received = (self._received + octets).split(b"\n")
        yield from map(json.loads, lines)

    def _start(self) -> None:
        passed = self._passed = Passed()
        self._pid = 0
        will = self._legacy.drawn_up(passed)
        self._counted = will["counts"]
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        process.withhold(self._line.fileno())
        paper = os.memfd_create("poolserver-estate", os.MFD_CLOEXEC)
        try:
            will["line"] = passed.add(theirs.fileno())
            number = passed.add(paper)
            will["report"] = estate.FIRST_FD + len(passed.fds)
            will["leash"] = will["report"] + 1
            os.write(paper, json.dumps(will).encode())
            self._nurse = process.fork(lambda report: self._tend(passed, report, number), keep=passed.fds)
        finally:
            theirs.close()
            os.close(paper)

    def _tend(self, passed: Passed, report: int, paper: int) -> int:
        """In the nurse."""
        return nurse.tend(
            self._name, lambda nurse_pid, leash: self._become(nurse_pid, [*passed.fds, report, leash], report, paper)
        )

    def _become(self, nurse_pid: int, fds: Sequence[int], report: int, paper: int) -> int:
        """In the nurse's child: be the new master. Returns only where that cannot be."""
        signals.reset_in_child()
        signals.unblock_all()
        launch = self._launch
        environ = self._manager.environment_of(os.getpid(), launch.environ)
        environ |= {"PWD": launch.folder, estate.VARIABLE: f"{nurse_pid}:{paper}"}
        try:
            os.chdir(launch.folder)
            nurse.become(launch.program, launch.arguments, environ, fds)
        except OSError as error:
            told = f"cannot run {launch.program} in {launch.folder}: {error.strerror}"
            os.write(report, process.FAILED + told.encode("utf-8", "replace"))
        return SystemRefusedError.exit_code

    def _tell(self, word: Word) -> None:
        if self._line is None:
            return
        try:
            self._line.send(json.dumps(word).encode() + b"\n")
        except OSError:
            pass  # it has ended: nobody inherits

    def _tell_counts(self) -> None:
        """What was counted since they were last told."""
        before, self._counted = self._counted, self._legacy.counts()
        self._next_counts = time.monotonic() + COUNTS_INTERVAL
        self._tell({"counts": estate.grown(before, self._counted)})

    def _hang_up(self) -> None:
        if self._line is not None:
            process.release(self._line.fileno())
            self._line.close()
            self._line = None

    def _close(self) -> None:
        """The successor is dead, or on its own."""
        self._received = b""
        self._hang_up()
        self._end_nurse()

    def _end_nurse(self) -> None:
        if self._nurse is not None:
            self._nurse.close()
            self._nurse = None
