"""Who competes: the same contestants everywhere, each in the shape that a discipline asks for.

What cannot run, on this machine or in this discipline, is in the table with its reason.
"""

import importlib.util
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from contestants import (
    HERE,
    Contestant,
    asyncio_server,
    bare,
    bare_c,
    cheroot,
    deadlines,
    every_limit,
    forking_tcp,
    gevent_stream,
    gunicorn,
    net_server,
    poolserver,
    sixteen_threads,
    threading_http,
    threading_tcp,
    waitress,
)
from running import BenchError

LANES = 16
SEATS, SEATS_FOR_SILENCE = 2000, 6000  # of coroutines, which need no thread each
HANDLERS = {"once": "bench.handlers:Ping", "every": "bench.handlers:Pings"}
STREAMS = {"once": "bench.streams:ping", "every": "bench.streams:pings"}
PAGE, APPLICATION = "bench.web:Page", "bench.wsgi:application"
SEVERAL = ("poolserver", "Net::Server", "gunicorn")
"""Those who have workers and replace them."""


@dataclass(frozen=True)
class Entrant:
    """A contestant, and why it cannot take part, if it cannot."""

    contestant: Contestant
    cannot: str = ""

    @property
    def label(self) -> str:
        """The row's."""
        return self.contestant.label


def lines(form: str, scratch: Path, lanes: int = LANES) -> list[Entrant]:
    """Everyone who answers a line: `form` is "once", after which the server closes, or "every"."""
    handler, coroutine = HANDLERS[form], STREAMS[form]
    others = [
        Entrant(threading_tcp(handler)),
        Entrant(forking_tcp(handler)),
        Entrant(sixteen_threads(handler, lanes)),
        Entrant(bare(handler, lanes)),
        with_compiler(form, lanes, scratch),
        Entrant(asyncio_server(coroutine, "asyncio")),
        Entrant(asyncio_server(coroutine, "uvloop"), library("uvloop")),
        Entrant(gevent_stream(handler), library("gevent")),
        Entrant(net_server(form, lanes), perl()),
    ]
    return [*ours(handler, lanes), *ours_on_loops(coroutine), *others]


def ours(handler: str, lanes: int) -> list[Entrant]:
    """poolserver in each shape with so many lanes, and with every limit and deadline on."""
    workers = lanes // 8
    limits = f"poolserver {lanes}×1, every limit"
    return [
        Entrant(poolserver(handler, lanes, 1, label=f"poolserver {lanes}×1")),
        Entrant(poolserver(handler, 1, lanes, label=f"poolserver 1×{lanes}")),
        Entrant(poolserver(handler, workers, 8, label=f"poolserver {workers}×8")),
        Entrant(poolserver(handler, lanes, 1, *every_limit(), *deadlines(), label=limits)),
    ]


def ours_on_loops(coroutine: str, seats: int = SEATS) -> list[Entrant]:
    """poolserver with coroutines, in one worker."""
    entrants = []
    for loop in ("asyncio", "uvloop"):
        contestant = poolserver(coroutine, 1, seats, f"pool.event_loop={loop}", label=f"poolserver {loop}")
        entrants.append(Entrant(contestant, library("uvloop") if loop == "uvloop" else ""))
    return entrants


def pages(lanes: int = LANES) -> list[Entrant]:
    """Everyone who answers a GET, with the same handler or an application that sends the same."""
    workers = lanes // 8
    everyone = [
        *ours(PAGE, lanes),
        Entrant(threading_http(PAGE)),
        Entrant(gunicorn(APPLICATION, workers, 8), library("gunicorn")),
        Entrant(waitress(APPLICATION, lanes), library("waitress")),
        Entrant(cheroot(APPLICATION, lanes), library("cheroot")),
    ]
    return [Entrant(replace(each.contestant, talk="gets"), each.cannot) for each in everyone]


def all_kinds(scratch: Path) -> list[Entrant]:
    """Those who answer a line and those who answer a GET, under names that differ."""
    pages_too = [Entrant(replace(each.contestant, label=f"{each.label}, HTTP"), each.cannot) for each in pages()]
    return [*lines("once", scratch), *pages_too]


ONE_PROCESS = "one process: killing it ends the service"


def one_worker(scratch: Path) -> list[Entrant]:
    """Everyone with one worker, for it to be killed."""
    handler = HANDLERS["once"]
    replaced = [
        Entrant(poolserver(handler, 1, 1, label="poolserver 1×1")),
        *ours_on_loops(STREAMS["once"]),
        Entrant(net_server("once", 1), perl()),
        Entrant(replace(gunicorn(APPLICATION, 1, 8), talk="gets"), library("gunicorn")),
    ]
    reasons = {
        "ForkingTCPServer": "a process for each connection: there is no worker to replace",
        f"bare {LANES}": "no respawn: who is killed is missing from then on",
        f"bare {LANES}, C": "no respawn: who is killed is missing from then on",
    }
    known = {each.label for each in replaced}
    others = [each for each in [*lines("once", scratch), *pages()[4:]] if not each.label.startswith(SEVERAL)]
    return [
        *replaced,
        *(Entrant(each.contestant, reasons.get(each.label, ONE_PROCESS)) for each in others if each.label not in known),
    ]


def silent(scratch: Path) -> list[Entrant]:
    """Everyone, and poolserver where connections wait off the lanes."""
    parking = ["parking.wait_for=line", "timeouts.head=600"]
    parked = poolserver(HANDLERS["once"], LANES, 1, *parking, label=f"poolserver {LANES}×1, parking")
    everyone = [each for each in all_kinds(scratch) if "limit" not in each.label]  # they are there to refuse this
    seated = {each.label: each for each in ours_on_loops(STREAMS["once"], SEATS_FOR_SILENCE)}
    first, *others = [seated.get(each.label, each) for each in everyone]
    return [first, Entrant(parked), *others]


def library(name: str) -> str:
    """How a Python library is installed that is not there; empty if it is."""
    return "" if importlib.util.find_spec(name) else f"not installed: pip install {name}"


def perl() -> str:
    """The same of Net::Server."""
    question = ["perl", "-MNet::Server::PreFork", "-e1"]
    if shutil.which("perl") and not subprocess.run(question, check=False, capture_output=True).returncode:
        return ""
    return "not installed: apt-get install libnet-server-perl"


def with_compiler(form: str, lanes: int, scratch: Path) -> Entrant:
    """The loop in C, compiled here.

    Raises:
        BenchError: the compiler does not take it.
    """
    binary = scratch / "bare"
    entrant = bare_c(binary, form, lanes)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return Entrant(entrant, "not installed: apt-get install gcc libc6-dev")
    command = [compiler, "-O2", "-Wall", "-Werror", "-o", str(binary), str(HERE / "bare.c")]
    if (
        not binary.exists()
        and (done := subprocess.run(command, check=False, capture_output=True, text=True)).returncode
    ):
        raise BenchError(f"{compiler} does not compile bench/contestants/bare.c:\n{done.stderr}")
    return Entrant(entrant)
