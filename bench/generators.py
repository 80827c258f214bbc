"""Load from clients that others wrote: redis-benchmark and wrk, each one process that can have a core to itself."""

import csv
import io
import re
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from rounds import Load, Outcome, run
from running import BenchError

PACKAGES = {"redis-benchmark": "redis-tools", "wrk": "wrk"}
WRK_SECONDS = 1  # the least it takes


def lacking(program: str) -> str:
    """How a client is installed that is not there; empty if it is."""
    return "" if shutil.which(program) else f"not installed: apt-get install {PACKAGES[program]}"


@dataclass(frozen=True)
class RedisBenchmark(Load):
    """`count` PINGs from `concurrent` clients, `kind` "pings" or "kept-pings". Its waits begin with the request."""

    def put_on(self, port: int) -> Outcome:
        """Run it. One request that fails ends it."""
        keeps = "1" if self.kind.startswith("kept") else "0"
        words = ["-p", str(port), "-n", str(self.count), "-c", str(self.concurrent), "-k", keeps]
        text, seconds, cpu = timed(lambda: run(["redis-benchmark", "-t", "ping_inline", "--csv", *words]))
        lines = [line for line in text.splitlines() if line.startswith('"')]
        if len(lines) != 2:
            raise BenchError(f"redis-benchmark says {text!r}")
        (row,) = csv.DictReader(io.StringIO("\n".join(lines)))
        more = {"p50_ms": float(row["p50_latency_ms"]), "p99_ms": float(row["p99_latency_ms"])}
        return Outcome(self.count, min(seconds, self.count / float(row["rps"]) or seconds), cpu, more)


@dataclass(frozen=True)
class Wrk(Load):
    """As many GETs as `concurrent` clients can do in a second, `kind` "gets" or "kept-gets"; failures are counted."""

    def put_on(self, port: int) -> Outcome:
        """Run it."""
        words = [] if self.kind.startswith("kept") else ["-H", "Connection: close"]
        words += ["-t", "1", "-c", str(self.concurrent), "-d", str(WRK_SECONDS), "--timeout", "10s", "--latency"]
        text, seconds, cpu = timed(lambda: run(["wrk", *words, f"http://127.0.0.1:{port}/"]))
        return wrk_outcome(text, seconds, cpu)


def wrk_outcome(text: str, seconds: float, cpu: float) -> Outcome:
    """What wrk says; it was begun and waited for within `seconds`, of which it may have spent some after its last."""
    found = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", text)
    if not found or not int(found[1]):
        raise BenchError(f"wrk says {text!r}")
    waits = {name: milliseconds(text, share) for name, share in (("p50_ms", "50%"), ("p99_ms", "99%"))}
    return Outcome(int(found[1]), min(seconds, in_ms(found[2], found[3]) / 1000), cpu, waits | failures(text))


def timed(work: Callable[[], str]) -> tuple[str, float, float]:
    """What a client wrote, how long it took, and its CPU, in seconds."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    text = work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return text, time.perf_counter() - began, cpu


def milliseconds(text: str, share: str) -> float:
    """One line of wrk's distribution."""
    found = re.search(rf"^\s+{share}\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    if not found:
        raise BenchError(f"wrk says {text!r}")
    return in_ms(found[1], found[2])


def in_ms(figure: str, unit: str) -> float:
    """A time as wrk writes it."""
    return float(figure) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[unit]


def failures(text: str) -> dict[str, float]:
    """wrk counts what failed only where something did."""
    socket = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    numbers = [*(socket.groups() if socket else ()), *(other.groups() if other else ())]
    return {"failed": float(sum(map(int, numbers)))}
