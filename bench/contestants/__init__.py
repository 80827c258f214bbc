"""The servers that are compared: for each, the command that starts it.

Each is a process (with children) of its own that serves on a port of the kernel's choice and says so with one
line on standard error, in poolserver's words: `NAME: ready on tcp://127.0.0.1:PORT (pid N, …)`.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

POOLSERVER = Path(sys.executable).parent / "poolserver"


@dataclass(frozen=True)
class Contestant:
    """What to start and what to call it.

    Args:
        label: the name in the table.
        command: the argument vector.
        exit_status: what `wait` must give after SIGTERM; a contestant that leaves otherwise has failed.
        load_kind: what its rounds are made of, if not of what everybody's are: one that refuses is to be refused by.
        max_files: its limit of descriptors, 0 = this process's.
    """

    label: str
    command: tuple[str, ...]
    exit_status: int
    load_kind: str = ""
    max_files: int = 0


def bare(handler: str, workers: int) -> Contestant:
    """A pre-fork loop with nothing around the handler: the least that serving in processes can cost."""
    command = (sys.executable, "-m", "bench.contestants.bare", handler, str(workers))
    return Contestant(f"bare {workers}", command, exit_status=0)


def threading_tcp(handler: str, max_files: int = 0) -> Contestant:
    """The stdlib's thread for each connection: what users come from."""
    command = (sys.executable, "-m", "bench.contestants.threading_tcp", handler)
    return Contestant("ThreadingTCPServer", command, exit_status=-15, max_files=max_files)


def asyncio_server(handler: str, workers: int, loop: str) -> Contestant:
    """Plain asyncio, or uvloop, in as many processes."""
    command = (sys.executable, "-m", "bench.contestants.asyncio_server", handler, str(workers), loop)
    return Contestant(f"plain {loop} {workers}", command, exit_status=0)


def sixteen_threads(handler: str) -> Contestant:
    """The recipe that bounds it: as many threads as connections are served at once."""
    command = (sys.executable, "-m", "bench.contestants.sixteen_threads", handler)
    return Contestant("16 threads", command, exit_status=-15)


def poolserver(
    handler: str, workers: int, lanes: int | None = None, *settings: str, label: str = "", load_kind: str = ""
) -> Contestant:
    """poolserver over its command line, all defaults on but for `settings`; `lanes=None` leaves their number to it too.

    A name of its own, because the control socket is called after it and several services run side by side.
    """
    label = label or f"poolserver {workers}x{lanes or 'default'}"
    command = [str(POOLSERVER), "run", handler, "-b", "tcp://127.0.0.1:0", "-w", str(workers)]
    command += ["-t", str(lanes)] if lanes else []
    name = re.sub("[^0-9A-Za-z]+", "-", f"bench-{os.getpid()}-{label}")
    for setting in (f"server.name={name}", *settings):
        command += ["--set", setting]
    return Contestant(label, tuple(command), exit_status=0, load_kind=load_kind)
