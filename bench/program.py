"""What the benchmarks' command lines have in common: options, sections one after another, the report, the verdict."""

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import rich.progress
from report import Row, table, write_json
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rounds import Progress
from running import BenchError, adopt_orphans

EXIT_MISSED, EXIT_FAILED = 1, 3  # 2 is argparse's
# Fewer leave differences under about 8 % to chance.
ENOUGH_ROUNDS = 15

Section = Callable[[argparse.Namespace, Path, Progress], Iterator[Row]]


def run(name: str, description: str, sections: Mapping[str, Section]) -> int:
    """Measure the chosen sections, report, and judge; the exit status.

    Args:
        name: `bench/NAME.py`, whose results go to `bench/results/NAME.json`.
        description: what `--help` says.
        sections: each has the machine to itself.
    """
    options = arguments(name, description, sections)
    began = time.monotonic()
    rows: list[Row] = []

    def work(scratch: Path, progress: Progress) -> None:
        for number, section in enumerate(chosen := options.only or list(sections)):
            told = part(progress, section, number, len(chosen))
            rows.extend(sections[section](options, scratch, told))

    if status := guarded(work):
        return status
    facts = circumstances(options, began)
    print_report(rows, facts)
    write_json(options.json, rows, facts)
    return verdict(rows, options)


def guarded(work: Callable[[Path, Progress], None]) -> int:
    """Do what is to be measured, with a scratch folder and a progress bar; 0, or the exit status of a failure."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    adopt_orphans()
    try:
        with tempfile.TemporaryDirectory(prefix="poolserver-bench-") as scratch, progress_bar() as progress:
            work(Path(scratch), progress)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("bench: interrupted; everything it started is stopped", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def part(progress: Progress, section: str, number: int, count: int, weights: Sequence[float] = ()) -> Progress:
    """What a section is told to call: how much of all is done, where sections take as long as `weights` say."""
    weights = weights or [1] * count
    before, own = sum(weights[:number]) / sum(weights), weights[number] / sum(weights)

    def told(text: str, done: float | None = None) -> None:
        progress(f"{section}: {text}", None if done is None else before + own * done)

    told("", 0)
    return told


def arguments(name: str, description: str, sections: Mapping[str, Section]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=f"bench/{name}.py",
        description=description,
        epilog="Exit status: 0 all limits kept; 1 one missed, named on the last lines; 3 a server failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", action="append", choices=list(sections), metavar="SECTION", help="run this section (may repeat)")
    add("--rounds", type=positive, default=21, metavar="N", help="counted rounds for each contestant (21)")
    add(
        "--connections",
        type=positive,
        default=1500,
        metavar="N",
        help="connections in a round (1500)",
    )
    add("--in-flight", type=positive, default=4, metavar="N", help="connections the client keeps open (4)")
    add(
        "--json",
        type=Path,
        default=Path(__file__).resolve().parent / "results" / f"{name}.json",
        metavar="FILE",
        help=f"where results go (bench/results/{name}.json)",
    )
    add("--report-only", action="store_true", help="exit 0 also when a limit is missed")
    return parser.parse_args()


def positive(text: str) -> int:
    """A count for argparse."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar with what is happening and how long it will take, on a terminal only."""
    console = Console(stderr=True)
    columns = (BarColumn(30), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=1.0)

        def told(text: str, done: float | None = None) -> None:
            bar.update(task, description=escape(text), completed=done)

        yield told


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
    print("\nratio: the laps' median; for keep-alive of requests for one CPU-second; for the rest the figure itself")
    print(", ".join(f"{name} {value}" for name, value in facts.items() if name != "at"))


def interrupted(_number: int, _frame: object) -> NoReturn:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that what was started is stopped."""
    raise KeyboardInterrupt


def verdict(rows: list[Row], options: argparse.Namespace) -> int:
    """Name every limit that was missed; the exit status."""
    if options.rounds < ENOUGH_ROUNDS:
        print(f"\nonly {options.rounds} rounds: ratios closer than about 8 % mean nothing under {ENOUGH_ROUNDS}")
    missed = [row.title for row in rows if row.is_missed]
    print(*(f"limit missed: {title}" for title in missed), sep="\n")
    return EXIT_MISSED if missed and not options.report_only else 0
