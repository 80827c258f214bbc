"""The servers that are compared: for each, the command that starts it.

Each is a process (with children) of its own that serves on a port of the kernel's choice and says so with one
line on standard error, in poolserver's words: `NAME: ready on tcp://127.0.0.1:PORT (pid N, …)`.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
POOLSERVER = Path(sys.executable).parent / "poolserver"
BY_SIGNAL = -15
"""How a server that does not handle SIGTERM leaves."""


@dataclass(frozen=True)
class Contestant:
    """What to start and what to call it.

    Args:
        label: the name in the table.
        command: the argument vector.
        exit_status: what `wait` must give after SIGTERM; a contestant that leaves otherwise has failed.
        load_kind: what its rounds are made of, if not of what everybody's are: one that refuses is to be refused by.
        max_files: its limit of descriptors, 0 = this process's.
        workers: processes below its own that it has when it is ready, where its ready line does not wait for them.
        talk: what it is asked to see whether it answers, as `load.py` has it.
        forks: it has a process for each connection, so that its processes come and go while it is measured.
    """

    label: str
    command: tuple[str, ...]
    exit_status: int
    load_kind: str = ""
    max_files: int = 0
    workers: int = 0
    talk: str = "pings"
    forks: bool = False


def say_ready(name: str, port: int, shape: str = "") -> None:
    """The ready line of one that is a program in Python; `shape` is what it consists of."""
    more = f", {shape}" if shape else ""
    print(f"{name}: ready on tcp://127.0.0.1:{port} (pid {os.getpid()}{more})", file=sys.stderr, flush=True)


def program(module: str, *words: str | int) -> tuple[str, ...]:
    """One of the programs here."""
    return (sys.executable, "-m", f"bench.contestants.{module}", *map(str, words))


def bare(handler: str, workers: int) -> Contestant:
    """A pre-fork loop with nothing around the handler: the least that serving in processes can cost."""
    return Contestant(f"bare {workers}", program("bare", handler, workers), exit_status=0)


def bare_park(handler: str, workers: int) -> Contestant:
    """The same that parks kept HTTP connections: the least that parking in processes can cost."""
    return Contestant(f"bare park {workers}", program("bare_park", handler, workers), exit_status=0)


def bare_c(binary: Path, form: str, workers: int) -> Contestant:
    """The same in C, with the conversation built in: `form` is once or every."""
    return Contestant(f"bare {workers}, C", (str(binary), form, str(workers)), exit_status=0)


def threading_tcp(handler: str, max_files: int = 0) -> Contestant:
    """The stdlib's thread for each connection: what users come from."""
    return Contestant("ThreadingTCPServer", program("threading_tcp", handler), BY_SIGNAL, max_files=max_files)


def forking_tcp(handler: str) -> Contestant:
    """The stdlib's process for each connection."""
    return Contestant("ForkingTCPServer", program("forking_tcp", handler), BY_SIGNAL, forks=True)


def threading_http(handler: str) -> Contestant:
    """The stdlib's thread for each HTTP connection."""
    return Contestant("ThreadingHTTPServer", program("threading_http", handler), BY_SIGNAL)


def sixteen_threads(handler: str, threads: int = 16) -> Contestant:
    """The recipe that bounds it: as many threads as connections are served at once."""
    return Contestant(f"{threads} threads", program("sixteen_threads", handler, threads), BY_SIGNAL)


def asyncio_server(handler: str, loop: str) -> Contestant:
    """asyncio's or uvloop's streams, in one process."""
    return Contestant(f"{loop} streams", program("asyncio_server", handler, 1, loop), exit_status=0)


def gevent_stream(handler: str) -> Contestant:
    """gevent's own server, in one process."""
    return Contestant("gevent StreamServer", program("gevent_stream", handler), BY_SIGNAL)


def net_server(form: str, workers: int) -> Contestant:
    """Perl's pre-fork server, with the conversation built in: `form` is once or every."""
    command = ("perl", str(HERE / "net_server.pl"), form, str(workers))
    return Contestant(f"Net::Server::PreFork {workers}", command, exit_status=0, workers=workers)


def gunicorn(application: str, workers: int, threads: int) -> Contestant:
    """gunicorn with the worker class that holds as many conversations at once as it has threads."""
    command = program("gunicorn_gthread", application, workers, threads)
    return Contestant(f"gunicorn gthread {workers}×{threads}", command, exit_status=0, workers=workers)


def waitress(application: str, threads: int) -> Contestant:
    """One process with a thread for the sockets and a pool for the application."""
    return Contestant(f"waitress 1×{threads}", program("waitress_server", application, threads), BY_SIGNAL)


def cheroot(application: str, threads: int) -> Contestant:
    """One process with a pool of threads."""
    return Contestant(f"cheroot 1×{threads}", program("cheroot_server", application, threads), BY_SIGNAL)


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


NETWORKS = 5000
"""In each of two lists: as much as an operator could paste from a block list."""


def networks(first: int) -> Iterator[str]:
    """NETWORKS that do not touch each other, in FIRST.0.0.0/8."""
    return (f"{first}.{number >> 8}.{number & 255}.0/25" for number in range(NETWORKS))


def every_limit() -> list[str]:
    """Each limit that there is, so wide that nobody here is refused."""
    return [
        "limits.per_source=2000",
        "limits.rate_per_source=1000000/s",
        "limits.burst=1000000",
        "limits.allow=0.0.0.0/0,::/0",
        f"limits.deny={','.join(networks(10))}",
        f"limits.exempt={','.join(networks(11))}",
        "limits.ban_after=1000",
    ]


def deadlines() -> list[str]:
    """Deadlines that nobody here misses."""
    return ["timeouts.first_byte=30", "timeouts.handler=60"]
