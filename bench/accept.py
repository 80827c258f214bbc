"""`make bench`: what a connection costs under poolserver, next to what users could run instead.

Server CPU is read in nanoseconds from each process's own clock, over short alternating rounds, because a
single round's ratio ranges from 0.7 to 1.5 on a machine that does anything else. Judge by the ratio of
medians, and look at the ratio of minima when the two differ.

Sections:
  accept      one connection, one line each way: against a bare pre-fork loop and ThreadingTCPServer
  keepalive   16 kept connections: requests for one CPU-second against the bare loop
  memory      private memory of an idle worker, above a bare fork that imported the same handler
  start       exec to the ready line with 32 workers
  respawn     SIGKILL of the only worker to a client's next answer
  idle        CPU spent on nobody (no limit)
"""

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import lifecycle
import speed
from report import Row, table, write_json
from running import BenchError, adopt_orphans

RESULTS = Path(__file__).resolve().parent / "results" / "accept.json"
SECTIONS = ("accept", "keepalive", "memory", "start", "respawn", "idle")
EXIT_MISSED, EXIT_FAILED = 1, 3  # 2 is argparse's
# Fewer leave differences under about 8 % to chance.
ENOUGH_ROUNDS = 15


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="bench/accept.py",
        description=__doc__,
        epilog="Exit status: 0 all limits kept; 1 one missed, named on the last lines; 3 a server failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", action="append", choices=SECTIONS, metavar="SECTION", help="run this section (may repeat)")
    add("--rounds", type=positive, default=21, metavar="N", help="counted rounds for each contestant (21)")
    add(
        "--connections",
        type=positive,
        default=1500,
        metavar="N",
        help="connections in a round (1500); five times as many kept requests",
    )
    add("--in-flight", type=positive, default=4, metavar="N", help="connections the client keeps open (4)")
    add(
        "--json",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="where results go (bench/results/accept.json)",
    )
    add("--report-only", action="store_true", help="exit 0 also when a limit is missed")
    return parser.parse_args()


def positive(text: str) -> int:
    """A count for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def progress_line() -> Callable[[str], None]:
    """Say what is happening, on a terminal only: one line, written over."""
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def measured_rows(options: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    """The chosen sections, one after another, each with the machine to itself."""
    progress = progress_line()
    rounds, connections = options.rounds, options.connections
    sections: dict[str, Callable[[], Iterator[Row]]] = {
        "accept": lambda: speed.accept(scratch, rounds, connections, options.in_flight, progress),
        "keepalive": lambda: speed.keep_alive(scratch, rounds, connections, progress),
        "memory": lambda: lifecycle.memory(scratch, progress),
        "start": lambda: lifecycle.start(scratch, progress),
        "respawn": lambda: lifecycle.respawn(scratch, progress),
        "idle": lambda: speed.idle(scratch, progress),
    }
    for name in options.only or SECTIONS:
        yield from sections[name]()
    progress("")


def circumstances(options: argparse.Namespace, began: float) -> dict[str, object]:
    """What the figures depend on besides the code."""
    return {
        "at": time.time(),
        "seconds": time.monotonic() - began,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "rounds": options.rounds,
        "connections": options.connections,
        "in_flight": options.in_flight,
    }


def print_report(rows: list[Row], facts: dict[str, object]) -> None:
    """The table and the circumstances it was made in."""
    print(*table(rows), sep="\n")
    print("\nratio: of medians; for keep-alive of requests for one CPU-second; for the rest the figure itself")
    print(", ".join(f"{name} {value}" for name, value in facts.items() if name != "at"))


def interrupted(_number: int, _frame: object) -> NoReturn:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that what was started is stopped."""
    raise KeyboardInterrupt


def main() -> int:
    """Measure, report, and judge."""
    options = arguments()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    adopt_orphans()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="poolserver-bench-") as scratch:
            rows = list(measured_rows(options, Path(scratch)))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started is stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    facts = circumstances(options, began)
    print_report(rows, facts)
    write_json(options.json, rows, facts)
    return verdict(rows, options)


def verdict(rows: list[Row], options: argparse.Namespace) -> int:
    """Name every limit that was missed; the exit status."""
    if options.rounds < ENOUGH_ROUNDS:
        print(f"\nonly {options.rounds} rounds: ratios closer than about 8 % mean nothing under {ENOUGH_ROUNDS}")
    missed = [row.title for row in rows if row.is_missed]
    print(*(f"limit missed: {title}" for title in missed), sep="\n")
    return EXIT_MISSED if missed and not options.report_only else 0


if __name__ == "__main__":
    sys.exit(main())
