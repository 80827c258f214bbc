"""`make bench-operations`: what it costs to watch a running server.

Sections:
  status      `status` of 128 workers x 8 lanes, from the question to the answer
  scrape      CPU for a scrape of /metrics with 8 workers x 8 lanes: the exporter's and the master's
  watched     workers' CPU for one connection while /metrics is scraped ten times a second and `top` runs, against a
              server that nobody watches
"""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import program
from contestants import POOLSERVER, poolserver
from report import Limit, Row, own_figures
from rounds import Load, Progress, alternate
from running import BenchError, Running, cpu_ns, group
from speed import ONE_LINE, Comparison, compared, figures_of_each

from poolserver.remote import Server

MANY, FEW = (128, 8), (8, 8)
QUESTIONS = 30
SCRAPES = 50
SCRAPE_INTERVAL = 0.1
METRICS = "metrics.bind=tcp://127.0.0.1:0"

ANSWER_MS = Limit(50)
SCRAPE_MS = Limit(10)
WATCHED = Limit(1.03)


def status(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """One after another, on one connection."""
    progress("status: starting")
    took = []
    asked = Running(poolserver(ONE_LINE, *MANY, control(scratch)), scratch)
    with asked, Server.at(control_path(scratch)) as server:
        for number in range(QUESTIONS):
            progress(f"status: question {number + 1} of {QUESTIONS}")
            began = time.perf_counter()
            server.ask("status", patience=10)
            took.append((time.perf_counter() - began) * 1000)
    shape = f"{MANY[0]} x {MANY[1]}"
    yield Row("status", shape, "answer, the longest", "ms", max(took), min(took), max(took), limit=ANSWER_MS)
    yield own_figures("status", shape, "answer", "ms", took)


def scrape(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """All processes of an idle server: what is not the scrapes' is a thousandth."""
    progress("scrape: starting")
    with Running(poolserver(ONE_LINE, *FEW, METRICS), scratch) as server:
        url = metrics_url(server)
        fetch(url)
        members = group(server.pid)
        costs = []
        for number in range(SCRAPES):
            progress(f"scrape: {number + 1} of {SCRAPES}")
            before = server.cpu_ns(members)
            fetch(url)
            costs.append((server.cpu_ns(members) - before) / 1e6)
    value = median(costs)
    yield Row("scrape", f"{FEW[0]} x {FEW[1]}", "CPU for each", "ms", value, min(costs), value, limit=SCRAPE_MS)


class OfWorkers(Running):
    """One whose workers alone are measured: what watching costs the others is `scrape`'s affair."""

    def cpu_ns(self, members: list[int]) -> int:
        """CPU of its workers so far."""
        return sum(cpu_ns(pid) for pid in members if b": worker" in Path(f"/proc/{pid}/cmdline").read_bytes())


def watched(options: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Both take turns; one is watched all the time."""
    with contextlib.ExitStack() as stack:
        quiet = stack.enter_context(OfWorkers(poolserver(ONE_LINE, *FEW, METRICS, label="quiet"), scratch))
        contestant = poolserver(ONE_LINE, *FEW, METRICS, control(scratch), label="watched")
        seen = stack.enter_context(OfWorkers(contestant, scratch))
        stack.enter_context(scraping(metrics_url(seen)))
        stack.enter_context(top(control_path(scratch)))
        load = Load("echoes", options.connections, options.in_flight)
        samples = alternate([quiet, seen], load, options.rounds, progress)
    yield from figures_of_each("watched", "us/conn", samples)
    yield compared("watched", Comparison(f"{FEW[0]} x {FEW[1]}", "watched", "quiet", WATCHED), samples)


def control(scratch: Path) -> str:
    """The setting for a control socket whose path is known."""
    return f"control.socket={control_path(scratch)}"


def control_path(scratch: Path) -> Path:
    return scratch / "asked.sock"


def metrics_url(server: Running) -> str:
    """Where its metrics are, from its log."""
    found = re.search(r"metrics on tcp://(\S+)", server.log())
    if found is None:
        raise BenchError(f"{server.label}: it serves no metrics\n{server.log()}")
    return f"http://{found[1]}/metrics"


def fetch(url: str) -> None:
    """One scrape."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        answer.read()


@contextlib.contextmanager
def scraping(url: str) -> Iterator[None]:
    """Ten times a second, for the block."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(SCRAPE_INTERVAL):
            fetch(url)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def top(path: Path) -> Iterator[None]:
    """`poolserver top` on a terminal, for the block."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    command = [str(POOLSERVER), "top", "--control", str(path)]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as run:
        os.close(theirs)
        reader = threading.Thread(target=drain, args=(ours,))
        reader.start()
        try:
            yield
            if run.poll() is not None:
                raise BenchError(f"top left with {run.returncode}")
        finally:
            run.terminate()
            run.wait()
            reader.join()
            os.close(ours)


def drain(fd: int) -> None:
    """Read it to its end, which a terminal that is hung up tells as an error."""
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass


SECTIONS: dict[str, program.Section] = {"status": status, "scrape": scrape, "watched": watched}

if __name__ == "__main__":
    sys.exit(program.run("operations", __doc__, SECTIONS))
