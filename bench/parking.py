"""`make bench-parking`: what connections that wait cost, and what lanes do meanwhile.

Sections:
  crowd     a newcomer's wait beside 10,000 silent clients from 200 sources; memory and CPU of each that waits
  wait      CPU for one short connection whose client speaks at once, with parking.wait_for = data against none
  slow      slowhttptest: 2,000 slow heads against the HTTP example, 200 slow bodies; a good client's wait
  held      4 workers of one lane, three held: what is parked there is answered by the fourth
  kept      500 kept HTTP connections on 16 lanes (wrk): requests a second and who is served how often, against 16
            connections whose handler keeps its lane, as all did before parking, the stock server, and a bare loop
            that parks
"""

import contextlib
import re
import resource
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import program
import siege
from contestants import Contestant, bare_park, poolserver, threading_tcp
from report import Limit, Row, own_figures
from rounds import Load, Progress
from running import BenchError, Running, children, group, private_bytes
from slow import held, installed, slow
from speed import ONE_LINE, Comparison, compared, figures_of_each, measured

SHAPE = (2, 8)
CROWD, SOURCES = 10_000, 200
CROWD_TIMEOUT = 60.0
IDLE_SECONDS = 10.0

NEWCOMER = Limit(1.0)
"""Of twice what a newcomer waits without the crowd, or of 10 ms, whichever is more."""
FLOOR_MS = 10.0
KILOBYTES = Limit(1.5)
IDLE_PERCENT = Limit(0.5)
WAITING = Limit(1.08)

KEPT, LANES = 500, 16
WRK_SECONDS = 2
# A round of wrk takes as long as it is told to; more of them cost only time.
MOST_WRK_ROUNDS = 9
THROUGHPUT = Limit(0.9, at_most=False)
FAIRNESS = Limit(0.25, at_most=False)
PAGE, OWN_LOOP = "bench.web:CountedPage", "bench.web:CountedOwnLoop"
PORTS = 65536


def crowd(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """One server, before and while they wait."""
    raise_descriptors()
    settings = ["parking.wait_for=line", f"parking.max_parked={2 * CROWD}", "timeouts.head=600"]
    with Running(poolserver(ONE_LINE, *SHAPE, *settings), scratch) as server:
        progress("crowd: a newcomer alone")
        alone = siege.asked(server, siege.SHORT_PAUSE)["ms"]
        workers = children(server.pid)
        weight = sum(map(private_bytes, workers))
        progress(f"crowd: {CROWD} silent clients come")
        with silent_clients(server, workers):
            beside = siege.asked(server, siege.SHORT_PAUSE)["ms"]
            kilobytes = (sum(map(private_bytes, workers)) - weight) / 1000 / CROWD
            progress("crowd: idle")
            members = group(server.pid)
            before = server.cpu_ns(members)
            time.sleep(IDLE_SECONDS)
            percent = (server.cpu_ns(members) - before) / 1e7 / IDLE_SECONDS
    bound = max(2 * siege.p99(alone), FLOOR_MS)
    yield fact("newcomer's p99, alone", "ms", siege.p99(alone))
    yield fact("newcomer's p99", "ms", siege.p99(beside), siege.p99(beside) / bound, f"{bound:.1f} ms", NEWCOMER)
    yield fact("private memory of each", "kB", kilobytes, kilobytes, limit=KILOBYTES)
    yield fact("CPU while all are idle", "% of a core", percent, percent, limit=IDLE_PERCENT)


def fact(
    what: str, unit: str, value: float, figure: float | None = None, against: str = "", limit: Limit | None = None
) -> Row:
    """One figure of the crowd's."""
    shape = f"{SHAPE[0]} x {SHAPE[1]}"
    return Row("crowd", shape, what, unit, value, value, figure, against=against, limit=limit)


def raise_descriptors() -> None:
    """For this process, whose the clients are, and for the servers that it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < CROWD + 100:
        raise BenchError(f"{CROWD} clients need as many descriptors, and {most} is the hard limit here")


@contextlib.contextmanager
def silent_clients(server: Running, workers: Sequence[int]) -> Iterator[None]:
    """All of them, once the workers have them."""
    with contextlib.ExitStack() as stack:
        for number in range(CROWD):
            source = f"127.1.0.{number % SOURCES + 1}"
            address = ("127.0.0.1", server.port)
            stack.enter_context(socket.create_connection(address, CROWD_TIMEOUT, source_address=(source, 0)))
        deadline = time.monotonic() + CROWD_TIMEOUT
        while sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in workers) < CROWD:
            if time.monotonic() > deadline:
                raise BenchError(f"{server.label}: it does not have {CROWD} connections\n{server.log()}")
            time.sleep(0.1)
        yield


def wait(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Everything else alike; the client speaks as soon as it is connected."""
    shapes = ((16, 1), (2, 8))
    contestants = [
        poolserver(ONE_LINE, *shape, f"parking.wait_for={wait}", label=label(shape, wait))
        for shape in shapes
        for wait in ("none", "data", "line")
    ]
    load = Load("echoes", options.connections, options.in_flight)
    samples = measured(contestants, load, scratch, options.rounds, progress)
    yield from figures_of_each("wait", "us/conn", samples)
    for shape in shapes:
        name = f"{shape[0]} x {shape[1]}"
        for wait, limit in (("data", WAITING), ("line", None)):
            yield compared("wait", Comparison(name, label(shape, wait), label(shape, "none"), limit), samples)


def label(shape: tuple[int, int], wait: str) -> str:
    """A contestant's."""
    return f"{shape[0]}x{shape[1]}, {wait}"


@dataclass(frozen=True)
class Side:
    """A server under wrk, with so many connections; `counts` is where its handler counts requests by client port."""

    server: Running
    connections: int
    counts: Path

    @property
    def label(self) -> str:
        """The row's."""
        return f"{self.server.label}, {self.connections}"

    def reset(self) -> None:
        """Count from nothing, once what the round before has left behind is answered."""
        before = b""
        while before != (before := self.counts.read_bytes()):
            time.sleep(0.2)
        with self.counts.open("r+b") as file:  # never shorter: the handlers have it mapped
            file.write(bytes(8 * PORTS))

    def run(self) -> tuple[float, list[int]]:
        """Requests a second, and those of each connection."""
        self.reset()
        url, seconds = f"http://127.0.0.1:{self.server.port}/", str(WRK_SECONDS)
        command = [installed("wrk"), "-t", "2", "-c", str(self.connections), "-d", seconds, "--timeout", "30s", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 + WRK_SECONDS)
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        if done.returncode or not found:
            raise BenchError(f"{self.label}: wrk left with {done.returncode}\n{done.stdout}{done.stderr}")
        by_port = filter(None, memoryview(self.counts.read_bytes()).cast("Q").tolist())
        return float(found[1]), sorted(by_port)


def kept(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Rounds of wrk on each in turn. The figure that all are held against: 16 connections, each with its lane."""
    rounds = min(options.rounds, MOST_WRK_ROUNDS)
    with contextlib.ExitStack() as stack:
        sides = list(started(stack, scratch, progress))
        rates: dict[str, list[float]] = {side.label: [] for side in sides}
        served: dict[str, list[list[int]]] = {side.label: [] for side in sides}
        for number in range(rounds):
            for side in sides if number % 2 else sides[::-1]:
                progress(f"kept: round {number + 1} of {rounds}: {side.label}")
                rate, by_port = side.run()
                rates[side.label].append(rate)
                served[side.label].append(by_port)
    base = sides[0].label
    for name, samples in rates.items():
        yield from throughput(name, samples, base, rates[base])
        yield from fairness(name, served[name])


def started(stack: contextlib.ExitStack, scratch: Path, progress: Progress) -> Iterator[Side]:
    """Each with a file of its own to count in, which its environment names."""
    own_loop = poolserver(OWN_LOOP, 16, 1, label="own loop 16x1")
    contestants = [
        (own_loop, LANES),
        (own_loop, KEPT),
        (threading_tcp(OWN_LOOP), KEPT),
        (bare_park(PAGE, 16), KEPT),
        (poolserver(PAGE, 16, 1, label="parking 16x1"), LANES),
        (poolserver(PAGE, 16, 1, label="parking 16x1"), KEPT),
        (poolserver(PAGE, 2, 8, label="parking 2x8"), KEPT),
    ]
    running: dict[str, Side] = {}
    for contestant, connections in contestants:
        if contestant.label not in running:
            progress(f"kept: starting {contestant.label}")
            counts = scratch / f"{len(running)}.counts"
            counts.write_bytes(bytes(8 * PORTS))
            command = ("/usr/bin/env", f"COUNTS={counts}", *contestant.command)
            told = Contestant(contestant.label, command, contestant.exit_status)
            running[contestant.label] = Side(stack.enter_context(Running(told, scratch)), connections, counts)
        side = running[contestant.label]
        yield Side(side.server, connections, side.counts)


def throughput(name: str, samples: list[float], base: str, against: list[float]) -> Iterator[Row]:
    """Requests a second; the limit is for what is parked."""
    if name == base:
        yield own_figures("kept", "", name, "req/s", samples)
        return
    limit = THROUGHPUT if name == f"parking 16x1, {KEPT}" else None
    ratio, best = median(samples) / median(against), max(samples) / max(against)
    yield Row("kept", "", name, "req/s", median(samples), min(samples), ratio, best, base, limit)


def fairness(name: str, served: list[list[int]]) -> Iterator[Row]:
    """How many connections were served at all, and the least-served's part of the mean, of the worst round."""
    is_judged = name.startswith("parking") and name.endswith(f", {KEPT}")
    count = min(map(len, served))
    limit = Limit(int(name.rpartition(" ")[2]), at_most=False) if is_judged else None
    yield Row("kept", "", f"{name}: served at all", "connections", count, count, count, limit=limit)
    least = [each[0] / mean(each) for each in served]
    limit = FAIRNESS if is_judged else None
    yield Row("kept", "", f"{name}: least of mean", "", median(least), min(least), min(least), limit=limit)


SECTIONS: dict[str, program.Section] = {"crowd": crowd, "wait": wait, "slow": slow, "held": held, "kept": kept}

if __name__ == "__main__":
    sys.exit(program.run("parking", __doc__, SECTIONS))
