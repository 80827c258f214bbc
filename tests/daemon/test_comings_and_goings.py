"""Workers that come and go by plan: recycled, greeted by worker_start, seen off by worker_stop; the accounted stop."""

import contextlib
import os
import re
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM

import measures
import pytest
from clients import Storm, ask, connect, echo_line, read_line, wait_for
from test_lifecycle import hold, release, wait_logged

REPLACED = re.compile(r"worker (\d+) has served \d+ connections \(recycle\.connections\); replacing it")


def order(client, text: str) -> bytes:
    client.sendall(f"{text}\n".encode())
    return read_line(client)


def recycle_under_load(daemon, recycles: int, within: float) -> None:
    """Workers are recycled after each few connections, ``recycles`` times, while eight clients lose nothing."""
    served = daemon("handlers:LineHandler", "--set", "recycle.connections=5", workers=4, threads=2)
    wait_for(lambda: len(served.workers()) == 4, 10, "four workers")
    descriptors = measures.descriptors(served.pid)
    with Storm(served, clients=8, requests=10**9) as storm:
        wait_for(lambda: len(REPLACED.findall(served.log())) >= recycles // 3, within, "the first third")
        resident = measures.resident(served.pid)
        wait_for(lambda: len(REPLACED.findall(served.log())) >= recycles, within, f"{recycles} recycles")
        states = [worker["state"] for worker in served.status()["workers"]]
        assert states.count("ready") >= 4, states
    assert storm.counts.is_lossless, storm.counts
    assert {int(slot) for slot in REPLACED.findall(served.log())} == {0, 1, 2, 3}
    wait_for(lambda: measures.descriptors(served.pid) <= descriptors, 10, "the descriptors to be given back")
    assert measures.threads(served.pid) == 1
    assert measures.resident(served.pid) <= resident + 2 * 2**20, "the master has grown by more than 2 MB"
    assert "could not start" not in served.log()
    assert served.stop() == 0


class TestRecycling:
    def test_under_load_loses_nobody(self, daemon):
        """Thirty recycles by connections: every slot has its turn, the master's descriptors are flat."""
        recycle_under_load(daemon, 30, within=60)

    @pytest.mark.soak
    @pytest.mark.timeout(3600)
    def test_ten_thousand_lose_nobody(self, daemon):
        """The long form."""
        recycle_under_load(daemon, 10_000, within=3000)

    @pytest.mark.parametrize("option", ["recycle.age=0.5", "recycle.rss=1M"])
    def test_by_age_and_memory(self, daemon, option):
        """The replacement is there before the old worker leaves."""
        served = daemon("handlers:LineHandler", "--set", option, workers=1)
        old = set(served.workers())  # there may be another already
        with Storm(served, clients=2) as storm:
            wait_for(lambda: served.workers() and not old & set(served.workers()), 20, "another worker")
            storm.wait_for_more(20)
        assert storm.counts.is_lossless, storm.counts
        assert f"({option.partition('=')[0]}); replacing it" in served.log()

    def test_open_conversation_finishes_with_the_old_worker(self, daemon):
        """It has graceful, and no less; meanwhile no second worker goes."""
        served = daemon("handlers:OrderHandler", "--set", "recycle.connections=1", workers=1, threads=2)
        with hold(served) as client:
            wait_logged(served, "(recycle.connections); replacing it")
            wait_for(lambda: len(served.workers()) == 2, 10, "the replacement beside it")
            for _ in range(3):
                assert ask(served, b"echo served\n") == b"served\n"
            assert release(client) == b"released\n"
        assert served.stop() == 0


@pytest.fixture
def notes(tmp_path) -> Path:
    return tmp_path / "notes"


def run_hooks(daemon, notes: Path, *more: str, workers: int = 2, ready: bool = True, **env: str):
    options = ("--set", "server.worker_start=handlers:note_start", "--set", "server.worker_stop=handlers:note_stop")
    env |= {"WORKER_NOTES": str(notes)}
    return daemon("handlers:OrderHandler", *options, *more, workers=workers, env=env, ready=ready)


class TestHooks:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("sig", [SIGTERM, SIGINT])
    def test_are_called_in_each_worker(self, daemon, notes, workers, sig):
        """Once before it accepts, once before it leaves; -w 0 is a worker too."""
        served = run_hooks(daemon, notes, workers=workers)
        pids = served.workers() or [served.pid]
        assert sorted(notes.read_text().split("\n")) == ["", *sorted(f"start {pid}" for pid in pids)]
        assert served.stop(sig) == 0
        assert sorted(notes.read_text().split("\n")[len(pids) :]) == ["", *sorted(f"stop {pid}" for pid in pids)]

    def test_canary_that_is_not_wanted_says_goodbye(self, daemon, notes):
        """What worker_start opened is closed."""
        served = run_hooks(daemon, notes)
        served.signal(SIGHUP)
        wait_logged(served, "reload done")
        assert served.stop() == 0
        lines = notes.read_text().split("\n")
        starts, stops = ([line.split()[1] for line in lines if line.startswith(word)] for word in ("start", "stop"))
        assert sorted(starts) == sorted(stops)
        assert len(starts) == 4

    @pytest.mark.parametrize(
        ("start", "reason"),
        [
            ("raise", "server.worker_start: handlers:note_start: RuntimeError: no database"),
            ("hang", "was not accepting within timeouts.boot = 2 s"),
        ],
    )
    def test_start_that_fails_is_a_failed_boot(self, daemon, notes, start, reason):
        """At the first start: exit 78, with the reason."""
        served = run_hooks(daemon, notes, "--set", "timeouts.boot=2", ready=False, WORKER_START=start)
        assert served.wait() == 78
        assert reason in served.log()

    def test_stop_that_raises_is_said_and_nothing_else(self, daemon, notes):
        """The worker leaves all the same."""
        served = run_hooks(daemon, notes, workers=1, WORKER_STOP="raise")
        assert served.stop() == 0
        assert "server.worker_stop: handlers:note_stop: RuntimeError: cannot say goodbye" in served.log()

    @pytest.mark.parametrize("spec", ["handlers:NoSuchFunction", "no_such_module:f", "handlers:MAX_SECONDS"])
    def test_what_is_no_function_is_refused(self, daemon, spec):
        """By its key."""
        served = daemon("handlers:LineHandler", "--set", f"server.worker_start={spec}", ready=False)
        assert served.wait() == 78
        assert "server.worker_start: " in served.log()


class TestAccountedStop:
    def test_tells_what_was_served_drained_and_cut(self, daemon):
        """Three conversations: one over before the stop, one that finishes, one that does not."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.graceful=3", workers=1)
        assert ask(served, b"echo before\n") == b"before\n"
        served.counted(served=1)
        with hold(served) as finishing, hold(served) as cut:
            peer = f"127.0.0.1:{cut.getsockname()[1]}"
            served.signal(SIGTERM)
            wait_logged(served, "stopping: open connections have 3 s")
            assert release(finishing) == b"released\n"
            finishing.close()
            assert served.wait() == 0
        assert f"cut 1 open: {peer}" in served.log()
        assert "stopped: 3 accepted, 2 served, 0 errors, 1 cut, 1 finished while draining, 0 never" in served.log()

    def test_tells_who_was_never_accepted(self, daemon):
        """The only lane is busy for longer than graceful: those queued behind it are counted."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.graceful=0.5", workers=1, threads=1)
        with hold(served), contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connect(served))
            served.signal(SIGTERM)
            assert served.wait() == 0
        assert re.search(r"stopped: .*, 3 never accepted", served.log())

    def test_lame_duck_accepts_on(self, daemon):
        """Newcomers are served until its end; then they are refused, and who is open finishes."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.lame_duck=3", workers=1)
        served.signal(SIGTERM)
        wait_logged(served, "stopping: accepting for 3 s more")
        with hold(served) as client:
            assert ask(served, b"draining\n") == b"False\n"
            wait_logged(served, "stopping: open connections have")
            assert order(client, "go") == b"released\n"
            wait_for(lambda: order(client, "draining") == b"True\n", 10, "the worker to drain")
        assert served.wait() == 0

    def test_stop_under_load_with_lame_duck_answers_all_that_was_accepted(self, daemon):
        """Clients that stop coming during it, as behind a load balancer, lose nothing."""
        served = daemon("handlers:LineHandler", "--set", "timeouts.lame_duck=60", workers=2)
        with Storm(served, clients=8, exchange=echo_line) as storm:
            storm.wait_for_more(50)
            served.signal(SIGTERM)
            wait_logged(served, "stopping: accepting")
            storm.wait_for_more(20)
        assert storm.counts.is_lossless, storm.counts
        assert served.stop(SIGINT) == 0

    def test_int_ends_a_lame_duck(self, daemon):
        """Who is in a hurry does not wait."""
        served = daemon("handlers:LineHandler", "--set", "timeouts.lame_duck=60", workers=1)
        served.signal(SIGTERM)
        wait_logged(served, "stopping: accepting for 60 s more")
        assert served.stop(SIGINT) == 0

    def test_worker_that_dies_during_it_is_replaced(self, daemon):
        """It still serves newcomers."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.lame_duck=60", workers=1)
        (old,) = served.workers()
        served.signal(SIGTERM)
        wait_logged(served, "stopping: accepting")
        os.kill(old, 9)
        wait_for(lambda: set(served.workers()) - {old}, 20, "another worker")
        assert ask(served, b"echo on\n") == b"on\n"
        assert served.stop(SIGINT) == 0
