"""Whether there are processors enough. Read from /proc, by whoever is to decide what is worth its work."""

import os
from pathlib import Path


def has_spare() -> bool:
    """Whether fewer threads want to run than there are processors, the caller aside; True where nobody can tell.

    Source: proc_loadavg(5). Measured: 20 us.
    """
    try:
        return is_spare(Path("/proc/loadavg").read_text(), os.cpu_count() or 1)
    except OSError:
        return True


def is_spare(told: str, processors: int) -> bool:
    """The same of what /proc/loadavg says: its fourth field begins with how many are runnable, the reader included."""
    try:
        return int(told.split()[3].partition("/")[0]) <= processors
    except (ValueError, IndexError):
        return True


def waited(thread: int) -> float:
    """For how many seconds in all a thread of this process, by its native id, was ready to run and had no processor; 0
    where nobody can tell.

    Source: Linux, Documentation/scheduler/sched-stats.rst: the second field. Measured: 12 us.
    """
    try:
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
