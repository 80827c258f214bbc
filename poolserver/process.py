"""The master's side of a worker: fork, signal, wait, and the pipe on which it reports. The only fork, kill and wait.

The report pipe: its write end is held by the worker alone. It carries ``BOOTED`` and ``READY`` once each,
``STOP_ASKED`` when a handler calls ``server.shutdown()``, or ``FAILED`` and the reason of a failed start, to the end.
There is no other message.
"""

import contextlib
import ctypes
import enum
import gc
import itertools
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator

from poolserver import signals
from poolserver.errors import SystemRefusedError

BOOTED = b"="
READY = b"+"
FAILED = b"-"
STOP_ASKED = b"!"

MAX_REASON_BYTES = 16384
"""Fits an empty pipe (64 KiB), so that a worker which fails never blocks on telling why."""


_libc = ctypes.CDLL(None, use_errno=True)  # before any fork: a child that hangs in the loader's lock would never end


_withheld: set[int] = set()


class Report(enum.Enum):
    """What a worker tells while it lives."""

    BOOTED = "booted"
    READY = "ready"
    STOP_ASKED = "a handler asked the service to stop"


class Process:
    """A forked worker, as its master sees it.

    Owns the pidfd and the read end of the report pipe until ``close()``. A pid is signalled only while its process is
    unreaped, so a reused number is never hit.
    """

    def __init__(self, pid: int, pidfd: int | None, report_fd: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.reason = ""
        self._pidfd = pidfd
        self._report_fd = report_fd
        self._failed = b""

    @property
    def has_exit_descriptor(self) -> bool:
        """Whether a descriptor tells of its death; without pidfds (an old or a filtered kernel) it must be asked."""
        return self._pidfd is not None

    def descriptors(self) -> list[int]:
        """What to poll for reading."""
        fds = [self._report_fd, self._pidfd]
        return [fd for fd in fds if fd is not None and fd >= 0]

    def reports(self) -> list[Report]:
        """What it has written since the last call. EOF says nothing: only ``has_exited`` does."""
        if self._report_fd < 0:
            return []
        try:
            octets = os.read(self._report_fd, 65536)
        except BlockingIOError:
            return []
        if not octets or len(self._failed) > MAX_REASON_BYTES:
            self._close_reports()
        octets, self._failed = self._told_before_failing(octets)
        self.reason = self._failed[1:].decode("utf-8", "replace")
        meanings = {BOOTED: Report.BOOTED, READY: Report.READY, STOP_ASKED: Report.STOP_ASKED}
        return [meanings[bytes([octet])] for octet in octets if bytes([octet]) in meanings]

    def has_exited(self) -> bool:
        """Reap it if it is dead. Never waits. Source: waitpid(2)."""
        if self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.note_reaped(0)  # somebody else in this process took the status (a stock ForkingMixIn does)
                return True
            if pid:
                self.note_reaped(status)
        return self.status is not None

    def note_reaped(self, status: int) -> None:
        """It was reaped, here or among strangers by PID 1."""
        self.status = status

    def send(self, signum: int) -> None:
        """Signal it, if it is still there."""
        if self.status is not None:
            return
        try:
            if self._pidfd is None:
                os.kill(self.pid, signum)
            else:
                signal.pidfd_send_signal(self._pidfd, signum)
        except ProcessLookupError:
            pass  # a zombie that is about to be reaped

    @property
    def how(self) -> str:
        """How it ended, as a clause."""
        code = os.waitstatus_to_exitcode(self.status or 0)
        return f"exited with code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"

    def close(self) -> None:
        """Give the descriptors back. The master calls it after the burial, a forked sibling at its start."""
        self._close_reports()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None

    def end(self) -> None:
        """Kill it and wait for its death, which SIGKILL makes a matter of microseconds."""
        self.send(signal.SIGKILL)
        if self.status is None:
            _wait(self.pid)
        self.close()

    def _told_before_failing(self, octets: bytes) -> tuple[bytes, bytes]:
        """``FAILED`` goes on to the end, and may come in one read with what was told before it."""
        if self._failed:
            return b"", self._failed + octets
        told, failed, reason = octets.partition(FAILED)
        return told, failed + reason

    def _close_reports(self) -> None:
        if self._report_fd >= 0:
            os.close(self._report_fd)
            self._report_fd = -1


def fork(body: Callable[[int], int], *, keep: Collection[int] = ()) -> Process:
    """Start a child that runs ``body(report_fd)`` and leaves with the status it returns, by ``os._exit``.

    The body starts with every signal blocked, so that none meets the parent's handlers in the child; it must reset
    and unblock them. ``os._exit``: the parent's atexit hooks, temporary directories and buffers are not the child's.

    Args:
        body: What it does.
        keep: What it gets though it is withheld from every other child.

    Raises:
        SystemRefusedError: fork(2) failed (EAGAIN: too many processes; ENOMEM) or no descriptor is left.
    """
    try:
        report_read, report_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SystemRefusedError(f"no pipe for a worker: {error.strerror}") from error
    _flush()
    mask = signals.block_all()
    try:
        with warnings.catch_warnings():
            # 3.12 warns when threads are alive; serve_forever names them in the log instead
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _run_child(body, report_read, report_write, keep)
    except OSError as error:
        os.close(report_read)
        raise SystemRefusedError(f"fork failed: {error.strerror}") from error
    finally:
        signals.restore_mask(mask)
        os.close(report_write)
    return Process(pid, _pidfd(pid), report_read)


def withhold(fd: int) -> None:
    """Keep a descriptor from every child: it is closed there at once. ``release`` it before it is closed here."""
    _withheld.add(fd)


def release(fd: int) -> None:
    """The number may be anybody's from now on."""
    _withheld.discard(fd)


def run_and_wait(body: Callable[[], None]) -> None:
    """Run ``body`` in a forked child and wait for its end: one request of a pre-fork server's ``handle_request``."""

    def child(_report_fd: int) -> int:
        signals.reset_in_child()
        signals.unblock_all()
        body()
        return 0

    process = fork(child)
    _wait(process.pid)
    process.close()


def reap_strangers(known: Callable[[int, int], bool]) -> int:
    """As PID 1: bury every dead child; ``known(pid, status)`` takes those that are workers. Returns how many were not.

    One SIGCHLD may stand for many deaths (50 gave 4–20), so this goes on until waitpid(2) has none.
    """
    strangers = 0
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return strangers
        if pid == 0:
            return strangers
        strangers += not known(pid, status)


def keep_only(fds: Iterable[int]) -> None:
    """In a child that needs nothing else of its parent: close all but these and the standard descriptors.

    Objects over what was closed must not be touched any more: their numbers will be others'.
    """
    kept = sorted({0, 1, 2, *fds})
    for below, above in itertools.pairwise([*kept, os.sysconf("SC_OPEN_MAX")]):
        os.closerange(below + 1, above)


def die_with(parent_pid: int) -> None:
    """In a child that has nothing to finish: be killed when the parent dies, now if it is dead already.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _libc.prctl(1, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)


def outlive_parent() -> None:
    """As ever again, after ``die_with``."""
    _libc.prctl(1, 0, 0, 0, 0)


def die_by(signum: int) -> None:
    """End this process by a signal that does so by default, without a core of its own."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signum)


def fork_count() -> int:
    """How many forks lie between the import of this module and this process."""
    return FORKS.count


def leave_if_forked(count: int) -> None:
    """End this process if it is not the one that ``fork_count`` was asked in: a child that a handler forked and that
    came back from it is no lane. It would serve on, with the parent's epoll, when the service is long over."""
    if FORKS.count != count:
        error = sys.exception()
        code = error.code if isinstance(error, SystemExit) else error is not None
        try:
            _flush()
        finally:
            os._exit(code if isinstance(code, int) else 1)


class _Forks:
    def __init__(self) -> None:
        self.count = 0

    def note(self) -> None:
        self.count += 1


FORKS = _Forks()
"""Its ``count`` is ``fork_count()``, for who asks with each connection."""

os.register_at_fork(after_in_child=FORKS.note)


def other_threads() -> list[str]:
    """Names of the threads beside the caller. A fork copies none of them, but their locks as they stand."""
    return [thread.name for thread in threading.enumerate() if thread is not threading.current_thread()]


@contextlib.contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep the collector off what exists before the fork: its marks would make every shared page private.

    Nothing is collected before: what a child makes would go into the holes, and make the pages around them private.
    Measured: private memory of an idle worker 9.9 → 3.1 MB; 0.3 MiB more with a collection. Source: gc.freeze.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _run_child(body: Callable[[int], int], report_read: int, report_write: int, keep: Collection[int]) -> None:
    status = 1
    try:
        os.close(report_read)
        for fd in _withheld.difference(keep):
            os.close(fd)
        _withheld.clear()
        status = body(report_write)
    except BaseException:  # noqa: BLE001 - nothing may unwind into the parent's frames
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            _flush()
        finally:
            os._exit(status)


def _wait(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # reaped by somebody else in this process: it is over all the same


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # full disk, closed, or None: what it held cannot be saved here


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None  # ENOSYS before Linux 5.3 or under a system call filter, EMFILE: waitpid is asked instead


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # real-time signals between the ends have no name
