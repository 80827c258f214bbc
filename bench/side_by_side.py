"""`make bench`: poolserver beside what users could run instead, on this machine.

Contestants take turns in short rounds, because a single round's ratio ranges from 0.7 to 1.5 on a machine that does
anything else. Server CPU is read in nanoseconds from each process's own clock. What a contestant cannot do is in the
table. Results go to bench/results, a file for each section, with charts; `--only` renews a section and leaves the rest.

Sections:
  short        a connection for each request, lines: server CPU (an exact client of our own, four in flight)
  kept         16 kept connections, lines: server CPU for a request (the same client)
  redis-short  redis-benchmark, 16 clients, a connection for each PING: throughput, p50, p99
  redis-kept   redis-benchmark, 16 kept connections
  http-short   a connection for each GET: server CPU (our own client)
  http-kept    16 kept connections, GETs: server CPU (our own client)
  wrk-short    wrk, 16 clients, a connection for each GET: throughput, p50, p99
  wrk-kept     wrk, 16 kept connections
  overload     1,000 clients against 32 lanes, a connection for each line: throughput, p99, failures
  http-overload  the same of GETs
  memory       private memory of an idle worker, memory of all, CPU spent on nobody
  start        exec to the first answer
  respawn      SIGKILL of the only worker to the next answer
  held         silent connections beside which a newcomer is answered
"""

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import entrants
import figures
import program
from contestants import bare
from disciplines import Course
from entrants import Entrant
from generators import RedisBenchmark, Wrk
from rich.console import Console
from rich.table import Table
from rounds import Load, Overload, Progress
from standings import RESULTS, Result, results
from versions import versions

SHAPE = "poolserver 16×1"
OVERLOADED = "poolserver 32×1"
IN_FLIGHT, KEPT, CLIENTS, LANES = 4, 16, 1000, 32
SHORT, SHORT_PAGES, REQUESTS, PAGES, CROWD = 1500, 1000, 6000, 1500, 2000
NEEDED_FILES = 6000  # the crowd's of `held`, and some

Section = Callable[[Course], Result]


def short(course: Course) -> Result:
    """Two processes of the bare loop too: they hardly ever sleep, and set the mark for the 2×8 shape."""
    everyone = [*entrants.lines("once", course.scratch), Entrant(bare(entrants.HANDLERS["once"], 2))]
    return course.under(Load("pings", SHORT, IN_FLIGHT), everyone, SHAPE)


def line_rounds(load: Load, form: str, lanes: int = entrants.LANES, against: str = SHAPE) -> Section:
    """Everyone who answers lines."""
    return lambda course: course.under(load, entrants.lines(form, course.scratch, lanes), against)


def page_rounds(load: Load, lanes: int = entrants.LANES, against: str = SHAPE) -> Section:
    """Everyone who answers GETs."""
    return lambda course: course.under(load, entrants.pages(lanes), against)


SECTIONS: dict[str, tuple[str, float, Section]] = {
    "short": ("One short connection, a line each way", 75, short),
    "kept": ("One request of 16 kept connections", 40, line_rounds(Load("kept-pings", REQUESTS, KEPT), "every")),
    "redis-short": (
        "redis-benchmark, a connection for each PING",
        60,
        line_rounds(RedisBenchmark("pings", SHORT, KEPT), "once"),
    ),
    "redis-kept": (
        "redis-benchmark, 16 kept connections",
        45,
        line_rounds(RedisBenchmark("kept-pings", REQUESTS, KEPT), "every"),
    ),
    "http-short": ("One short HTTP connection", 50, page_rounds(Overload("gets", SHORT_PAGES, IN_FLIGHT))),
    "http-kept": ("One HTTP request of 16 kept connections", 45, page_rounds(Load("kept-gets", PAGES, KEPT))),
    "wrk-short": ("wrk, a connection for each GET", 135, page_rounds(Wrk("gets", 0, KEPT))),
    "wrk-kept": ("wrk, 16 kept connections", 135, page_rounds(Wrk("kept-gets", 0, KEPT))),
    "overload": (
        "Overload: 1,000 clients, 32 lanes, a line each",
        85,
        line_rounds(Overload("pings", CROWD, CLIENTS), "once", LANES, OVERLOADED),
    ),
    "http-overload": (
        "Overload: 1,000 clients, 32 lanes, a GET each",
        65,
        page_rounds(Overload("gets", CROWD, CLIENTS), LANES, OVERLOADED),
    ),
    "memory": (
        "Memory, and CPU spent on nobody",
        65,
        lambda on: on.one_by_one(entrants.all_kinds(on.scratch), on.memory),
    ),
    "start": ("Start", 30, lambda on: on.one_by_one(entrants.all_kinds(on.scratch), on.start)),
    "respawn": ("Respawn", 25, lambda on: on.one_by_one(entrants.one_worker(on.scratch), on.respawn)),
    "held": ("Silent connections", 75, lambda on: on.one_by_one(entrants.silent(on.scratch), on.held)),
}
"""Title, about how many seconds it takes on two cores, and what is done."""


def main() -> int:
    """Measure what is chosen, show it, and judge all that has been measured so far."""
    options = arguments()
    soft_limit()
    chosen: list[str] = options.only or list(SECTIONS)
    weights = [SECTIONS[each][1] for each in chosen]

    def work(scratch: Path, progress: Progress) -> None:
        known = versions()
        for number, name in enumerate(chosen):
            told = program.part(progress, name, number, len(chosen), weights)
            title, _, section = SECTIONS[name]
            began = time.time()
            found = section(Course(scratch, options.rounds, told))
            facts = machine(options.rounds, began) | known | found.facts
            result = Result(found.standings, found.against, name, title, facts)
            result.write(options.results)
            print_table(result)

    if status := program.guarded(work):
        return status
    if options.charts:
        import charts  # matplotlib is wanted for nothing else

        charts.draw(results(options.results), options.results)
    return verdict(options)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/side_by_side.py",
        description=__doc__,
        epilog="Exit status: 0 every figure reached; 1 one missed, named on the last lines; 3 a server failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", action="append", choices=list(SECTIONS), metavar="SECTION", help="run this section (may repeat)")
    add("--rounds", type=program.positive, default=15, metavar="N", help="counted rounds for each contestant (15)")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="where results and charts go (bench/results)")
    add("--no-charts", dest="charts", action="store_false", help="draw none; they need matplotlib")
    add("--report-only", action="store_true", help="exit 0 also when a figure is missed")
    return parser.parse_args()


def soft_limit() -> None:
    """As many descriptors as may be, here and in what is started: thousands of clients need one each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if 0 <= most < NEEDED_FILES:
        print(f"bench: {most} descriptors are the hard limit here, and `held` wants {NEEDED_FILES}", file=sys.stderr)


def machine(rounds: int, began: float) -> dict[str, object]:
    """What the figures depend on besides the code."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return {
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)) + " UTC",
        "seconds": round(time.time() - began),
        "rounds": rounds,
        "cpu": f"{os.cpu_count()} × {', '.join(sorted(models)) or platform.machine()}",
        "kernel": platform.release(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
    }


def print_table(result: Result) -> None:
    """On the terminal, as soon as it is known."""
    table = Table(title=result.title, title_justify="left")
    for number, heading in enumerate(result.heading):
        table.add_column(heading, justify="right" if number else "left")
    for cells in result.rows():
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def verdict(options: argparse.Namespace) -> int:
    """The figures to reach, from all results there are; the exit status."""
    found = list(figures.judged(results(options.results)))
    print("* the client had little left of its core: it is the limit, and the server could do more")
    if options.rounds < program.ENOUGH_ROUNDS:
        print(f"only {options.rounds} rounds: ratios closer than about 8 % mean nothing under {program.ENOUGH_ROUNDS}")
    print_figures(found)
    return program.EXIT_MISSED if any(each.is_missed for each in found) and not options.report_only else 0


def print_figures(found: Sequence[figures.Judged]) -> None:
    """Each with its limit."""
    table = Table(title="Figures to reach", title_justify="left")
    for heading in figures.HEADING:
        table.add_column(heading)
    for each in found:
        table.add_row(*each.cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    sys.exit(main())
