"""Many open connections on event loops, while workers are killed and replaced: only what was in dead hands is lost."""

import asyncio
import os
import random
import threading
from signal import SIGHUP, SIGKILL
from typing import Self

import proc
import pytest
from clients import PATIENCE, Counts, verdict, wait_for

from poolserver.shortage import raise_limit

PAUSE = 0.1
"""Seconds between two requests of a connection: what makes it an open one, and not a load."""


class Fleet:
    """Clients with a connection each, which they keep, and open again when its end was announced or its worker died.

    ``open``: how often each was answered, on all of its connections; ``lost_by``: in whose hands requests were lost;
    ``unheard``: connections that were accepted, and lost before the worker had said its pid.
    """

    def __init__(self, served, size: int) -> None:
        raise_limit()
        self.address = served.addresses[0].where
        self.size = size
        self.counts = Counts()
        self.open: dict[int, int] = {}
        self.lost_by: list[int] = []
        self.unheard = 0
        self.is_over = False
        self.thread = threading.Thread(target=lambda: asyncio.run(self.sail()), daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self.thread.join(5 * PATIENCE)
        assert not self.thread.is_alive()

    def wait_for_all(self) -> None:
        """Until each has asked something more on its connection."""
        before = dict(self.open)
        wait_for(
            lambda: len(self.open) == self.size and all(self.open[each] > before.get(each, 0) for each in self.open),
            4 * PATIENCE,
            f"an answer for each of {self.size}; by now {len(self.open)}, {self.counts}",
        )

    async def sail(self) -> None:
        await asyncio.gather(*(self.go(number) for number in range(self.size)))

    async def go(self, number: int) -> None:
        """One client, to the end."""
        while not self.is_over:
            pid = b""
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection(*self.address)
                    pid = await reader.readline()
                try:
                    await self.converse(number, reader, writer)
                finally:
                    writer.close()
            except (OSError, EOFError) as problem:
                self.note(problem, pid)

    async def converse(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self.is_over:
            answered = self.open.get(number, 0)
            line = b"client %d request %d\n" % (number, answered)
            writer.write(line)
            async with asyncio.timeout(PATIENCE):
                answer = await reader.readuntil(b"\n")
            assert answer in (line, b"bye " + line)
            self.counts.ok += 1
            self.open[number] = answered + 1
            if answer != line:
                break
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))  # the pace of an open connection

    def note(self, problem: Exception, pid: bytes) -> None:
        word = verdict(problem) if isinstance(problem, OSError) else "truncated"
        self.counts.note(word)
        if word in ("reset", "truncated"):
            self.lost_by += [int(pid)] if pid else []
            self.unheard += not pid


def kill_and_reload(daemon, seats: int, kills: int, reloads: int, loop: str) -> None:
    """Two workers, all their seats taken."""
    served = daemon(
        "aio_handlers:steady",
        "--set",
        f"pool.event_loop={loop}",
        "--set",
        "socket.backlog=4096",
        workers=2,
        threads=seats,
    )
    descriptors = len(proc.files(served.pid))
    killed: list[int] = []
    with Fleet(served, 2 * seats) as fleet:
        fleet.wait_for_all()
        assert served.status()["pool"]["busy"] == 2 * seats
        for _ in range(kills):
            killed.append(random.choice(served.workers()))
            os.kill(killed[-1], SIGKILL)
            wait_for(lambda: killed[-1] not in served.workers() and len(served.workers()) == 2, PATIENCE, "two workers")
            fleet.wait_for_all()
        lost = fleet.counts.lost
        for number in range(reloads):
            served.signal(SIGHUP)
            wait_for(
                lambda done=number + 1: served.status()["totals"]["reloads"] == done,
                4 * PATIENCE,
                "the end of a reload",
            )
            fleet.wait_for_all()
        assert fleet.counts.lost == lost, f"lost by reloads: {fleet.counts}"
    counts = fleet.counts
    print(f"{kills} kills, {reloads} reloads: {counts}, {fleet.unheard} unheard")
    assert set(fleet.lost_by) <= set(killed), "lost in the hands of a worker that was not killed"
    assert counts.refused == counts.timed_out == counts.other == 0, counts
    assert counts.lost == len(fleet.lost_by) + fleet.unheard <= seats * kills
    wait_for(lambda: len(proc.files(served.pid)) <= descriptors, PATIENCE, "no more descriptors than before")
    assert served.stop() == 0
    assert "Traceback" not in served.log()


def test_kills_and_reloads_under_open_connections_lose_nobody_else(daemon):
    """Two workers with 100 open connections each."""
    kill_and_reload(daemon, seats=100, kills=2, reloads=2, loop="asyncio")


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_long(daemon, loop):
    """Two workers with 500 open connections each."""
    kill_and_reload(daemon, seats=500, kills=20, reloads=20, loop=loop)
