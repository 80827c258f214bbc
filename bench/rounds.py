"""Alternating rounds: the same load on each contestant in turn, and the CPU its processes spent on it."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from running import BenchError, Running, group

LOAD = Path(__file__).resolve().parent / "load.py"
# A round takes under a second; a server that answers nothing for this long has failed.
ROUND_TIMEOUT = 60.0
# After the client has its last reply the server still closes that connection: read the clocks after that.
SETTLE = 0.02


@dataclass(frozen=True)
class Load:
    """One round's work: `kind` is load.py's, `count` requests, `concurrent` connections at once."""

    kind: str
    count: int
    concurrent: int

    def put_on(self, port: int) -> None:
        """Run the client against a port.

        Raises:
            BenchError: a request failed, or the round did not end in time.
        """
        words = [self.kind, str(port), str(self.count), str(self.concurrent)]
        command = [sys.executable, "-I", "-S", str(LOAD), *words]
        try:
            done = subprocess.run(
                command, timeout=ROUND_TIMEOUT, check=False, stderr=subprocess.PIPE, text=True
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"the round did not end within {ROUND_TIMEOUT:g} s") from None
        if done.returncode:
            raise BenchError(f"a request failed: {done.stderr.strip()}")


def cpu_us_each(server: Running, load: Load) -> float:
    """Server CPU for one request of a round, in µs.

    Raises:
        BenchError: a request failed, or a process of the server came or went, taking its CPU time along.
    """
    members = group(server.pid)
    before = server.cpu_ns(members)
    try:
        load.put_on(server.port)
    except BenchError as error:
        raise BenchError(f"{server.label}: {error}\n{server.log()}") from None
    time.sleep(SETTLE)
    if group(server.pid) != members:
        raise BenchError(f"{server.label}: its processes changed during a round\n{server.log()}")
    return (server.cpu_ns(members) - before) / 1000 / load.count


def alternate(
    servers: Sequence[Running], load: Load, rounds: int, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """µs for each round by label; the order turns round each time, and a first lap warms up uncounted."""
    samples: dict[str, list[float]] = {server.label: [] for server in servers}
    for lap in range(rounds + 1):
        for server in servers if lap % 2 else reversed(servers):
            progress(f"{load.kind}: round {lap} of {rounds}: {server.label}")
            cost = cpu_us_each(server, load)
            if lap:
                samples[server.label].append(cost)
    return samples
