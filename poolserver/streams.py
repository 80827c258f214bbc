"""Standard input, output and error: that each is open, and that whoever writes there never waits.

Whoever reads them may be stopped or gone, the disk behind them full. That is no reason to keep a client waiting: what
is not taken is dropped, and counted by whoever asked to be told.
"""

import errno
import fcntl
import io
import os
import select
import stat
import sys
from collections.abc import Callable
from typing import Any

LOWEST_OWN_FD = 10
"""A handler that closes descriptors 0–9 must not make the next client's connection our log."""

_PIPE_BUF = 4096

_NAMES = ("stdin", "stdout", "stderr")


def own_copy(fd: int) -> int:
    """A copy that no handler closes by mistake, and no program inherits."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_OWN_FD)


class TornError(OSError):
    """A part was written, and the rest was not: whatever is written next has to begin on a line of its own."""


def put(fd: int, octets: bytes) -> None:
    """Write without ever waiting: a reader that is stopped must stop nobody else.

    A file takes all of it in one write, so that lines of several processes are never mixed. A pipe or socket that is
    ready takes this much at once; what it does not is lost. Source: pipe(7), PIPE_BUF; write(2), O_APPEND.

    Raises:
        TornError: it took a part.
        OSError: it takes nothing now, or never will.
    """
    room = len(octets) if stat.S_ISREG(os.fstat(fd).st_mode) else _PIPE_BUF
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    written = 0
    try:
        while written < len(octets):
            if not poller.poll(0):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            written += os.write(fd, octets[written : written + room])
    except OSError as error:
        if written:
            raise TornError(*error.args) from error
        raise


def keep_descriptors() -> None:
    """Where 0, 1 or 2 is closed, the next socket would become somebody's standard error: put /dev/null there."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for fd, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))  # noqa: SIM115 - for the process's whole life


def keep_from_waiting(on_lost: Callable[[], None]) -> None:
    """From now on nothing that this process prints waits: http.server's handlers, for one, print a line for each
    request. ``on_lost`` is called for what is dropped. A stream that is somebody's own is left alone."""
    for fd, name in enumerate(_NAMES[1:], 1):
        stream = getattr(sys, name)
        if _is_of(stream, fd):
            outlet: Any = _Outlet(fd, on_lost)  # a raw file does, as with python -u
            text = io.TextIOWrapper(outlet, stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, text)


def _is_of(stream: Any, fd: int) -> bool:
    try:
        return bool(stream.fileno() == fd)
    except (OSError, ValueError, AttributeError):
        return False  # no file at all, as under a test runner's capture


class _Outlet(io.RawIOBase):
    """What ``sys.stdout`` and ``sys.stderr`` write to. Every write succeeds."""

    def __init__(self, fd: int, on_lost: Callable[[], None]) -> None:
        super().__init__()
        self._fd = fd
        self._on_lost = on_lost

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, octets: Any) -> int:
        try:
            put(self._fd, bytes(octets))
        except OSError:
            self._on_lost()
        return len(octets)
