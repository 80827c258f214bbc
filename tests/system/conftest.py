"""A real systemd for a test: booted as PID 1 of private namespaces, gone with the test, whatever happened in it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clients import PATIENCE, Fact, Served, Storm, ask, connect, wait_for

REPOSITORY = Path(__file__).parents[2]

BOOT_TIMEOUT = 45.0
"""Seconds until systemd runs; it takes half a second on an idle machine."""

COMMAND_TIMEOUT = 40.0
"""Seconds for one command inside; a start may take systemd's own time-out in the sandbox, 20 s."""

_CLONE_NEWNET = 0x40000000
"""setns(2)."""

_libc = ctypes.CDLL(None, use_errno=True)


class Sandbox:
    """One systemd. Units are written with ``unit``; commands run inside all its namespaces with ``run``.

    Inside, the repository is /run/repo and the Python of these tests /run/venv/bin/python. ``share`` is a folder that
    both sides see, inside as /run/share.
    """

    python = "/run/venv/bin/python"

    def __init__(self, folder: Path, *options: str) -> None:
        environ = {"TMPDIR": str(folder), "PATH": os.environ["PATH"]}
        script = Path(__file__).with_name("sandbox.sh")
        binds = [f"{REPOSITORY}:/run/repo", f"{sys.prefix}:/run/venv"]
        words = [word for bind in binds for word in ("-B", bind)]
        self.log_path = folder / "console"
        with (folder / "script").open("wb") as said:
            self.script = subprocess.Popen(
                [script, "-t", "600", "-b", "40", "-l", self.log_path, *options, *words, "--", "cat"],
                stdin=subprocess.PIPE,  # its end is the end of the sandbox
                stdout=said,
                stderr=said,
                env=environ,
            )
        found = wait_for(
            lambda: list(folder.glob("sdbox.*/init")) or self.script.poll() is not None, BOOT_TIMEOUT, "systemd"
        )
        if self.script.poll() is not None:
            pytest.fail(f"systemd did not boot ({self.script.returncode}): {(folder / 'script').read_text()}")
        self.home = found[0].parent
        self.init = int(found[0].read_text())
        self.share = self.home / "share"

    def close(self) -> None:
        self.script.stdin.close()
        self.script.wait(COMMAND_TIMEOUT)

    def run(self, *words: object, check: bool = True, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a command inside to its end; all that it printed. Unless ``check`` is false it has to succeed."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-m", "-p", "-u", "-i", "-n", "-C", "--", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            text=True,
        )
        assert not check or done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def unit(self, name: str, text: str) -> None:
        """Write a unit, and have systemd read it."""
        path = self.home / "units" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        self.run("systemctl", "daemon-reload")

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", *words, check=check)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", "-p", name, unit).strip()

    def main_pid(self, unit: str) -> int:
        """Its main process, by the pid that it has inside."""
        return int(self.show(unit, "MainPID"))

    def kill(self, pid: int, sig: signal.Signals) -> None:
        """Signal a process inside."""
        self.run("kill", f"-{int(sig)}", pid)

    def is_alive(self, pid: int) -> bool:
        """Whether a process inside lives; an unburied one does not."""
        found = self.run("ps", "-o", "stat=", "-p", pid, check=False).strip()
        return bool(found) and not found.startswith("Z")

    def enter_network(self) -> None:
        """Let this thread's new sockets be of the sandbox's network. Source: setns(2)."""
        with Path(f"/proc/{self.init}/ns/net").open() as file:
            if _libc.setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def inside(self, call: Callable[[], Fact]) -> Fact:
        """The result of ``call`` in a thread of the sandbox's network: for clients."""

        def enter_and_call() -> Fact:
            self.enter_network()
            return call()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(enter_and_call).result()

    def ask(self, url: str, line: bytes, timeout: float = PATIENCE) -> bytes:
        """What is answered to a line."""
        return self.inside(lambda: ask(Served(url), line, timeout=timeout))

    def refuses(self, url: str) -> bool:
        """Whether nobody listens there any more: systemd closes what leaves its store when it comes to that."""
        try:
            self.inside(lambda: connect(Served(url)).close())
        except ConnectionRefusedError:
            return True
        return False

    def storm(self, url: str, **options) -> Storm:
        """Clients that ask again and again, as in ``clients.Storm``."""
        return _Storm(self, Served(url), **options)

    def service_log(self) -> str:
        """Standard error of the service under test."""
        path = self.share / "service.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def log(self) -> str:
        """What systemd said."""
        return (self.home / "console.log").read_text(errors="replace")


class _Storm(Storm):
    def __init__(self, sandbox: Sandbox, target: Served, **options) -> None:
        super().__init__(target, **options)
        self.sandbox = sandbox

    def run(self, number: int) -> None:
        self.sandbox.enter_network()
        super().run(number)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A systemd of the test's own. It needs root; and then namespaces and Debian's systemd, or the test fails."""
    with booted_sandbox() as booted:
        yield booted


@pytest.fixture
def sandbox_with_journal() -> Iterator[Sandbox]:
    """The same, and systemd-journald in it."""
    with booted_sandbox("-j") as booted:
        yield booted


@contextlib.contextmanager
def booted_sandbox(*options: str) -> Iterator[Sandbox]:
    if os.geteuid() != 0:
        pytest.skip("a systemd in namespaces needs root")
    with tempfile.TemporaryDirectory(prefix="pool-systemd-") as folder:
        booted = Sandbox(Path(folder), *options)
        try:
            yield booted
        finally:
            print(booted.log())
            for log in sorted(booted.share.glob("*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')}")
            booted.close()
