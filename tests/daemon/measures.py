"""What the kernel counts about processes: context switches, CPU, descriptors, system calls. Read from ``/proc``."""

import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_BLOCKING_CALLS = {
    "x86_64": {"43": "accept", "288": "accept4", "45": "recvfrom"},
    "aarch64": {"202": "accept", "242": "accept4", "207": "recvfrom"},
}


def voluntary_switches(pids: Iterable[int]) -> int:
    """How often threads of these processes went to sleep and were woken.

    Not the involuntary ones: they tell of other processes.
    """
    return sum(
        int(line.split()[1])
        for status in _of_tasks(pids, "status")
        for line in status.splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes have used, to the nanosecond, where ``stat`` counts hundredths."""
    return sum(int(text.split()[0]) for text in _of_tasks(pids, "schedstat")) / 1e9


def rate(count: Callable[[], float], seconds: float) -> float:
    """How much ``count`` grows per second. A rate needs a window: the one wait here that is for time."""
    before, start = count(), time.monotonic()
    threading.Event().wait(seconds)
    return (count() - before) / (time.monotonic() - start)


def unit_of_work() -> float:
    """CPU seconds that something always the same takes now: about 5 ms on the machine that figures were taken on."""
    start = time.thread_time()
    sorted(str(number) for number in range(60_000))
    return time.thread_time() - start


def descriptors(pid: int) -> int:
    """How many descriptors it has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - counted, not walked


def resident(pid: int) -> int:
    """Resident bytes. Source: proc(5) statm."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def children(pid: int) -> list[int]:
    return [int(child) for text in _of_tasks([pid], "children") for child in text.split()]


def waiting_in_calls(pids: Iterable[int]) -> list[str]:
    """The threads that sit in accept(2) or recvfrom(2), where idle lanes must never be: nothing wakes them there."""
    names = _BLOCKING_CALLS[platform.machine()]
    numbers = [text.split()[0] for text in _of_tasks(pids, "syscall")]
    return [names[number] for number in numbers if number in names]


def is_nonblocking(pid: int, inode: int) -> bool:
    """Whether the socket with that inode, open in ``pid``, has O_NONBLOCK."""
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if path.readlink() == Path(f"socket:[{inode}]"):
            flags = Path(f"/proc/{pid}/fdinfo/{path.name}").read_text().split("flags:")[1].split()[0]
            return bool(int(flags, 8) & os.O_NONBLOCK)
    raise AssertionError(f"{pid} does not hold socket {inode}")


def listening_inode(port: int, table: str = "tcp") -> int:
    """The inode of the listener (or, with "udp", the bound socket) on ``port``."""
    for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and (table == "udp" or fields[3] == "0A"):
            return int(fields[9])
    raise AssertionError(f"nothing listens on {port}")


def _of_tasks(pids: Iterable[int], name: str) -> list[str]:
    """That file of each thread. A thread that has just ended counts no more."""
    texts = []
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                texts.append((task / name).read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return texts
