"""`make bench`: what a connection costs under poolserver, next to what users could run instead.

Server CPU is read in nanoseconds from each process's own clock, over short alternating rounds, because a
single round's ratio ranges from 0.7 to 1.5 on a machine that does anything else. Judge by the median
of the rounds' ratios, and look at the ratio of minima when the two differ.

Sections:
  accept      one connection, one line each way: against a bare pre-fork loop and ThreadingTCPServer
  keepalive   16 kept connections: requests for one CPU-second against the bare loop
  memory      private memory of an idle worker, above a bare fork that imported the same handler
  start       exec to the ready line with 32 workers
  respawn     SIGKILL of the only worker to a client's next answer
  idle        CPU spent on nobody (no limit)
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import lifecycle
import program
import speed
from report import Row
from rounds import Progress


def accept(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """CPU for one accepted connection."""
    return speed.accept(scratch, options.rounds, options.connections, options.in_flight, progress)


def keep_alive(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Requests for one CPU-second."""
    return speed.keep_alive(scratch, options.rounds, options.connections, progress)


SECTIONS: dict[str, program.Section] = {
    "accept": accept,
    "keepalive": keep_alive,
    "memory": lambda _, scratch, progress: lifecycle.memory(scratch, progress),
    "start": lambda _, scratch, progress: lifecycle.start(scratch, progress),
    "respawn": lambda _, scratch, progress: lifecycle.respawn(scratch, progress),
    "idle": lambda _, scratch, progress: speed.idle(scratch, progress),
}

if __name__ == "__main__":
    sys.exit(program.run("accept", __doc__, SECTIONS))
