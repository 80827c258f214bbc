"""Signals and wake-ups: an inbox that a loop can poll, and the one place that installs signal handlers.

Used by the loops of the master and of a worker. Never decides what a signal means: that is ``commands.py``.
"""

import collections
import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Messages for one loop, from signal handlers and from other threads.

    The descriptor of ``fileno()`` becomes readable when something was posted. The pipe only wakes: what was
    posted stands in a queue, so a full pipe loses no order (1,000 signals in a row fill nothing).
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._posted: collections.deque[T] = collections.deque()

    @classmethod
    def open(cls) -> "Inbox[T]":
        """Make the pipe. ``close()`` gives it back; a forked child closes its copies with ``close()`` too."""
        return cls(*os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._read_fd

    def wakeup_fd(self) -> int:
        """The descriptor that the interpreter writes to when a signal arrives."""
        return self._write_fd

    def post(self, message: T) -> None:
        """Leave ``message`` and wake the loop. Safe in a signal handler and in any thread."""
        self._posted.append(message)
        try:
            os.write(self._write_fd, b"\0")
        except BlockingIOError:
            pass  # the pipe is full, so the loop is awake already

    def take(self) -> list[T]:
        """Everything posted since the last call, oldest first."""
        try:
            while os.read(self._read_fd, 4096):
                continue
        except BlockingIOError:
            pass  # emptied
        # Runs the handlers of signals that woke us: in a child forked from another thread than the main one, 3.13.0
        # leaves them until some call asks. Source: measured; pthread_sigmask calls PyErr_CheckSignals.
        signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return [self._posted.popleft() for _ in range(len(self._posted))]

    def close(self) -> None:
        os.close(self._read_fd)
        os.close(self._write_fd)


@contextlib.contextmanager
def taken(inbox: Inbox[T], meanings: Mapping[int, T | None], *, is_final: bool = False) -> Iterator[None]:
    """Post ``meanings[signum]`` for each of these signals until the block is left, then restore what was there.

    ``is_final``: the process is ours and ends with the block. What a careless parent left to us is undone, and after
    the block these signals are ignored: a second TERM must not make a clean end a death by signal.

    A meaning of None takes the signal and drops it. Outside the main thread nothing is taken: Python runs signal
    handlers there only. The wake-up descriptor is needed because the kernel may hand the signal to any thread,
    whose interrupted system call would not wake the main one.
    Source: signal.set_wakeup_fd, PEP 475.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.getsignal(signum) for signum in meanings}
    previous_fd = take(inbox, meanings)
    if is_final:
        previous = dict.fromkeys(meanings, signal.SIG_IGN)
        _undo_inherited()
    try:
        yield
    finally:
        for signum, handler in previous.items():
            # None: installed from C, which Python cannot put back; the default is the nearest
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(previous_fd)


def take(inbox: Inbox[T], meanings: Mapping[int, T | None]) -> int:
    """As ``taken``, for good: a worker keeps its handlers up to ``os._exit``. Returns the wake-up descriptor before."""

    def on_signal(signum: int, _frame: FrameType | None) -> None:
        meaning = meanings[signum]
        if meaning is not None:
            inbox.post(meaning)

    previous_fd = signal.set_wakeup_fd(inbox.wakeup_fd(), warn_on_full_buffer=False)
    for signum in meanings:
        signal.signal(signum, on_signal)
    return previous_fd


@contextlib.contextmanager
def limited(seconds: float, text: str) -> Iterator[None]:
    """Raise TimeoutError in the block when it has taken so many seconds; not while a C call holds the interpreter, nor
    outside the main thread. Source: setitimer(2)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(_signum: int, _frame: FrameType | None) -> None:
        raise TimeoutError(text)

    previous = signal.signal(signal.SIGALRM, on_alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)


def call_on(signum: int, call: Callable[[FrameType | None], None]) -> None:
    """Call ``call`` at this signal, for good, with the frame that it interrupts."""
    signal.signal(signum, lambda _signum, frame: call(frame))


def default(signum: int) -> None:
    """Let the kernel do what it does by default."""
    signal.signal(signum, signal.SIG_DFL)


def block_all() -> set[signal.Signals]:
    """Block every signal in this thread, so that none is handled between a fork and the child's reset.

    Returns the mask to restore.
    """
    return signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # type: ignore[return-value]


def restore_mask(mask: set[signal.Signals]) -> None:
    """The mask that ``block_all`` gave."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reset_in_child() -> None:
    """In a fresh child: the defaults for every handler that the parent installed.

    Ignored signals stay as the interpreter had them (SIGPIPE, SIGXFSZ): handlers rely on BrokenPipeError.
    """
    signal.set_wakeup_fd(-1)
    for signum in signal.valid_signals():
        if callable(signal.getsignal(signum)):
            signal.signal(signum, signal.SIG_DFL)


def _undo_inherited() -> None:
    """Masks and ignored signals survive execve(2): with TERM blocked we would be deaf to it, with SIGCHLD ignored the
    kernel throws away the exit statuses of workers and of programs that handlers start."""
    unblock_all()
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def unblock_all() -> None:
    """An empty mask, as handlers and the programs they start expect. Source: execve(2): masks survive exec."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def wait_readable(poller: select.poll, seconds: float | None) -> list[int]:
    """The descriptors of ``poller`` that are ready, waiting at most ``seconds`` (None: for ever).

    Rounds up: poll(2) counts milliseconds, and waking a fraction too early would spin until the deadline.
    """
    milliseconds = None if seconds is None else max(0, int(seconds * 1000) + 1)
    return [fd for fd, _ in poller.poll(milliseconds)]
