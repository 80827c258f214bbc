"""The inquiry: every worker is asked where its threads are, and has a moment to say so. Runs in the master's loop.

Owns the read end of a pipe for each worker, whose write end is that worker's alone. What comes is text for people, read
only while somebody asks, and bounded.
"""

import contextlib
import fcntl
import math
import os
import select
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from poolserver import stacks
from poolserver.events import Event

PATIENCE = 1.0
"""Seconds that a worker has to answer by itself; one in good health needs a millisecond."""

FORCED_PATIENCE = 0.5
"""Seconds more once it is forced."""

_PIPE_BYTES = 256 * 1024


@dataclass(eq=False)
class _Sheet:
    """A worker's answer."""

    fd: int
    received: bytes = b""
    is_read: bool = False
    """Its worker is dead, and was asked for its last words."""

    @property
    def is_complete(self) -> bool:
        return self.received.endswith(stacks.END) or len(self.received) >= stacks.MAX_BYTES

    @property
    def text(self) -> str:
        return self.received.decode("utf-8", "replace")

    def read(self) -> bool:
        """Take what is there. False: the worker is gone."""
        try:
            octets = os.read(self.fd, _PIPE_BYTES)
        except BlockingIOError:
            return True
        self.received = (self.received + octets)[: stacks.MAX_BYTES]
        return bool(octets)


@dataclass
class Inquiry:
    """``send(serial, signum)`` signals a worker; ``on_done(asker, texts)`` is told what each has said, by serial;
    ``on_examined(serial, text)`` what one has said that was forced to."""

    send: Callable[[int, int], None] = lambda _serial, _signum: None
    on_done: Callable[[int, dict[int, str]], None] = lambda _asker, _texts: None
    on_examined: Callable[[int, str], None] = lambda _serial, _text: None
    _sheets: dict[int, _Sheet] = field(default_factory=dict)
    _left: dict[int, str] = field(default_factory=dict)
    _askers: list[int] = field(default_factory=list)
    _examined: dict[int, float] = field(default_factory=dict)  # until when
    _deadline: float = math.inf
    _is_forced: bool = False

    @contextlib.contextmanager
    def pipe(self, serial: int) -> Iterator[int]:
        """The write end for a worker that is about to be forked; the child keeps its copy, ours is closed after."""
        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # many pipes of one user stay small: then long answers are cut short
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._sheets[serial] = _Sheet(read_fd)
        try:
            yield write_fd
        finally:
            os.close(write_fd)

    def begin(self, asker: int, now: float) -> None:
        """Ask all workers. Who asks meanwhile is told with the first."""
        self._askers.append(asker)
        if len(self._askers) > 1:
            return
        self._deadline = now + PATIENCE
        self._is_forced = False
        for serial, sheet in list(self._sheets.items()):
            sheet.read()  # what came too late for an earlier inquiry
            sheet.received = b""
            self.send(serial, stacks.ASK)

    def examine(self, serial: int, now: float) -> bool:
        """Force one worker to tell: it does not answer by itself. One that is stopped will not either. False: it has
        closed its pipe, and will tell nothing."""
        sheet = self._sheets.get(serial)
        if sheet is None:
            return False
        sheet.read()
        sheet.received = b""
        self._examined[serial] = now + FORCED_PATIENCE
        self.send(serial, stacks.FORCE)
        return True

    def last_words(self, serial: int) -> str:
        """What faulthandler wrote when the worker crashed; empty if it did not. Asked once, of a dead worker."""
        sheet = self._sheets.get(serial)
        if sheet is not None:
            sheet.read()
            sheet.is_read = True
        # its pipe may end before the process has: then it was put away
        text = sheet.text if sheet is not None else self._left.pop(serial, "")
        _, fatal, stack = text.partition(stacks.CRASH)
        return fatal + stack

    def interests(self) -> dict[int, int]:
        """Read while somebody asks; a hang-up, which poll(2) tells in any case, means that the worker is gone."""
        asked = self._sheets.keys() if self._askers else self._examined.keys()
        return {
            sheet.fd: select.POLLIN if serial in asked and not sheet.is_complete else 0
            for serial, sheet in self._sheets.items()
        }

    def deadline(self) -> float:
        """When to call ``attend`` at the latest."""
        return min(self._deadline, *self._examined.values(), math.inf)

    def attend(self, ready: Collection[int], now: float) -> list[Event]:
        """Take what has come; when all have answered or their time is over, tell."""
        for serial, sheet in list(self._sheets.items()):
            is_gone = sheet.fd in ready and not sheet.read()
            if serial in self._examined and (is_gone or now >= self._examined[serial]):
                del self._examined[serial]
                self.on_examined(serial, sheet.text)
            if is_gone:
                os.close(self._sheets.pop(serial).fd)
                if stacks.CRASH in sheet.text and not sheet.is_read:
                    self._left[serial] = sheet.text
        waiting = [serial for serial, sheet in self._sheets.items() if not sheet.is_complete]
        if self._askers and (not waiting or now >= self._deadline):
            if waiting and not self._is_forced:
                self._force(waiting, now)
            else:
                self._tell()
        return []

    def close_in_child(self) -> None:
        """In a forked child: its copies of the read ends."""
        for sheet in self._sheets.values():
            os.close(sheet.fd)

    def close(self) -> None:
        """The end of the service."""
        self.close_in_child()
        self._sheets.clear()

    def _force(self, waiting: list[int], now: float) -> None:
        self._is_forced = True
        self._deadline = now + FORCED_PATIENCE
        for serial in waiting:
            self.send(serial, stacks.FORCE)

    def _tell(self) -> None:
        texts = {serial: sheet.text for serial, sheet in self._sheets.items()}
        askers, self._askers = self._askers, []
        self._deadline = math.inf
        for asker in askers:
            self.on_done(asker, texts)
