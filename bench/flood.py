"""`make bench-flood`: what floods do to poolserver and to what users could run instead, and what limits cost.

Costs are compared as `make bench` does, in short alternating rounds. Attacks are run against each server in turn, from
a process of their own; the limits on what a good client sees are relative to what it sees without the attack.

Sections:
  cost      CPU for one connection with every limit on, and for one that is refused, against none on
  flood     5,000 connections from one source
  resets    a source that connects and resets
  trickle   200 clients that send a byte a second
  silence   100 clients from 100 sources that send nothing
  rate      500 short connections a second
  kills     workers killed under 20 sources: nothing stays counted
  line      200 MB without a line's end
"""

import socket
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import program
import siege
from contestants import Contestant, deadlines, every_limit, poolserver
from report import Limit, Row
from rounds import Load, Progress, alternate
from running import Running
from speed import ONE_LINE, Comparison, check_clock, compared, figures_of_each

EVERY_LIMIT = Limit(1.10)
REFUSAL = Limit(0.60)
SHAPE = (16, 1)  # threads take turns at the interpreter's lock in ways that differ more than limits cost
ANSWER_TIMEOUT = 10.0

NOTHING = "no limits"
COMPARISONS = (
    Comparison("16 x 1", "every limit", NOTHING, EVERY_LIMIT),
    Comparison("16 x 1", "limits, deadlines", NOTHING),
    Comparison("16 x 1", "refused: denied", NOTHING, REFUSAL),
    Comparison("16 x 1", "refused: rate", NOTHING, REFUSAL),
    Comparison("16 x 1", "refused: per_source", NOTHING, REFUSAL),
)


def contestants() -> list[Contestant]:
    """The same service, with limits that refuse nobody; and services that refuse everybody, so that it matters not what
    they would serve, but for the one who is held."""
    limits = every_limit()
    refusing = {
        "refused: denied": "limits.deny=127.0.0.0/8",
        "refused: rate": "limits.rate_per_source=1/h",
        "refused: per_source": "limits.per_source=1",
    }
    for_long = "timeouts.idle=0"  # the one who is held is silent
    return [
        poolserver(ONE_LINE, *SHAPE, label=NOTHING),
        poolserver(ONE_LINE, *SHAPE, *limits, label="every limit"),
        poolserver(ONE_LINE, *SHAPE, *limits, *deadlines(), label="limits, deadlines"),
        *(
            poolserver(siege.ECHO, *SHAPE, setting, for_long, label=label, load_kind="refusals")
            for label, setting in refusing.items()
        ),
    ]


def cost(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """CPU for one connection with one line each way, or refused."""
    load = Load("echoes", options.connections, options.in_flight)
    with ExitStack() as stack:
        servers = []
        for contestant in contestants():
            progress(f"cost: starting {contestant.label}")
            servers.append(stack.enter_context(Running(contestant, scratch)))
            if contestant.load_kind == "refusals":
                stack.enter_context(occupied(servers[-1]))
        samples = alternate(servers, load, options.rounds, progress)
        for server in servers:
            check_clock(server)
    yield from figures_of_each("cost", "us/conn", samples)
    yield from (compared("cost", comparison, samples) for comparison in COMPARISONS)


def occupied(server: Running) -> socket.socket:
    """The one connection that a limit allows, answered and held, if any is: from now on others are refused."""
    held = socket.socket()
    held.settimeout(ANSWER_TIMEOUT)
    try:
        held.connect(("127.0.0.1", server.port))
        held.sendall(b"here\n")
        held.recv(1)
    except ConnectionError:
        pass  # denied, like all
    return held


SECTIONS: dict[str, program.Section] = {
    "cost": cost,
    "flood": siege.flood,
    "resets": siege.resets,
    "trickle": siege.trickle,
    "silence": siege.silence,
    "rate": siege.rate,
    "kills": siege.kills,
    "line": siege.line,
}

if __name__ == "__main__":
    sys.exit(program.run("flood", __doc__, SECTIONS))
