"""Clients that are slow or in the way, for `make bench-parking`: `slowhttptest`, and lanes that are held."""

import contextlib
import shutil
import socket
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from contestants import poolserver
from report import Limit, Row
from rounds import Progress
from running import BenchError, Running
from siege import p99

GOOD, HELD = "poolserver.examples.web:HelloHandler", "bench.web:Held"
SLOW_CLIENTS, SLOW_SECONDS = 2000, 15
BODIES, HANDLER_TIMEOUT = 200, 1
PER_SOURCE = 8
"""As docs/floods.md recommends: below the number of lanes. slowhttptest has one address, the good client another."""

GOOD_SOURCE = "127.0.0.2"
ASKED, PAUSE, PATIENCE = 300, 0.003, 30.0
FLOOR_MS = 10.0
WITHIN_MS = Limit(20.0)
ROUNDS = 15


def installed(name: str) -> str:
    """A client that `.ci/run` installs."""
    path = shutil.which(name)
    if path is None:
        raise BenchError(f"{name} is not installed: apt-get install {name}")
    return path


def ask(server: Running) -> float:
    """Milliseconds that a good client waits for its page, connection included."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE, source_address=(GOOD_SOURCE, 0)) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while octets := client.recv(65536):
            answer += octets
    if b" 200 " not in answer.partition(b"\r\n")[0]:
        raise BenchError(f"{server.label}: a good client was answered {answer[:80]!r}")
    return (time.monotonic() - began) * 1000


def asked(server: Running, *, until: subprocess.Popen[bytes] | None = None) -> list[float]:
    """The same again and again, so many times or until the attack is over."""
    waits = []
    while (until.poll() is None) if until is not None else len(waits) < ASKED:
        waits.append(ask(server))
        time.sleep(PAUSE)
    return waits


@contextlib.contextmanager
def attack(server: Running, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """slowhttptest, for as long as it was told to."""
    command = [installed("slowhttptest"), *words, "-l", str(SLOW_SECONDS), "-x", "20", "-p", "5"]
    command += ["-u", f"http://127.0.0.1:{server.port}/"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def slow(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Heads that never end hold no lane; bodies hold one until the handler deadline."""
    with Running(poolserver(GOOD, 2, 8), scratch) as server:
        progress("slow: a good client alone")
        alone = asked(server)
        progress(f"slow: {SLOW_CLIENTS} slow heads")
        count = str(SLOW_CLIENTS)
        with attack(server, "-H", "-c", count, "-r", count, "-i", "2") as attackers:
            beside = asked(server, until=attackers)
    bound = max(2 * p99(alone), FLOOR_MS)
    yield fact("slow", "good client's p99, alone", "ms", p99(alone))
    yield within(bound, f"good client's p99, {SLOW_CLIENTS} slow heads", p99(beside))
    yield from slow_bodies("no limits", [], None, scratch, progress)
    yield from slow_bodies(f"per_source = {PER_SOURCE}", [f"limits.per_source={PER_SOURCE}"], bound, scratch, progress)


def slow_bodies(
    label: str, settings: list[str], bound: float | None, scratch: Path, progress: Progress
) -> Iterator[Row]:
    """A good client beside bodies that are cut at the handler deadline: served throughout, within ``bound`` ms where
    the source of the bodies may not have every lane."""
    with Running(poolserver(HELD, 2, 8, f"timeouts.handler={HANDLER_TIMEOUT}", *settings), scratch) as server:
        progress(f"slow: {BODIES} slow bodies, {label}")
        with attack(server, "-B", "-c", str(BODIES), "-r", str(BODIES), "-i", "2", "-s", "8192") as attackers:
            beside = asked(server, until=attackers)
    what = f"{BODIES} slow bodies, {label}: good client's"
    yield fact("slow", f"{what} answers", "answers", len(beside), Limit(1, at_most=False))
    yield fact("slow", f"{what} median", "ms", median(beside))
    yield within(bound, f"{what} p99", p99(beside)) if bound else fact("slow", f"{what} p99", "ms", p99(beside))
    yield fact("slow", f"{what} slowest", "ms", max(beside))


def within(bound: float, what: str, waited: float) -> Row:
    """What a good client waited, in ms, as a part of what it may."""
    row = fact("slow", what, "ms", waited, Limit(1.0))
    return Row(**vars(row) | {"figure": waited / bound, "against": f"{bound:.1f} ms"})


def fact(section: str, what: str, unit: str, value: float, limit: Limit | None = None, shape: str = "2 x 8") -> Row:
    """One figure."""
    return Row(section, shape, what, unit, value, value, value if limit else None, limit=limit)


class Lanes:
    """Four workers of one lane each, all held; and a conversation that is parked at each."""

    def __init__(self, server: Running, stack: contextlib.ExitStack) -> None:
        self.server = server
        self.stack = stack
        self.holders: dict[bytes, socket.socket] = {}
        while len(self.holders) < 4:
            self.hold()
        self.parked = {pid: self.converse(pid) for pid in list(self.holders)}

    def connect(self) -> socket.socket:
        """One more client."""
        client = socket.create_connection(("127.0.0.1", self.server.port), PATIENCE)
        return self.stack.enter_context(client)

    def hold(self) -> bytes:
        """Hold the lane of whichever worker has time; which that is."""
        client = self.connect()
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n")
        pid = client.recv(100)
        self.holders[pid] = client
        return pid

    def release(self, pid: bytes) -> None:
        """Let its lane go."""
        self.holders.pop(pid).close()

    def converse(self, pid: bytes) -> socket.socket:
        """Have a conversation parked at a worker that is then held again."""
        self.release(pid)
        client = self.connect()
        if which(client) != pid or self.hold() != pid:
            raise BenchError(f"{self.server.label}: another than the only idle worker has answered")
        return client


def which(client: socket.socket) -> bytes:
    """The worker that answers."""
    client.sendall(b"GET /pid HTTP/1.1\r\n\r\n")
    answer = b""
    while not answer.endswith(b"\n.\n"):
        octets = client.recv(1000)
        if not octets:
            raise BenchError(f"a conversation ended after {answer!r}")
        answer += octets
    return answer.rpartition(b"\r\n")[2].removesuffix(b".\n")


def held(_: Namespace, scratch: Path, progress: Progress) -> Iterator[Row]:
    """Three lanes of four are held: what is parked at their workers is answered by the fourth."""
    waits = []
    with Running(poolserver(HELD, 4, 1), scratch) as server:
        for number in range(ROUNDS):
            progress(f"held: round {number + 1} of {ROUNDS}")
            with contextlib.ExitStack() as stack:
                lanes = Lanes(server, stack)
                idle = next(iter(lanes.holders))
                lanes.release(idle)
                which(lanes.parked.pop(idle))
                for client in lanes.parked.values():
                    began = time.monotonic()
                    answered_by = which(client)
                    waits.append((time.monotonic() - began) * 1000)
                    if answered_by != idle:
                        raise BenchError(f"{server.label}: {answered_by!r} has answered, which was held")
    yield Row("held", "4 x 1", "answered by the idle one", "ms", sorted(waits)[len(waits) // 2], min(waits))
    yield fact("held", "the slowest", "ms", max(waits), WITHIN_MS, "4 x 1")
