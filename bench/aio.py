"""`python bench/aio.py`: what a coroutine's connection costs under poolserver, next to plain `asyncio.start_server`.

The same coroutines, on asyncio's own loop in both, or on uvloop where it is installed; read and judged as in
`bench/accept.py`.

Sections:
  accept      one connection, one line each way: requests for one CPU-second
  keepalive   200 kept connections: requests for one CPU-second
"""

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import program
import speed
from contestants import Contestant, asyncio_server, poolserver
from report import Limit, Row
from rounds import Load, Progress

AGAINST_PLAIN = Limit(0.95, at_most=False)

WORKERS = (1, 2)
SEATS = 500

KEPT = 200
"""Kept connections. Two workers that share a few are woken for each request, and one that has them all is not."""


def contestants(handler: str) -> list[Contestant]:
    """Everyone, in each shape; ours on asyncio's loop, unless uvloop is there for both."""
    loops = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
    setting = "pool.event_loop="
    return [
        each
        for loop in loops
        for workers in WORKERS
        for each in (
            asyncio_server(handler, workers, loop),
            poolserver(handler, workers, SEATS, setting + loop, label=f"poolserver {workers} {loop}"),
        )
    ]


def compared(
    section: str, handler: str, load: Load, options: Namespace, scratch: Path, progress: Progress
) -> Iterator[Row]:
    """The figures of each, and ours against theirs."""
    everyone = contestants(handler)
    samples = speed.measured(everyone, load, scratch, options.rounds, progress)
    yield from speed.figures_of_each(section, "us/req", samples)
    for theirs, ours in zip(everyone[::2], everyone[1::2], strict=True):
        limit = AGAINST_PLAIN if "asyncio" in theirs.label else None  # for uvloop there is none: it is shown
        comparison = speed.Comparison("", ours.label, theirs.label, limit)
        yield speed.compared(section, comparison, samples, inverted=True)


def accept(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """A connection for each request."""
    load = Load("connections", options.connections, options.in_flight)
    return compared("accept", "bench.streams:one_line", load, options, scratch, progress)


def keep_alive(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Requests over kept connections."""
    load = Load("lines", options.connections * speed.KEPT_FACTOR, KEPT)
    return compared("keep-alive", "bench.streams:every_line", load, options, scratch, progress)


SECTIONS: dict[str, program.Section] = {"accept": accept, "keepalive": keep_alive}

if __name__ == "__main__":
    sys.exit(program.run("aio", __doc__, SECTIONS))
