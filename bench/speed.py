"""CPU for one request of servers that take turns, and how one compares with another."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from contestants import Contestant
from report import Limit, Row, own_figures
from rounds import Load, Progress, Samples, alternate
from running import BenchError, Running, cpu_ns, group, schedstat_ns

ONE_LINE = "bench.handlers:OneLine"

# How far the two ways of reading CPU time may differ before neither is believed: schedstat is read a moment
# later, and brings a thread on another CPU up to date only at its next tick (at most 4 ms).
CLOCK_TOLERANCE = 0.02
OF_THE_MOMENT = ("ThreadingTCPServer", "ForkingTCPServer", "ThreadingHTTPServer")


@dataclass(frozen=True)
class Comparison:
    """A row to be: contestant (numerator) against another, in a shape, with a limit or for information."""

    shape: str
    contestant: str
    against: str
    limit: Limit | None = None


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
    if server.label in OF_THE_MOMENT:  # their connections' threads, or processes, took their schedstat with them
        return
    members = group(server.pid)
    clock, account = sum(map(cpu_ns, members)), sum(map(schedstat_ns, members))
    if abs(clock - account) > CLOCK_TOLERANCE * account:
        raise BenchError(f"{server.label}: its clock says {clock} ns, its schedstat {account} ns")


def compared(section: str, comparison: Comparison, samples: Samples) -> Row:
    """The row for a comparison: CPU against CPU.

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
        unit="us/conn",
        median=median(ours),
        minimum=min(ours),
        figure=medians,
        figure_of_minima=minima,
        against=comparison.against,
        limit=comparison.limit,
    )
