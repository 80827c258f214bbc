"""Alternating rounds: the same load on each contestant in turn, and the CPU its processes spent on it."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Protocol, Self

from running import BenchError, Running

HERE = Path(__file__).resolve().parent
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

LIGHTER = 4

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
BUSY_FIELDS = (1, 2, 3, 6, 7, 8)  # user, nice, system, irq, softirq, steal of the first line: proc(5), /proc/stat


class Progress(Protocol):
    """Is told what is happening, and how much of its section is done, 0 to 1, where that is known."""

    def __call__(self, text: str, done: float | None = None) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a client saw in one round.

    Args:
        requests: that were answered.
        seconds: they took.
        client_cpu: seconds of its own CPU: one that has none left is what the round has measured.
        more: other figures of the round, by name.
    """

    requests: int
    seconds: float
    client_cpu: float
    more: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """One round's work: `kind` is load.py's, `count` requests, `concurrent` connections at once."""

    kind: str
    count: int
    concurrent: int

    def put_on(self, port: int) -> Outcome:
        """Run the client against a port.

        Raises:
            BenchError: a request failed, or the round did not end in time.
        """
        seen = self.seen("load.py", port)
        return Outcome(self.count, seen["seconds"], seen["client_cpu"])

    def lighter(self) -> Self:
        """The same for a server that needs many times as long as others."""
        return replace(self, count=max(1, self.count // LIGHTER))

    def seen(self, client: str, port: int) -> dict[str, Any]:
        """What one of the client programs beside this says."""
        words = [self.kind, str(port), str(self.count), str(self.concurrent)]
        answer: dict[str, Any] = json.loads(run([sys.executable, "-EsS", str(HERE / client), *words]))
        return answer


class Overload(Load):
    """Many more clients than lanes, whose failures are counted."""

    def lighter(self) -> Self:
        """Half as much, and everybody once: a wait in a crowd is that of everybody before."""
        return replace(self, count=max(self.concurrent, self.count // 2))

    def put_on(self, port: int) -> Outcome:
        """Run the crowd against a port."""
        seen = self.seen("overload.py", port)
        waits = seen["ms"] or [ROUND_TIMEOUT * 1000]
        failures = sum(seen["failures"].values())
        more = {"p50_ms": median(waits), "p99_ms": p99(waits), "failed": failures}
        return Outcome(len(seen["ms"]), seen["seconds"], seen["client_cpu"], more)


def p99(samples: Sequence[float]) -> float:
    """The wait that one of a hundred exceeds."""
    return quantiles(samples, n=100)[98] if len(samples) > 1 else samples[0]


def run(command: list[str]) -> str:
    """What a client program writes.

    Raises:
        BenchError: it failed, or did not end in time.
    """
    try:
        done = subprocess.run(command, timeout=ROUND_TIMEOUT, check=False, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise BenchError(f"the round did not end within {ROUND_TIMEOUT:g} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or "nothing said"
        raise BenchError(f"a request failed: {said} (the client left with {done.returncode})")
    return done.stdout


@dataclass(frozen=True)
class Turn:
    """One contestant's round: server CPU in µs for each request, and what the client saw."""

    cpu_us: float
    outcome: Outcome


@dataclass(frozen=True)
class Lap:
    """One round of everyone, by label, and what strangers used meanwhile, in CPUs."""

    turns: dict[str, Turn]
    disturbance: float


@dataclass(frozen=True)
class Samples:
    """What the counted laps gave, by label, and the median disturbance they were taken in."""

    turns: dict[str, list[Turn]]
    disturbance: float

    @property
    def costs(self) -> dict[str, list[float]]:
        """Server CPU for each request, in µs."""
        return {label: [turn.cpu_us for turn in turns] for label, turns in self.turns.items()}


def turn(server: Running, load: Load) -> Turn:
    """One round.

    Raises:
        BenchError: a request failed, or a process of the server came or went, taking its CPU time along.
    """
    load = replace(load, kind=server.load_kind or load.kind)
    load = load.lighter() if server.forks else load
    members = server.members()
    before = server.cpu_ns(members)
    try:
        outcome = load.put_on(server.port)
    except BenchError as error:
        raise BenchError(f"{server.label}: {error}\n{server.log()}") from None
    time.sleep(SETTLE)
    if server.members() != members:
        raise BenchError(f"{server.label}: its processes changed during a round\n{server.log()}")
    return Turn((server.cpu_ns(members) - before) / 1000 / max(1, outcome.requests), outcome)


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
    turns = {server.label: turn(server, load) for server in servers}
    served = sum(each.cpu_us * each.outcome.requests for each in turns.values()) / 1e6
    foreign = busy_seconds() - busy - (client_seconds() - ours) - served
    return Lap(turns, max(0.0, foreign) / (time.monotonic() - began))


def alternate(servers: Sequence[Running], load: Load, rounds: int, progress: Progress) -> Samples:
    """Laps until enough of them were undisturbed; the quietest `rounds` count.

    The order turns round each time, and a first lap warms up uncounted. Which laps count is decided by what other
    processes did, never by what the contestants cost.
    """
    progress(f"{load.kind}: a lap to warm up", 0)
    lap(servers, load)
    laps: list[Lap] = []
    while (quiet := sum(each.disturbance <= DISTURBED for each in laps)) < rounds and len(laps) < MOST_LAPS * rounds:
        done = max(quiet / rounds, len(laps) / rounds / MOST_LAPS)
        progress(f"{load.kind}: lap {len(laps) + 1}, {quiet} of {rounds} quiet ones done", done)
        laps.append(lap(servers if len(laps) % 2 else servers[::-1], load))
    counted = sorted(laps, key=lambda each: each.disturbance)[:rounds]
    return Samples(
        {server.label: [each.turns[server.label] for each in counted] for server in servers},
        median(each.disturbance for each in counted),
    )
