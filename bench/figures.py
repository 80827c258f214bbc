"""The figures to reach, each computed from one section's result: a ratio within one run, or a figure of ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from report import Limit
from standings import Ratio, Result, Standing

HEADING = ("figure", "ours", "against", "measured", "to reach", "")


def at_least(value: float) -> Limit:
    """The other kind of limit."""
    return Limit(value, at_most=False)


@dataclass(frozen=True)
class Figure:
    """One to reach: a metric of ours divided by another contestant's, in a section."""

    what: str
    section: str
    metric: str
    ours: str
    theirs: str
    limit: Limit
    goal: str = ""


@dataclass(frozen=True)
class Judged:
    """One that was measured."""

    what: str
    ours: str
    against: str
    measured: str
    limit: str
    is_missed: bool

    @property
    def cells(self) -> list[str]:
        """The table's."""
        verdict = "missed" if self.is_missed else "reached"
        return [self.what, self.ours, self.against, self.measured, self.limit, verdict]


SHORT = "CPU, short connection"
RATE = "short connections a second"
PREFORK, OVERLOADED = "poolserver 16×1", "poolserver 32×1"
FIGURES = (
    Figure(SHORT, "short", "cpu_us", PREFORK, "bare 16", Limit(1.15), "goal 1.05"),
    Figure(SHORT, "short", "cpu_us", PREFORK, "ThreadingTCPServer", Limit(0.24)),
    Figure(SHORT, "short", "cpu_us", PREFORK, "ForkingTCPServer", Limit(0.05)),
    Figure(SHORT, "short", "cpu_us", PREFORK, "Net::Server::PreFork 16", Limit(0.40)),
    Figure(SHORT, "short", "cpu_us", PREFORK, "asyncio streams", Limit(0.72)),
    Figure(SHORT, "short", "cpu_us", PREFORK, "uvloop streams", Limit(1.25)),
    Figure(SHORT, "short", "cpu_us", "poolserver 2×8", "bare 2", Limit(1.15)),
    Figure(SHORT, "short", "cpu_us", "poolserver 2×8", "ThreadingTCPServer", Limit(0.30)),
    Figure(SHORT, "short", "cpu_us", "poolserver asyncio", "asyncio streams", Limit(1.05)),
    Figure(RATE, "redis-short", "per_second", PREFORK, "ThreadingTCPServer", at_least(3)),
    Figure(RATE, "redis-short", "per_second", PREFORK, "ForkingTCPServer", at_least(12)),
    Figure("CPU, short HTTP connection", "http-short", "cpu_us", PREFORK, "ThreadingHTTPServer", Limit(0.5)),
    Figure("CPU, kept request", "kept", "cpu_us", PREFORK, "bare 16", Limit(1.05)),
    Figure("CPU, kept request", "kept", "cpu_us", "poolserver 2×8", "bare 16", Limit(1.05)),
    Figure("CPU, kept request", "kept", "cpu_us", "poolserver asyncio", "asyncio streams", Limit(1.05)),
)
BLOCKING = ("ThreadingTCPServer", "ForkingTCPServer", "32 threads", "bare 32", "bare 32, C", "Net::Server::PreFork 32")
BLOCKING_HTTP = ("ThreadingHTTPServer", "gunicorn gthread 4×8", "waitress 1×32", "cheroot 1×32")


def judged(results: Mapping[str, Result]) -> Iterator[Judged]:
    """Those of the sections that have been measured, and whose contestants could run."""
    for figure in FIGURES:
        result = results.get(figure.section)
        if result and (ratio := result.ratio(figure.metric, figure.ours, figure.theirs)):
            yield ratio_judged(figure, ratio)
    for name, rivals in (("overload", BLOCKING), ("http-overload", BLOCKING_HTTP)):
        if name in results:
            yield from overloaded(results[name], rivals)
    yield from own(results)


def ratio_judged(figure: Figure, ratio: Ratio) -> Judged:
    """A ratio against its limit."""
    limit = f"{figure.limit}{', ' + figure.goal if figure.goal else ''}"
    missed = not figure.limit.holds(ratio.value)
    return Judged(figure.what, figure.ours, figure.theirs, str(ratio), limit, missed)


def overloaded(result: Result, rivals: tuple[str, ...]) -> Iterator[Judged]:
    """No failure, and a p99 that is no worse than the best of the blocking ones."""
    ours = result[OVERLOADED]
    failed = sum(ours.samples["failed"])
    yield Judged(f"{result.section}, failures", ours.label, "", f"{failed:g}", "<= 0", failed > 0)
    able = [result[label] for label in rivals if not result[label].cannot]
    if able:
        best = min(able, key=p99)
        ratio = Ratio.of(ours.samples["p99_ms"], best.samples["p99_ms"])
        yield Judged(
            f"{result.section}, p99", ours.label, f"{best.label}, the best", str(ratio), "<= 1", ratio.value > 1
        )


def p99(standing: Standing) -> float:
    """Median of the rounds'."""
    return standing.middle("p99_ms")


def own(results: Mapping[str, Result]) -> Iterator[Judged]:
    """Figures of ours that are no ratio."""
    if memory := results.get("memory"):
        base = median(memory["bare 16"].samples["worker_mib"])
        for label in (PREFORK, "poolserver 2×8"):
            above = median(memory[label].samples["worker_mib"]) - base
            yield Judged("private memory of a worker, above", label, "bare 16", f"{above:.1f} MiB", "<= 4", above > 4)
    if start := results.get("start"):
        seconds = start[PREFORK].middle("start_ms") / 1000
        yield Judged("start to the first answer", PREFORK, "", f"{seconds:.2f} s", "<= 2", seconds > 2)
    if respawn := results.get("respawn"):
        gap = respawn["poolserver 1×1"].middle("respawn_ms")
        yield Judged("SIGKILL to the next answer", "poolserver 1×1", "", f"{gap:.0f} ms", "<= 100", gap > 100)
