"""The kill storm (R01): workers die under load, and nobody is lost but who was in their hands."""

import contextlib
import os
import random
import threading
from signal import SIGKILL

import proc
import pytest
from clients import PATIENCE, Storm, read_line, wait_for

WORKERS, LANES = 4, 4

KILL_INTERVAL = 0.1


class Witness:
    """The exchange of a storm's clients with ``HitHandler``: remembers in whose hands each lost one was."""

    def __init__(self) -> None:
        self.lost_by: list[int] = []
        self.lost_unheard = 0

    def __call__(self, client, line: bytes) -> bool:
        """Read the worker's pid, send the line, and read it again."""
        pid = b""
        try:
            pid = read_line(client)
            client.sendall(line)
            if pid and read_line(client) == line:
                return True
        except OSError:
            self.note(pid)
            raise
        self.note(pid)
        return False

    def note(self, pid: bytes) -> None:
        """One is lost."""
        if pid:
            self.lost_by.append(int(pid))
        else:
            self.lost_unheard += 1  # accepted, and killed before the first line


class Killer:
    """Sends SIGKILL to a random worker each ``KILL_INTERVAL``, for ``seconds``."""

    def __init__(self, served, seconds: float) -> None:
        self.served = served
        self.count = round(seconds / KILL_INTERVAL)
        self.killed: list[int] = []

    def run(self) -> None:
        """Returns after the last kill. What paces it is the storm itself, not a fact: hence a timed wait."""
        clock = threading.Event()
        for _ in range(self.count):
            if workers := self.served.workers():
                victim = random.choice(workers)
                with contextlib.suppress(ProcessLookupError):  # dead since the last time
                    os.kill(victim, SIGKILL)
                    self.killed.append(victim)
            clock.wait(KILL_INTERVAL)


def kill_storm(served, seconds: float, whole_within: float) -> None:
    """Let it rage, and check what became of clients, workers, and the master's resources."""
    descriptors = len(proc.files(served.pid))
    witness, killer = Witness(), Killer(served, seconds)
    with Storm(served, clients=64, exchange=witness) as storm:
        storm.wait_for_more(64)
        killer.run()
        wait_for(lambda: len(served.workers()) == WORKERS, whole_within, "the whole pool")
        storm.wait_for_more(640)
    counts = storm.counts
    print(f"{len(killer.killed)} kills, {counts}, {witness.lost_unheard} unheard")
    assert counts.refused == counts.timed_out == counts.other == 0, counts
    assert set(witness.lost_by) <= set(killer.killed), "lost in the hands of a worker that was not killed"
    assert counts.lost == len(witness.lost_by) + witness.lost_unheard
    assert counts.lost <= LANES * len(killer.killed), "more were lost than killed workers had lanes"
    assert counts.ok > 4 * counts.lost
    wait_for(lambda: not proc.zombies(served.pid), PATIENCE, "all to be buried")
    assert proc.threads(served.pid) == 1
    wait_for(lambda: len(proc.files(served.pid)) == descriptors, PATIENCE, "as many descriptors as before")
    assert served.stop() == 0


@pytest.fixture
def served(daemon):
    """A pool whose clients know in whose hands they are."""
    return daemon("fork_handlers:HitHandler", workers=WORKERS, threads=LANES)


class TestKillStorm:
    def test_loses_only_what_was_in_a_killed_workers_hands(self, served):
        """R01, short: a kill every 100 ms for 4 s under 64 clients."""
        kill_storm(served, 4.0, whole_within=2 * PATIENCE)

    @pytest.mark.soak
    @pytest.mark.timeout(180)
    def test_long(self, served):
        """R01, as required: 20 s, and the pool is whole within 1 s of the last kill."""
        kill_storm(served, 20.0, whole_within=1.0)
