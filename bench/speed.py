"""CPU for one connection, and for one request of a kept connection, against what users could run instead."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from contestants import Contestant, bare, poolserver, threading_tcp
from report import Limit, Row, own_figures
from rounds import Load, Progress, Samples, alternate
from running import BenchError, Running, cpu_ns, group, schedstat_ns

ONE_LINE = "bench.handlers:OneLine"
EVERY_LINE = "bench.handlers:EveryLine"
PAGE = "bench.web:Page"

AGAINST_BARE = Limit(1.15)
AGAINST_THREADING = Limit(0.30)
KEPT_AGAINST_BARE = Limit(0.95, at_most=False)

# How many kept connections there are: as many as lanes in either shape, so nobody waits for a lane.
KEPT = 16
# Requests of a kept round for each connection of an accept round. A request costs a third of a connection, and
# the 16 connections themselves (with the first of each handler) are to be lost among them.
KEPT_FACTOR = 5
# Long enough for the one-second ticks of an idle server to show.
IDLE_SECONDS = 2.0
# How far the two ways of reading CPU time may differ before neither is believed: schedstat is read a moment
# later, and brings a thread on another CPU up to date only at its next tick (at most 4 ms).
CLOCK_TOLERANCE = 0.02


@dataclass(frozen=True)
class Comparison:
    """A row to be: contestant (numerator) against another, in a shape, with a limit or for information."""

    shape: str
    contestant: str
    against: str
    limit: Limit | None = None


ACCEPT = (
    Comparison("16 x 1", "poolserver 16x1", "bare 16", AGAINST_BARE),
    Comparison("16 x 1", "poolserver 16x1", "ThreadingTCPServer", AGAINST_THREADING),
    Comparison("2 x 8", "poolserver 2x8", "bare 2", AGAINST_BARE),
    Comparison("2 x 8", "poolserver 2x8", "bare 16"),
    Comparison("2 x 8", "poolserver 2x8", "ThreadingTCPServer", AGAINST_THREADING),
)
# A bare loop of 2 processes cannot hold 16 conversations, so both shapes stand against 16.
KEEP_ALIVE = (
    Comparison("16 x 1", "poolserver 16x1", "bare 16", KEPT_AGAINST_BARE),
    Comparison("2 x 8", "poolserver 2x8", "bare 16", KEPT_AGAINST_BARE),
)


def accept_contestants() -> list[Contestant]:
    """Everyone who accepts a connection for each request."""
    shapes = [poolserver(ONE_LINE, 16, 1), poolserver(ONE_LINE, 2, 8)]
    return [bare(ONE_LINE, 16), bare(ONE_LINE, 2), *shapes, threading_tcp(ONE_LINE)]


def kept_contestants(handler: str) -> list[Contestant]:
    """Everyone who can hold KEPT conversations at once."""
    return [bare(handler, KEPT), poolserver(handler, 16, 1), poolserver(handler, 2, 8)]


def accept(scratch: Path, rounds: int, connections: int, in_flight: int, progress: Progress) -> Iterator[Row]:
    """CPU for one accepted connection with one line each way."""
    load = Load("connections", connections, in_flight)
    samples = measured(accept_contestants(), load, scratch, rounds, progress)
    yield from figures_of_each("accept", "us/conn", samples)
    yield from (compared("accept", comparison, samples) for comparison in ACCEPT)


def keep_alive(scratch: Path, rounds: int, connections: int, progress: Progress) -> Iterator[Row]:
    """CPU for one request over 16 kept connections: of lines (never parked by default) and pages (parked)."""
    for kind, handler in (("lines", EVERY_LINE), ("pages", PAGE)):
        load = Load(kind, connections * KEPT_FACTOR, KEPT)
        samples = measured(kept_contestants(handler), load, scratch, rounds, progress)
        section = f"keep-alive {kind}"
        yield from figures_of_each(section, "us/req", samples)
        yield from (compared(section, comparison, samples, inverted=True) for comparison in KEEP_ALIVE)


def figures_of_each(section: str, unit: str, samples: Samples) -> Iterator[Row]:
    """What each costs by itself, and how much of the machine others had meanwhile."""
    for label, costs in samples.costs.items():
        yield own_figures(section, "", label, unit, costs)
    yield own_figures(section, "", "(other processes)", "CPUs", [samples.disturbance])


def measured(contestants: list[Contestant], load: Load, scratch: Path, rounds: int, progress: Progress) -> Samples:
    """Start them all, let them take turns, stop them all."""
    with ExitStack() as stack:
        servers = []
        for contestant in contestants:
            progress(f"{load.kind}: starting {contestant.label}")
            servers.append(stack.enter_context(Running(contestant, scratch)))
        samples = alternate(servers, load, rounds, progress)
        for server in servers:
            check_clock(server)
        return samples


def check_clock(server: Running) -> None:
    """Hold the process clock against the kernel's other account of it, where no thread has ended.

    Raises:
        BenchError: they differ, so that no figure of this run means anything.
    """
    if server.label == "ThreadingTCPServer":  # its connections' threads took their schedstat with them
        return
    members = group(server.pid)
    clock, account = sum(map(cpu_ns, members)), sum(map(schedstat_ns, members))
    if abs(clock - account) > CLOCK_TOLERANCE * account:
        raise BenchError(f"{server.label}: its clock says {clock} ns, its schedstat {account} ns")


def compared(section: str, comparison: Comparison, samples: Samples, *, inverted: bool = False) -> Row:
    """The row for a comparison: CPU against CPU or, `inverted`, requests for one CPU-second.

    Each lap is a comparison by itself, whose two loads ran within seconds; the median is taken of those. The machine's
    own speed, which on a shared one changes by a half from minute to minute, is then in both.
    """
    ours, theirs = samples.costs[comparison.contestant], samples.costs[comparison.against]
    medians = median(one / other for one, other in zip(ours, theirs, strict=True))
    minima = min(ours) / min(theirs)
    return Row(
        section=section,
        shape=comparison.shape,
        contestant=comparison.contestant,
        unit="us/req" if inverted else "us/conn",
        median=median(ours),
        minimum=min(ours),
        figure=1 / medians if inverted else medians,
        figure_of_minima=1 / minima if inverted else minima,
        against=comparison.against,
        limit=comparison.limit,
    )


def idle(scratch: Path, progress: Progress) -> Iterator[Row]:
    """CPU that a server spends on nobody: it is in every figure above, and this is how little it is."""
    for contestant in (poolserver(ONE_LINE, 16, 1), poolserver(ONE_LINE, 2, 8)):
        with Running(contestant, scratch) as server:
            progress(f"idle: {server.label}")
            members = group(server.pid)
            before = server.cpu_ns(members)
            time.sleep(IDLE_SECONDS)
            spent_ms = (server.cpu_ns(members) - before) / 1e6 / IDLE_SECONDS
            yield own_figures("idle", "", server.label, "ms CPU/s", [spent_ms])
