"""The daemon under test: a real process over the real command line, always ended, its log always at hand."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, NamedTuple

import pytest
from clients import Address, wait_for

from poolserver.remote import Server

HERE = Path(__file__).parent

READY = re.compile(r"^poolserver: ready on (.+) \(pid (\d+), (\d+) workers x (\d+) lanes\)$", re.MULTILINE)

READY_TIMEOUT = 30.0
"""Seconds until the ready line: Python and its imports take about 0.3 s, and more beside other tests."""

STOP_TIMEOUT = 30.0
"""Seconds until a stopped daemon has ended; a test with open connections says how long its drain may take."""

LEFTOVER_TIMEOUT = 10.0
"""Seconds in which workers whose master is gone must leave by themselves."""


class Process(NamedTuple):
    """A line of ``ps``."""

    pid: int
    name: str
    state: str
    session: int

    @classmethod
    def all(cls) -> Iterator["Process"]:
        """Every process that is alive."""
        return cls.among(path.name for path in Path("/proc").glob("[0-9]*"))

    @classmethod
    def among(cls, pids: Iterable[str]) -> Iterator["Process"]:
        """Those of them that are alive. A zombie is not: an orphaned one waits for PID 1, perhaps in vain."""
        for pid in pids:
            try:
                # "PID (NAME) STATE PPID PGRP SESSION …", where NAME may hold anything, also parentheses
                start, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            state, _, _, session = rest.split()[:4]
            if state not in "ZX":
                yield cls(int(pid), start.partition("(")[2], state, int(session))

    def describe(self) -> str:
        """The same with its title and what it waits for in the kernel, to tell why it is still there."""
        folder = Path(f"/proc/{self.pid}")
        try:
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            return f"{self} {title!r} in {(folder / 'wchan').read_text()}"
        except OSError:
            return f"{self}, gone meanwhile"


class Daemon:
    """One ``poolserver run``, in a session of its own, which its workers and successors share.

    Standard error goes to a file, so that nobody need read it for the daemon to go on. ``pid``, ``urls`` and
    ``addresses`` are those of the latest ready line: after an upgrade they are the new master's.
    """

    def __init__(self, command: Sequence[str], folder: Path, number: int, env: Mapping[str, str], cwd: Path) -> None:
        self.command = command
        self.runtime = Path(env["XDG_RUNTIME_DIR"])
        self.log_path = folder / f"daemon-{number}.log"
        self.out_path = folder / f"daemon-{number}.out"
        with self.log_path.open("ab") as log, self.out_path.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                env=env,
                cwd=cwd,
                start_new_session=True,
            )
        self.sessions = {self.process.pid}

    # What it says

    def log(self) -> str:
        """Standard error so far."""
        return self.log_path.read_text(errors="replace")

    def ready_lines(self) -> list[re.Match[str]]:
        """The ready lines so far: one, and one more for each upgrade."""
        return list(READY.finditer(self.log()))

    def wait_ready(self, count: int = 1, timeout: float = READY_TIMEOUT) -> "Daemon":
        """Wait for the ready line with that number, or fail with the log when the daemon ends before it."""
        wait_for(
            lambda: len(self.ready_lines()) >= count or (count == 1 and self.process.poll() is not None),
            timeout,
            f"ready line {count} of {self}",
        )
        if len(self.ready_lines()) < count:
            pytest.fail(f"{self} ended with {self.process.returncode} before it was ready:\n{self.log()}")
        return self

    @property
    def pid(self) -> int:
        """The master's pid, the new one's after an upgrade."""
        lines = self.ready_lines()
        return int(lines[-1][2]) if lines else self.process.pid

    @property
    def urls(self) -> list[str]:
        """The listeners, with real ports."""
        lines = self.ready_lines()
        assert lines, f"{self} is not ready"
        return lines[-1][1].split(", ")

    @property
    def addresses(self) -> list[Address]:
        """The same, as clients reach them."""
        return [Address.parse(url) for url in self.urls]

    @property
    def port(self) -> int:
        """The first listener's port."""
        return self.port_of(0)

    def port_of(self, index: int) -> int:
        """The port of the listener with that index."""
        where = self.addresses[index].where
        assert isinstance(where, tuple), f"{where} has no port"
        return where[1]

    # What it is made of

    def workers(self) -> list[int]:
        """The pids of the master's children that are alive, without new masters.

        Helper processes (an exporter) count as well.
        """
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").glob("*/children"))
            children = {pid for task in tasks for pid in task.read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            return []  # the master has just ended
        masters = {int(line[2]) for line in self.ready_lines()}
        return sorted({process.pid for process in Process.among(children)} - masters)

    def processes(self) -> list[Process]:
        """Everything alive in the daemon's sessions: masters, workers, helpers, and what handlers started."""
        return [process for process in Process.all() if process.session in self.sessions]

    def adopt(self, pid: int) -> None:
        """Let a process that left the session (``--daemon``) be ended like the others, with its session."""
        self.sessions.add(os.getsid(pid))

    # What it is told

    @property
    def control_path(self) -> Path:
        """The control socket, where it is by default."""
        (path,) = self.runtime.glob("poolserver/*.sock")
        return path

    def ask(self, command: str, number: int = 0) -> dict[str, Any]:
        """What it answers on its control socket."""
        with Server.at(self.control_path) as server:
            return server.ask(command, number, patience=30)

    def status(self) -> dict[str, Any]:
        """What ``poolserver status --json`` prints."""
        return self.ask("status")["status"]

    def open_count(self) -> int:
        """How many connections were accepted and are not over: in a lane, parked, or in between.

        What a client sees of an end comes before it is counted; when it is, the connection holds nothing any more.
        """
        totals = self.status()["totals"]
        ways = totals["served"], totals["errors"], totals["cut"]
        return totals["accepted"] - sum(ways) - sum(totals["refused"].values()) - sum(totals["timeouts"].values())

    def wait_open(self, count: int) -> None:
        """Wait until so many are open, of those that were accepted: a client that was answered was."""
        wait_for(lambda: self.open_count() == count, 20, f"{count} open connections: {self.status()['totals']}")

    def counted(self, **goal: int) -> dict[str, Any]:
        """What was counted, once it is as ``goal`` says, refusals and time-outs by their names: a client has its answer
        before the worker has counted it."""
        flat: dict[str, Any] = {}

        def is_reached() -> bool:
            totals = self.status()["totals"]
            flat.update(totals | totals["refused"] | totals["timeouts"])
            return all(flat[name] == count for name, count in goal.items())

        wait_for(is_reached, 10, f"the totals {goal}")
        return flat

    def cli(self, *words: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """``poolserver WORDS --control PATH``, run to its end."""
        return subprocess.run(
            [sys.executable, "-m", "poolserver", *words, "--control", str(self.control_path)],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def signal(self, sig: int) -> None:
        """Send ``sig`` to the master."""
        os.kill(self.pid, sig)

    def stop(self, sig: int = SIGTERM, timeout: float = STOP_TIMEOUT) -> int | None:
        """Send ``sig`` and wait for the end; the exit code.

        None for a master that an upgrade started: whose child it is by now, only PID 1 knows.
        """
        pid = self.pid
        os.kill(pid, sig)
        if pid == self.process.pid:
            return self.wait(timeout)
        wait_for(lambda: all(process.pid != pid for process in self.processes()), timeout, f"the end of {self}")
        return None

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Wait for the end of the process that was started, and return its exit code: -9 after SIGKILL.

        One that ends with 0 has waited for its workers: none may be alive then, unless another master is.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self} has not ended within {timeout} s: {self.processes()}") from None
        if code == 0 and self.pid == self.process.pid:
            assert not self.processes(), f"{self} has ended before its workers"
        return code

    # How it ends

    def __repr__(self) -> str:
        return f"daemon {self.process.pid} ({' '.join(self.command[3:])})"

    def clean_up(self) -> list[Process]:
        """End everything that is left; what should have been gone by itself and was not.

        That is whatever outlives its master. It is given time: a killed master cannot wait for its workers.
        """
        leftovers = [] if self.is_running() else self.wait_gone(LEFTOVER_TIMEOUT)
        for process in self.processes():
            print(f"to be killed: {process.describe()}")
        wait_for(self.kill_all, 10, f"the death of {self} by SIGKILL")
        self.process.wait()
        return leftovers

    def is_running(self) -> bool:
        """Whether the master is alive."""
        return any(process.pid == self.pid for process in self.processes())

    def wait_gone(self, timeout: float) -> list[Process]:
        """Wait until no process is left; those that are when ``timeout`` seconds have passed."""
        try:
            wait_for(lambda: not self.processes(), timeout, "the end of all processes")
        except AssertionError:
            pass  # they are the answer
        return self.processes()

    def kill_all(self) -> bool:
        """Send SIGKILL to all that is alive; whether nothing was. Repeat it for what was forked meanwhile."""
        left = self.processes()
        for process in left:
            try:
                os.kill(process.pid, SIGKILL)
            except ProcessLookupError:
                pass  # it has ended meanwhile
        self.process.poll()
        return not left

    def print_log(self) -> None:
        """Print what it wrote, for pytest to show with a test that failed."""
        print(f"--- {self}, exit code {self.process.poll()}")
        print(self.log(), end="")
        if output := self.out_path.read_text(errors="replace"):
            print(f"--- its standard output\n{output}", end="")


def environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment, with ``changes`` and without what would configure a daemon."""
    is_foreign = re.compile("POOLSERVER_|LISTEN_|NOTIFY_SOCKET|WATCHDOG_|RUNTIME_DIRECTORY").match
    env: dict[str, str | None] = {name: value for name, value in os.environ.items() if not is_foreign(name)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    env.update(changes)
    return {name: value for name, value in env.items() if value is not None}


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons in ``folder``, and ends them: what the ``daemon`` fixture is."""
    started: list[Daemon] = []
    scratch = contextlib.ExitStack()

    def start(
        handler: str | None,
        *options: str,
        bind: str | Sequence[str] = "tcp://127.0.0.1:0",
        workers: int | None = 2,
        threads: int | None = 4,
        env: Mapping[str, str | None] | None = None,
        cwd: Path | None = None,
        ready: bool = True,
        program: Sequence[str] = (sys.executable, "-m", "poolserver", "run"),
    ) -> Daemon:
        """Run ``poolserver run HANDLER -b BIND… -w WORKERS -t THREADS OPTIONS…`` and wait until it is ready.

        Args:
            handler: None leaves it to the configuration, as None does for ``workers`` and ``threads``.
            bind: one URL or several, or none: ``()``.
            env: variables to add; None takes one out. PYTHONPATH begins with this folder unless said here.
            cwd: the working directory, else ``folder``.
            ready: False returns at once, for one that is not to become ready: see ``wait()`` and ``log()``.
            program: what takes these options, when it is not the command line itself (a shell around it, a library
                service).
        """
        number = len(started) + 1
        urls = [bind] if isinstance(bind, str) else bind
        command = [*program]
        command += [handler] if handler is not None else []
        command += [word for url in urls for word in ("-b", url)]
        command += ["-w", str(workers)] if workers is not None else []
        command += ["-t", str(threads)] if threads is not None else []
        # Short, since a Unix socket's path has 107 bytes; its own, since the servers of a test have the same name.
        runtime = scratch.enter_context(tempfile.TemporaryDirectory(prefix="pool-"))
        variables = environment({"XDG_RUNTIME_DIR": runtime} | dict(env or {}))
        started.append(Daemon([*command, *options], folder, number, variables, cwd or folder))
        return started[-1].wait_ready() if ready else started[-1]

    try:
        yield start
    finally:
        leftovers = [(one, one.clean_up()) for one in reversed(started)]
        for one in started:
            one.print_log()
        scratch.close()
    for one, processes in leftovers:
        assert not processes, f"{one} left processes behind: {processes}"
