"""``poolserver``, with the turns of its master's loop measured: what happens between two waits.

At its end it writes the longest to the file that $TURNS names, in seconds: of the processor, and on the clock, less the
time in which it could have run but others had the processor. Source: proc(5), schedstat.
"""

import atexit
import os
import time
from pathlib import Path

from poolserver import cli, master

_wait = master.wait_readable
_pid = os.getpid()
_longest = [0.0, 0.0]
_began = None
_schedstat = os.open("/proc/self/schedstat", os.O_RDONLY | os.O_CLOEXEC)


def clocks() -> tuple[float, float]:
    """One of the processor, and one that stands still while others have it."""
    _ran, waited, _slices = os.pread(_schedstat, 100, 0).split()
    return time.thread_time(), time.monotonic() - int(waited) / 1e9


def wait_and_measure(poller, seconds):
    """Stands for ``wait_readable`` in the master; a worker has its own."""
    global _longest, _began
    if _began is not None and os.getpid() == _pid:
        _longest = [max(longest, end - begin) for longest, end, begin in zip(_longest, clocks(), _began, strict=True)]
    ready = _wait(poller, seconds)
    _began = clocks()
    return ready


def write():
    """Where the test looks."""
    if os.getpid() == _pid:
        Path(os.environ["TURNS"]).write_text(" ".join(map(str, _longest)))


if __name__ == "__main__":
    master.wait_readable = wait_and_measure
    atexit.register(write)
    cli.main()
