"""Whether there are processors enough. Read from /proc, by whoever is to decide what is worth its work.

Each file is opened once: under load every call that lets go of the interpreter's lock may take milliseconds to have it
back (measured, 16 workers on two cores: half a millisecond of processor time to open, read and close one).
"""

import errno
import functools
import os


def has_spare() -> bool:
    """Whether fewer threads want to run than there are processors, the caller aside; True where nobody can tell.

    Source: proc_loadavg(5).
    """
    return is_spare(_file("/proc/loadavg").read(), _processors())


def is_spare(told: bytes, processors: int) -> bool:
    """The same of what /proc/loadavg says: its fourth field begins with how many are runnable, the reader included."""
    try:
        return int(told.split()[3].partition(b"/")[0]) <= processors
    except (ValueError, IndexError):
        return True


def waited(thread: int) -> float:
    """For how many seconds in all a thread of this process, by its native id, was ready to run and had no processor; 0
    where nobody can tell.

    Source: Linux, Documentation/scheduler/sched-stats.rst: the second field.
    """
    try:
        return int(_file(f"/proc/self/task/{thread}/schedstat").read().split()[1]) / 1e9
    except (ValueError, IndexError):
        return 0.0


class _File:
    """A file of /proc that is read again and again."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def read(self) -> bytes:
        """What it says now; nothing, if it cannot be read."""
        try:
            if self._fd < 0:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._fd, 256, 0)
        except OSError as error:
            if error.errno == errno.ESRCH:  # the thread has ended; after any other the number may be another's
                self.close()
            self._fd = -1
            return b""

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close


_file = functools.lru_cache(maxsize=64)(_File)


@functools.cache
def _processors() -> int:
    return os.cpu_count() or 1
