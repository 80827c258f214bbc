"""A machine that lets the service down: nobody reads what it prints, the disk is full, no process can be forked, there
is no /proc. It serves on, and says what it could not do."""

import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest
from clients import Served, Storm, ask, wait_for

RUN = (sys.executable, "-m", "poolserver", "run")

READ_ONLY = """
mount --bind "$XDG_RUNTIME_DIR" "$XDG_RUNTIME_DIR"
mount --rbind /tmp /tmp
mount -o remount,bind,ro /tmp
unset HOME
"""
"""But for the folder of the control socket."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount, or give root up")


class Pipe:
    """One that is read when we say so, and has room for 64 kB."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.text = ""

    def read(self) -> str:
        """What has come so far."""
        try:
            while octets := os.read(self._fd, 65536):
                self.text += octets.decode()
        except BlockingIOError:
            pass
        return self.text

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def pipe(tmp_path) -> Iterator[Pipe]:
    made = Pipe(tmp_path / "pipe")
    yield made
    made.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_handlers_print_keeps_nobody_waiting(daemon, pipe, workers):
    """Standard output and error are a pipe that nobody reads any more; what is lost is counted (R20, R23)."""
    program = ("sh", "-c", f'exec "$@" >{pipe.path} 2>&1', "sh", *RUN)
    served = daemon("trap_handlers:PrintingHandler", program=program, workers=workers, threads=2, ready=False)
    (url,) = wait_for(lambda: re.findall(r"^poolserver: ready on (\S+)", pipe.read(), re.MULTILINE), 20, "readiness")
    with Storm(Served(url), clients=4, requests=50) as storm:
        storm.join(60)
    assert storm.counts.ok == 200, storm.counts
    pipe.read()
    assert ask(Served(url), b"raise\n") == b""
    wait_for(lambda: re.search(r"ERROR .*\(\d+ earlier lines lost\)", pipe.read()), 10, "the count")
    assert served.stop() == 0


@needs_root
def test_full_disk_stops_nobody_and_is_told_when_there_is_room_again(daemon):
    """A file system of 64 kB under the log; what was written is whole (R20)."""
    with tempfile.TemporaryDirectory(prefix="pool-") as folder:
        mount = f'mount -t tmpfs -o size=64k none {folder} && exec "$@"'
        program = ("unshare", "--mount", "sh", "-c", mount, "sh", *RUN)
        log = f"{folder}/log"
        served = daemon("trap_handlers:VerboseHandler", "--set", f"log.file={log}", program=program, workers=2)
        inside = Path(f"/proc/{served.pid}/root{log}")
        with Storm(served, clients=4) as storm:
            storm.wait_for_more(20)
            wait_for(lambda: inside.stat().st_size > 60_000, 20, "the disk to be full")
            storm.wait_for_more(20)
            os.truncate(inside, 0)
            wait_for(lambda: "earlier lines lost)" in inside.read_text(), 10, "the count")
        assert storm.counts.is_lossless, storm.counts
        assert served.stop() == 0


def limit_processes(pid: int, soft: str) -> None:
    """Those of nobody's, whom the limits of his own processes obey; as many as the hard limit where none is given."""
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    soft = soft or ("unlimited" if hard == resource.RLIM_INFINITY else str(hard))
    command = ["prlimit", f"--pid={pid}", f"--nproc={soft}:"]
    subprocess.run(command, user="nobody", group="nogroup", check=True)


@needs_root
def test_fork_that_fails_is_tried_again_and_the_others_serve_on(daemon):
    """RLIMIT_NPROC, which binds nobody but root (R22)."""
    served = daemon("handlers:LineHandler", "--set", "server.user=nobody", "--set", "server.preload=true", workers=2)
    limit_processes(served.pid, "1")
    with Storm(served, clients=2) as storm:
        storm.wait_for_more(20)
        os.kill(served.workers()[0], SIGKILL)
        wait_for(lambda: "Resource temporarily unavailable" in served.log(), 10, "a fork that fails")
        storm.wait_for_more(20)
        limit_processes(served.pid, "")
        wait_for(lambda: len(served.workers()) == 2, 30, "the replacement")
        served.counted(respawns=1)
    assert storm.counts.lost <= 2, storm.counts  # both clients may have been with the one that was killed
    assert storm.counts.refused == storm.counts.timed_out == 0, storm.counts


@needs_root
@pytest.mark.parametrize("lack", ["mount -t tmpfs none /proc", READ_ONLY])
def test_machine_without_the_usual_places_serves(daemon, lack):
    """No /proc; no writable /tmp and no home (R24). Status answers too, with what there is."""
    program = ("unshare", "--mount", "sh", "-c", f'{lack}\nexec "$@"', "sh", *RUN)
    served = daemon("poolserver.examples.echo:EchoHandler", program=program, workers=2)
    assert ask(served, b"hello\n") == b"hello\n"
    assert served.status()["state"] == "serving"
    assert served.stop() == 0
