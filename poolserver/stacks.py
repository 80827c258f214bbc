"""Where every thread of this process is, written to a pipe when a signal asks. Runs in a worker; also for ``-w 0``.

``ASK`` is answered by Python itself, between two instructions of the main thread, with the lanes' names. A worker in
which a C call holds the interpreter's lock cannot do that; then ``FORCE`` has ``faulthandler`` read the frames as they
stand, which is safe only while nobody runs. Source: faulthandler.register.

A thread begins with ``> NAME``, its innermost call comes first; a line with a dot ends the answer.
"""

import faulthandler
import os
import select
import signal
import sys
import threading
from types import FrameType

from poolserver import signals

ASK = signal.SIGRTMIN + 8
FORCE = signal.SIGRTMIN + 9

MAX_BYTES = 256 * 1024
"""Of one answer, of which the rest is left out."""

MAX_FRAMES = 64
"""Of one thread, the innermost: RecursionError comes at a thousand."""

WRITE_TIMEOUT = 0.5
"""Seconds to wait for the master to make room in the pipe; then the rest is left out, too."""

END = b"\n.\n"

CRASH = "Fatal Python error"
"""How what a crash leaves begins. Source: faulthandler.enable."""


def install(fd: int) -> None:
    """Answer both signals on ``fd``, a non-blocking pipe's write end, from here on; a crash leaves its stack there."""
    signals.call_on(ASK, lambda frame: write(fd, frame))
    faulthandler.register(FORCE, file=fd, all_threads=True)
    faulthandler.enable(file=fd, all_threads=True)


def write(fd: int, interrupted: FrameType | None) -> None:
    """Write every thread's stack to ``fd``, as far as it goes in time."""
    octets = memoryview(text(interrupted).encode("utf-8", "backslashreplace")[: MAX_BYTES - len(END)] + END)
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    while octets and poller.poll(int(WRITE_TIMEOUT * 1000)):
        try:
            octets = octets[os.write(fd, octets) :]
        except BlockingIOError:
            return  # less room than the rest of a line needs: left out
        except OSError:
            return  # the master is gone


def text(interrupted: FrameType | None) -> str:
    """Every thread of this process, by name; the one that asks, as it was ``interrupted``."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames() | {threading.get_ident(): interrupted}
    return "\n".join(f"> {names.get(ident, f'thread {ident}')}\n{_calls(frame)}" for ident, frame in frames.items())


def _calls(frame: FrameType | None) -> str:
    """Without the lines' text: reading files is no affair of a signal handler."""
    lines: list[str] = []
    while frame is not None and len(lines) < MAX_FRAMES:
        lines.append(f'File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_qualname}')
        frame = frame.f_back
    return "\n".join(lines)
