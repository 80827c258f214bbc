"""A contestant while it runs: started, found ready, measured from outside, stopped and reaped.

Everything the benchmark knows of a server it reads from the kernel, the same way for every contestant.
"""

import ctypes
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from contestants import Contestant

ROOT = Path(__file__).resolve().parent.parent
# Far above the 2 s that a ready line may take, far below anyone's patience.
READY_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
# How often the log is read for the ready line: the resolution of the start time, against a limit of 2 s.
READY_INTERVAL = 0.002
# ForkingTCPServer looks for children that have ended with each connection, and every half a second.
REAP_TIMEOUT, REAP_INTERVAL = 30.0, 0.05
NS_PER_TICK = 10**9 // os.sysconf("SC_CLK_TCK")
READY = re.compile(r"^\S+: ready on tcp://127\.0\.0\.1:(\d+) \(pid (\d+)", re.MULTILINE)
# What would change a contestant's behaviour if the benchmark itself runs under a supervisor.
FOREIGN_SETTINGS = ("POOLSERVER_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "RUNTIME_DIRECTORY")

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


class BenchError(Exception):
    """Nothing can be said: a contestant did not start, failed a request or left wrongly."""


def adopt_orphans() -> None:
    """Make the children of a killed master ours to reap. **Source**: prctl(2), PR_SET_CHILD_SUBREAPER."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """In a contestant before exec: SIGTERM should the benchmark itself be SIGKILLed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def clean_environment() -> dict[str, str]:
    """The caller's environment without what poolserver or a supervisor reads from it."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_SETTINGS)}


def children(pid: int) -> list[int]:
    """The live children of a process, none if it has ended. **Source**: proc(5), `/proc/PID/task/TID/children`."""
    return [int(word) for task in tasks(pid) for word in text_of(task / "children").split()]


def tasks(pid: int) -> list[Path]:
    """The threads of a process, none if it has ended."""
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []


def text_of(path: Path) -> str:
    """A file of /proc, nothing if whose it is has ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def group(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(member for child in children(pid) for member in group(child))]


def cpu_ns(pid: int) -> int:
    """CPU time of another process in nanoseconds, user and system, with threads that have ended.

    `/proc/PID/task/*/schedstat` loses a thread's time when it ends, which for a thread for each connection is
    nearly all of it. The process's clock does not. **Source**: clock_getcpuclockid(3); the identifier is
    `~pid << 3 | CPUCLOCK_SCHED` (linux/posix-timers.h).
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


def reaped_ns(pid: int) -> int:
    """CPU time of the children that a process has waited for, and of theirs. **Source**: proc(5), cutime and cstime.

    The kernel keeps it in nanoseconds and tells it in ticks of 10 ms: of a round that takes a second, a hundredth.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) * NS_PER_TICK


def schedstat_ns(pid: int) -> int:
    """The same from the live threads' run times, to check the clock against."""
    paths = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in paths)


def private_bytes(pid: int) -> int:
    """Memory no other process shares: what one more worker costs."""
    return mapped_bytes(pid, "Private_(?:Clean|Dirty)")


def proportional_bytes(pid: int) -> int:
    """Its memory, with its part of what it shares: of a pool's processes they add up to what the pool takes."""
    return mapped_bytes(pid, "Pss")


def mapped_bytes(pid: int, kind: str) -> int:
    """Memory by a kind that proc(5) names for `smaps`."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(kib) for kib in re.findall(rf"^{kind}:\s+(\d+)", rollup, re.MULTILINE))


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had. **Source**: proc(5), VmHWM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.findall(r"^VmHWM:\s+(\d+)", status, re.MULTILINE)[0])


def threads(pid: int) -> int:
    """How many threads it has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


class Running:
    """One contestant from its start to its last process; a context manager that leaves nothing behind.

    It has a session of its own, so that Ctrl-C reaches the benchmark only, which then stops it in order.
    """

    def __init__(self, contestant: Contestant, scratch: Path) -> None:
        self.label = contestant.label
        self.load_kind = contestant.load_kind
        self.talk = contestant.talk
        self.port = 0
        self.pid = 0
        self.start_seconds = 0.0
        self._command = contestant.command
        self._exit_status = contestant.exit_status
        self._max_files = contestant.max_files
        self._workers = contestant.workers
        self.forks = contestant.forks
        name = re.sub("[^0-9A-Za-z]+", "-", contestant.label)
        self._log = scratch / f"{name}.log"
        self._environment = clean_environment() | {"POOLSERVER_CONTROL__SOCKET": str(scratch / f"{name}.sock")}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it and wait for its ready line.

        Raises:
            BenchError: it ended or was not ready within READY_TIMEOUT; nothing of it is left.
        """
        started = time.perf_counter()
        try:
            self._process = self._start()
            self._wait_until_ready(self._process, started + READY_TIMEOUT)
        except BaseException:
            self._end()
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; a wrong exit status is an error of its own unless one is already on its way."""
        status = self._end()
        if kind is None and status != self._exit_status:
            raise BenchError(f"{self.label}: left with {status} after SIGTERM, not {self._exit_status}\n{self.log()}")

    def log(self) -> str:
        """The end of what it wrote, for an error message."""
        return self._log.read_text(errors="replace")[-4000:]

    @property
    def log_bytes(self) -> int:
        """How much it has written."""
        return self._log.stat().st_size

    def cpu_ns(self, members: list[int]) -> int:
        """CPU of its processes so far, with those that are gone where it has one for each connection."""
        return sum(map(cpu_ns, members)) + (reaped_ns(self.pid) if self.forks else 0)

    def members(self) -> list[int]:
        """Its processes; one that forks for each connection is given time to reap them."""
        deadline = time.monotonic() + REAP_TIMEOUT
        while len(found := group(self.pid)) > 1 and self.forks and time.monotonic() < deadline:
            time.sleep(REAP_INTERVAL)
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                preexec_fn=self._before_exec,  # noqa: PLW1509 # the benchmark has one thread
            )

    def _before_exec(self) -> None:
        end_with_parent()
        if self._max_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self._max_files, self._max_files))

    def _wait_until_ready(self, process: subprocess.Popen[bytes], deadline: float) -> None:
        while not self._is_ready():
            if process.poll() is not None:
                raise BenchError(f"{self.label}: ended with {process.returncode} before it was ready\n{self.log()}")
            if time.perf_counter() > deadline:
                raise BenchError(f"{self.label}: not ready within {READY_TIMEOUT:g} s\n{self.log()}")
            time.sleep(READY_INTERVAL)

    def _is_ready(self) -> bool:
        if not self.pid and (ready := READY.search(self._log.read_text(errors="replace"))):
            self.port, self.pid = int(ready[1]), int(ready[2])
        return bool(self.pid) and len(group(self.pid)) > self._workers

    def _end(self) -> int | None:
        """TERM to the master, then KILL to whatever is left of its process group, then reap it all."""
        if self._process is None:
            return None
        try:
            self._process.terminate()
            return self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            return None
        finally:
            reap_group(self._process)


def reap_group(process: subprocess.Popen[bytes]) -> None:
    """Kill and wait for every process of the group that `process` leads (or led)."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all gone already, and none is a zombie
        pass
    process.wait()
    try:
        while True:
            os.waitpid(-process.pid, 0)  # its orphans became our children: see adopt_orphans
    except ChildProcessError:
        pass
