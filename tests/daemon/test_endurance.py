"""The lifecycle as a whole: all workers hang at once, the master dies under load, stops in every manner, long runs."""

import contextlib
import os
import random
import signal
import subprocess
from signal import SIGCHLD, SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2

import measures
import proc
import pytest
from clients import Counts, Storm, answered, ask, connect, own_port, read_line, wait_for
from sites import echo_order, versions
from test_deadlines import spoken
from test_storm import Witness

LEAKER = """
from handlers import OrderHandler
kept = []
class Handler(OrderHandler):
    def obey(self, order, argument):
        kept.append(bytearray(b"x" * 100_000))
        super().obey(order, argument)
"""


def order(client, text: str) -> bytes:
    client.sendall(f"{text}\n".encode())
    return read_line(client)


class TestHungPool:
    def test_all_workers_at_once_are_replaced(self, daemon, tmp_path):
        """R02: one sleeps for ever, one loops in Python, one reads from a pipe that nobody writes to."""
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        served = daemon("fork_handlers:FatalHandler", *spoken(handler=1), workers=3, threads=1)
        before = set(served.workers())
        with contextlib.ExitStack() as stack:
            for text in ("hang", "spin", f"read {pipe}"):
                assert order(stack.enter_context(connect(served)), text)
            assert ask(served, b"echo on\n", timeout=30) == b"on\n"
            wait_for(lambda: len(served.workers()) == 3 and not before & set(served.workers()), 30, "three others")
        assert served.log().count("has a lane that hangs (timeouts.handler); replacing it") == 3
        assert served.stop() == 0

    def test_two_stopped_of_four_are_replaced(self, daemon):
        """R03: and nobody is lost by it."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.worker=2", workers=4, threads=2)
        victims = set(served.workers()[:2])
        with Storm(served, clients=4, exchange=echo_order) as storm:
            storm.wait_for_more(20)
            for pid in victims:
                os.kill(pid, SIGSTOP)
            wait_for(lambda: len(served.workers()) == 4 and not victims & set(served.workers()), 20, "two others")
            storm.wait_for_more(20)
        # Who was in their hands, in two lanes each, waits until they are killed: a reset, or an end if all was read.
        assert (storm.counts.refused, storm.counts.timed_out, storm.counts.other) == (0, 0, 0), storm.counts
        assert storm.counts.lost <= 4, storm.counts
        assert served.stop() == 0


class TestKilledMaster:
    def test_under_load_with_hung_handlers_leaves_nothing(self, daemon):
        """R05: no process after 6 s, and the address can be bound at once."""
        url = f"tcp://127.0.0.1:{own_port()}"
        served = daemon("fork_handlers:FatalHandler", bind=url, workers=4, threads=4)
        with contextlib.ExitStack() as stack:
            for text in ("hang", "hang", "spin"):
                assert order(stack.enter_context(connect(served)), text)
            with Storm(served, clients=8, exchange=echo_order) as storm:
                storm.wait_for_more(50)
                served.signal(SIGKILL)
                wait_for(lambda: storm.counts.refused > 0, 20, "the first refusal")
                again = daemon("handlers:OrderHandler", bind=url)
                storm.wait_for_more(20)
            assert served.wait_gone(6 + 6) == []  # as many for a busy machine
        assert again.stop() == 0


class TestStop:
    @pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.soak)], ids="{} runs".format)
    def test_who_is_queued_is_answered(self, daemon, count):
        """R12, S26, S36: TERM with 24 clients queued on a handler that takes 0.5 s, four workers of one lane."""
        for _ in range(count):
            served = daemon("handlers:OrderHandler", workers=4, threads=1)
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(served, timeout=30)) for _ in range(24)]
                for client in clients:
                    client.sendall(b"sleep 0.5\n")
                    client.shutdown(1)
                served.signal(SIGTERM)
                counts = answered(clients, b"slept\n")
            assert counts == Counts(ok=24)
            assert served.wait() == 0

    def test_of_the_whole_group_lets_conversations_finish(self, daemon):
        """R13: TERM to every process at once, as KillMode=control-group sends it, is one stop."""
        served = daemon("handlers:OrderHandler", workers=2)
        with connect(served) as client:
            assert order(client, "hold") == b"holding\n"
            proc.suspend(served.pid)  # so that it hears of the stop when a worker has left already
            os.killpg(served.pid, SIGTERM)
            wait_for(lambda: proc.zombies(served.pid), 10, "the idle worker to leave")
            served.signal(SIGCONT)
            wait_for(lambda: "stopping: open connections" in served.log(), 10, "the stop")
            assert order(client, "go") == b"released\n"
        assert served.wait() == 0
        assert "replacing it" not in served.log()
        assert "SIGTERM" not in served.log()

    @pytest.mark.soak
    @pytest.mark.timeout(280)
    def test_at_two_hundred_instants_of_the_start_ends_cleanly(self, daemon, tmp_path):
        """R13: 0 to 500 ms after it; never longer than the grace and a second."""
        for step in range(200):
            served = daemon(
                "handlers:LineHandler", "--set", "timeouts.graceful=1", bind=f"unix:{tmp_path}/s", ready=False
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                served.process.wait(step * 0.0025)  # the instant itself, of which there is no fact to wait for
            os.kill(served.process.pid, SIGTERM)
            assert served.process.wait(1 + 1 + 2) in (0, -SIGTERM), step  # two for a busy machine
            assert served.wait_gone(5) == []
            assert not (tmp_path / "s").exists()
            assert "Traceback" not in served.log()


class TestMemory:
    @pytest.mark.soak
    def test_leaking_workers_stay_near_the_limit(self, daemon, tmp_path):
        """R14: recycle.rss; each is replaced before it is far above it, and nobody is lost."""
        (tmp_path / "leaker.py").write_text(LEAKER)
        served = daemon("leaker:Handler", "--set", "recycle.rss=80M", workers=2, threads=2)
        peaks: dict[int, int] = {}

        def look() -> int:
            for pid in served.workers():
                with contextlib.suppress(OSError, IndexError):
                    peaks[pid] = max(peaks.get(pid, 0), measures.resident(pid))
            return served.log().count("(recycle.rss); replacing it")

        with Storm(served, clients=2, exchange=gentle) as storm:
            wait_for(lambda: look() >= 4, 60, "four replacements")
        assert storm.counts.is_lossless, storm.counts
        assert max(peaks.values()) < 1.2 * 80 * 2**20, "the limit, and a fifth"
        assert served.stop() == 0


def gentle(client, line: bytes) -> bool:
    """An exchange that leaves the recycler time to look."""
    client.sendall(b"sleep 0.02\n")
    return read_line(client) == b"slept\n"


class TestSignals:
    @pytest.mark.parametrize(
        "count", [25, pytest.param(500, marks=[pytest.mark.soak, pytest.mark.timeout(280)])], ids="{} signals".format
    )
    def test_random_signals_lose_nobody(self, site, count):
        """Upgrades among them: whatever comes in whatever order, after one reload the pool is what is configured."""
        served = site.start()
        choice = random.Random(count).choice
        with Storm(served, clients=4, exchange=echo_order) as storm:
            for _ in range(count):
                with contextlib.suppress(ProcessLookupError):  # the next master has not yet said its pid
                    served.signal(choice([SIGTTIN, SIGTTOU, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD]))
                storm.wait_for_more(random.Random(count).randrange(20))
            settle(site)
        assert storm.counts.is_lossless, storm.counts
        assert "Traceback" not in served.log()
        assert signal.Signals(SIGKILL).name not in served.log()
        served.stop(SIGTERM)
        assert served.wait_gone(10) == []


def settle(site) -> None:
    """Wait until no change is under way, and apply what is configured once more."""
    site.code("last")
    wait_for(lambda: is_reloaded(site.served), 60, f"a reload:\n{site.served.log()}")
    wait_for(lambda: len(site.served.workers()) == 2, 20, "two workers")
    assert versions(site.served) == b"last\n"
    wait_for(lambda: not proc.zombies(site.served.pid), 10, "all burials")


def is_reloaded(served) -> bool:
    """An upgrade that was asked for last may still be under way."""
    return served.cli("reload").returncode == 0 and served.status()["pid"] == served.pid


class TestLongRun:
    @pytest.mark.parametrize(
        "rounds", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(280)])], ids="{} rounds".format
    )
    def test_resources_of_the_master_are_flat(self, site, rounds):
        """R17 in little: in each round two workers are killed, one reload is made, eight clients ask all the time."""
        site.sections["server"]["handler"] = '"fork_handlers:HitHandler"'
        site.configure(pool__workers="3")
        served = site.start()
        witness, killed = Witness(), set()
        with Storm(served, clients=8, exchange=witness) as storm:
            for number in range(rounds + 1):
                for _ in range(2):
                    victim = random.choice(served.workers())
                    killed.add(victim)
                    os.kill(victim, SIGKILL)
                    wait_for(lambda: len(served.workers()) == 3 and not proc.zombies(served.pid), 20, "three workers")
                    storm.wait_for_more(100)
                site.reload()
                if number == 0:
                    before = census(served.pid)
        assert storm.counts.refused == storm.counts.timed_out == storm.counts.other == 0, storm.counts
        assert set(witness.lost_by) <= killed
        wait_for(lambda: census(served.pid)[0] <= before[0], 10, f"{before[0]} descriptors")
        assert census(served.pid)[1] == before[1] == 1
        assert census(served.pid)[2] <= before[2] + 2 * 2**20, "the master has grown by more than 2 MB"
        assert served.stop() == 0


def census(pid: int) -> tuple[int, int, int]:
    """Descriptors, threads, and resident bytes."""
    return measures.descriptors(pid), proc.threads(pid), measures.resident(pid)
