"""What a worker weighs, how fast a service starts, and how fast a killed worker is replaced."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from contestants import Contestant, bare, poolserver
from report import Limit, Row
from rounds import Progress
from running import BenchError, Running, children, private_bytes
from speed import ONE_LINE

PRIVATE_ABOVE_BARE = Limit(4.0)
START = Limit(2.0)
RESPAWN = Limit(100.0)

START_RUNS = 5
RESPAWN_RUNS = 15
# Between two tries of the client whose connection the killed worker took down with it: the resolution.
RETRY_INTERVAL = 0.001
ANSWER_TIMEOUT = 10.0
# A worker that is ready has imported everything; this lets its lanes reach their first wait.
IDLE_DELAY = 1.0
LINE = b"still there?\n"


def idle_private_mib(contestant: Contestant, scratch: Path) -> list[float]:
    """Private memory of each idle worker, in MiB."""
    with Running(contestant, scratch) as server:
        time.sleep(IDLE_DELAY)
        return [private_bytes(worker) / 2**20 for worker in children(server.pid)]


def memory(scratch: Path, progress: Progress) -> Iterator[Row]:
    """Private memory of an idle worker, less that of a bare fork that imported the same handler."""
    contestants = [bare(ONE_LINE, 4), poolserver(ONE_LINE, 4, 1), poolserver(ONE_LINE, 4)]
    weights = {}
    for contestant in contestants:
        progress(f"memory: {contestant.label}")
        weights[contestant.label] = idle_private_mib(contestant, scratch)
    base, *_ = weights
    for label, weight in weights.items():
        above = None if label == base else median(weight) - median(weights[base])
        yield Row(
            section="memory",
            shape="",
            contestant=label,
            unit="MiB",
            median=median(weight),
            minimum=min(weight),
            figure=above,
            figure_of_minima=None if above is None else min(weight) - min(weights[base]),
            against="" if above is None else f"{base} (difference)",
            limit=None if above is None else PRIVATE_ABOVE_BARE,
        )


def start(scratch: Path, progress: Progress) -> Iterator[Row]:
    """Seconds from exec to the ready line with 32 workers, lanes by default; the median of some runs."""
    contestant = poolserver(ONE_LINE, 32)
    seconds = []
    for run in range(START_RUNS):
        progress(f"start: {run + 1} of {START_RUNS}")
        with Running(contestant, scratch) as server:
            seconds.append(server.start_seconds)
    yield Row(
        "start",
        "32 workers",
        contestant.label,
        "s",
        median(seconds),
        min(seconds),
        median(seconds),
        limit=START,
    )


def respawn(scratch: Path, progress: Progress) -> Iterator[Row]:
    """Milliseconds from SIGKILL of the only worker to a client's next answer.

    A service of its own for each kill: what is timed is one death, not the back-off that a worker which dies
    again and again earns.
    """
    contestant = poolserver(ONE_LINE, 1, 1)
    gaps = []
    for run in range(RESPAWN_RUNS):
        progress(f"respawn: {run + 1} of {RESPAWN_RUNS}")
        with Running(contestant, scratch) as server:
            gaps.append(gap_ms(server))
    yield Row("respawn", "1 x 1", contestant.label, "ms", median(gaps), min(gaps), median(gaps), limit=RESPAWN)


def gap_ms(server: Running) -> float:
    """Kill the worker and time the gap that one insistent client sees."""
    await_answer(server)  # the worker has served: it is not killed half started
    (worker,) = children(server.pid)
    killed = time.perf_counter()
    os.kill(worker, signal.SIGKILL)
    await_answer(server)
    return (time.perf_counter() - killed) * 1000


def await_answer(server: Running) -> None:
    """Ask until answered; a refused or reset try is followed by the next.

    Raises:
        BenchError: no answer within ANSWER_TIMEOUT.
    """
    deadline = time.perf_counter() + ANSWER_TIMEOUT
    while not is_answered(server.port):
        if time.perf_counter() > deadline:
            raise BenchError(f"{server.label}: no answer within {ANSWER_TIMEOUT:g} s of SIGKILL\n{server.log()}")
        time.sleep(RETRY_INTERVAL)


def is_answered(port: int) -> bool:
    """One request, one try."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_TIMEOUT) as client:
            client.sendall(LINE)
            return client.recv(len(LINE)) == LINE
    except (ConnectionError, TimeoutError):
        return False
