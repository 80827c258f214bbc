"""Alternating rounds: the same load on each contestant in turn, and the CPU its processes spent on it."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from running import BenchError, Running, group

LOAD = Path(__file__).resolve().parent / "load.py"
# A round takes under a second; a server that answers nothing for this long has failed.
ROUND_TIMEOUT = 60.0
# After the client has its last reply the server still closes that connection: read the clocks after that.
SETTLE = 0.02
# CPUs' worth of other people's work in a lap above which another lap is wanted. It bends the ratios and not only
# the figures: on two busy CPUs ThreadingTCPServer's threads cannot fight over the GIL, which is most of its cost
# (130 µs instead of 190).
DISTURBED = 0.15
# A lap is never wanted more often than this many times the rounds asked for: a busy machine only costs time.
MOST_LAPS = 2

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
BUSY_FIELDS = (1, 2, 3, 6, 7, 8)  # user, nice, system, irq, softirq, steal of the first line: proc(5), /proc/stat


Progress = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """One round's work: `kind` is load.py's, `count` requests, `concurrent` connections at once."""

    kind: str
    count: int
    concurrent: int

    def put_on(self, port: int) -> None:
        """Run the client against a port.

        Raises:
            BenchError: a request failed, or the round did not end in time.
        """
        words = [self.kind, str(port), str(self.count), str(self.concurrent)]
        command = [sys.executable, "-I", "-S", str(LOAD), *words]
        try:
            done = subprocess.run(command, timeout=ROUND_TIMEOUT, check=False, stderr=subprocess.PIPE, text=True)
        except subprocess.TimeoutExpired:
            raise BenchError(f"the round did not end within {ROUND_TIMEOUT:g} s") from None
        if done.returncode:
            said = done.stderr.strip() or "nothing said"
            raise BenchError(f"a request failed: {said} (the client left with {done.returncode})")


@dataclass(frozen=True)
class Lap:
    """One round of everyone: µs for one request by label, and what strangers used meanwhile, in CPUs."""

    costs: dict[str, float]
    disturbance: float


@dataclass(frozen=True)
class Samples:
    """What the counted laps gave, in µs by label, and the median disturbance they were taken in."""

    costs: dict[str, list[float]]
    disturbance: float


def cpu_us_each(server: Running, load: Load) -> float:
    """Server CPU for one request of a round, in µs.

    Raises:
        BenchError: a request failed, or a process of the server came or went, taking its CPU time along.
    """
    members = group(server.pid)
    before = server.cpu_ns(members)
    try:
        replace(load, kind=server.load_kind or load.kind).put_on(server.port)
    except BenchError as error:
        raise BenchError(f"{server.label}: {error}\n{server.log()}") from None
    time.sleep(SETTLE)
    if group(server.pid) != members:
        raise BenchError(f"{server.label}: its processes changed during a round\n{server.log()}")
    return (server.cpu_ns(members) - before) / 1000 / load.count


def busy_seconds() -> float:
    """CPU time that everything on this machine has used."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(int(fields[index]) for index in BUSY_FIELDS) / TICKS_PER_SECOND


def client_seconds() -> float:
    """CPU time of this process and of the clients it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def lap(servers: Sequence[Running], load: Load) -> Lap:
    """Everyone's turn, once."""
    began, busy, ours = time.monotonic(), busy_seconds(), client_seconds()
    costs = {server.label: cpu_us_each(server, load) for server in servers}
    served = sum(costs.values()) * load.count / 1e6
    foreign = busy_seconds() - busy - (client_seconds() - ours) - served
    return Lap(costs, max(0.0, foreign) / (time.monotonic() - began))


def alternate(servers: Sequence[Running], load: Load, rounds: int, progress: Progress) -> Samples:
    """Laps until enough of them were undisturbed; the quietest `rounds` count.

    The order turns round each time, and a first lap warms up uncounted. Which laps count is decided by what other
    processes did, never by what the contestants cost.
    """
    lap(servers, load)
    laps: list[Lap] = []
    while (quiet := sum(each.disturbance <= DISTURBED for each in laps)) < rounds and len(laps) < MOST_LAPS * rounds:
        progress(f"{load.kind}: lap {len(laps) + 1}, {quiet} of {rounds} quiet ones done")
        laps.append(lap(servers if len(laps) % 2 else servers[::-1], load))
    counted = sorted(laps, key=lambda each: each.disturbance)[:rounds]
    return Samples(
        {server.label: [each.costs[server.label] for each in counted] for server in servers},
        median(each.disturbance for each in counted),
    )
