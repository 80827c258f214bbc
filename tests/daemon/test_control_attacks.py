"""Attacks on the control socket change nothing for the service, nor for its operator."""

import contextlib
import os
import random
import resource
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import measures
import pytest
from clients import Storm, wait_for

from poolserver import control

PATIENCE = 10.0
SEED = 39
LONGEST_TURN = 0.05
"""Seconds. Seen: 0.007, of the processor."""
BLOCKED = 1.0
"""Seconds on the clock that it would take at least to wait for a client, which no turn does; a shared machine may stand
still for tenths of one."""


def connected(served) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.fspath(served.control_path))  # waits while the backlog is full
    sock.settimeout(PATIENCE)
    return sock


def send(sock: socket.socket, octets: bytes) -> None:
    """As much of it as is taken: the server may hang up in the middle."""
    with contextlib.suppress(OSError):
        sock.sendall(octets)


def idle_by_the_hundred(served, sockets: contextlib.ExitStack) -> None:
    """They say nothing, and stay."""
    for _ in range(300):
        sockets.enter_context(connected(served))


def half_a_line(served, sockets: contextlib.ExitStack) -> None:
    """It never comes to its end."""
    for _ in range(100):
        send(sockets.enter_context(connected(served)), b'{"command": "sta')


def ten_megabytes(served, _sockets: contextlib.ExitStack) -> None:
    """On one line."""
    for _ in range(3):
        with connected(served) as sock:
            send(sock, b"x" * 10_000_000)


def binary(served, _sockets: contextlib.ExitStack) -> None:
    """Random bytes, lines among them."""
    rng = random.Random(SEED)
    for _ in range(300):
        with connected(served) as sock:
            send(sock, rng.randbytes(rng.randrange(5000)))


def never_read(served, sockets: contextlib.ExitStack) -> None:
    """They ask for much, again and again, and take nothing."""
    for _ in range(50):
        sock = sockets.enter_context(connected(served))
        sock.setblocking(False)
        send(sock, b'{"command":"status"}\n' * 100)


def connect_and_leave(served, _sockets: contextlib.ExitStack) -> None:
    """A thousand times."""
    for number in range(1000):
        with connected(served) as sock:
            if number % 2:
                send(sock, b'{"command":"status"}\n')


ATTACKS = [idle_by_the_hundred, half_a_line, ten_megabytes, binary, never_read, connect_and_leave]


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attack_loses_no_client_and_locks_out_no_operator(
    daemon, tmp_path: Path, sockets: contextlib.ExitStack, attack: Callable[..., None]
) -> None:
    """32 clients are served meanwhile, the operator is answered in between, and afterwards nothing is held (R39).

    No turn of the master's loop takes long, in which workers that die would stay dead.
    """
    cpu, clock = attacked(daemon, tmp_path / "turns", sockets, attack, times=1)
    assert cpu < LONGEST_TURN
    assert clock < BLOCKED


@pytest.mark.soak
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_long_attack_makes_no_long_turn(
    daemon, tmp_path: Path, sockets: contextlib.ExitStack, attack: Callable[..., None]
) -> None:
    """Twenty times as much. On the clock, too, unless the machine itself stands still three times."""
    seen = []
    while len(seen) < 3:
        seen.append(attacked(daemon, tmp_path / "turns", sockets, attack, times=20)[1])
        if seen[-1] < LONGEST_TURN:
            return
    pytest.fail(f"turns of {seen} s")


def attacked(
    daemon, turns: Path, sockets: contextlib.ExitStack, attack: Callable[..., None], times: int
) -> tuple[float, float]:
    """The master's longest turn, in seconds of the processor and on the clock."""
    program = (sys.executable, Path(__file__).with_name("turns.py"), "run")
    served = daemon("handlers:LineHandler", workers=2, threads=4, program=program, env={"TURNS": str(turns)})
    quiet = measures.descriptors(served.pid)
    most = quiet + control.MAX_CLIENTS
    with Storm(served, clients=32) as storm:
        for _ in range(times):
            storm.wait_for_more(200)
            attack(served, sockets)
            assert served.status()["state"] == "serving"
            wait_for(lambda: measures.descriptors(served.pid) <= most, 10, "no more clients to be held than may be")
            storm.wait_for_more(200)
            sockets.close()
    assert storm.counts.is_lossless, storm.counts
    wait_for(lambda: measures.descriptors(served.pid) <= quiet, 30, "the master to hold nothing of it")
    assert served.status()["totals"]["respawns"] == 0
    assert served.stop() == 0
    cpu, clock = map(float, turns.read_text().split())
    return cpu, clock


def test_no_descriptor_is_left_and_the_loop_does_not_spin(daemon) -> None:
    """The master at its limit of descriptors: who came waits in the backlog, and is answered later."""
    served = daemon("handlers:LineHandler", workers=1, threads=1)
    path = served.control_path
    used = max(int(fd) for fd in os.listdir(f"/proc/{served.pid}/fd")) + 1  # noqa: PTH208 - names alone
    resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (used, 1024))
    with connected(served) as first, connected(served) as second:
        cpu = measures.rate(lambda: measures.cpu_seconds([served.pid]), 1.0)
        assert cpu < 0.5, "the master spins"
        resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        for sock in (first, second):
            sock.sendall(b'{"command":"who"}\n')
            assert sock.recv(4096)
    assert path.is_socket()
