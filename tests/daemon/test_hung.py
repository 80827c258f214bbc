"""Workers that hang: replaced first, then ended; those that only seem to are left alone."""

import contextlib
import os
import re
from signal import SIGCONT, SIGSTOP

import measures
import proc
import pytest
from clients import Storm, ask, connect, read_line, wait_for
from test_deadlines import spoken
from test_lifecycle import wait_logged
from test_reload import echo_order

SILENT = "gives no signs of life since 2 s (timeouts.worker); replacing it"
QUICK = ("--set", "timeouts.worker=2")
"""A machine that is busy may give a worker nothing for a second."""


def order(client, text: str) -> bytes:
    client.sendall(f"{text}\n".encode())
    return read_line(client)


def wait_replaced(served, victim: int, count: int) -> None:
    wait_for(lambda: len(served.workers()) == count and victim not in served.workers(), 30, f"another than {victim}")


class TestSilentWorker:
    def test_stopped_one_is_replaced_and_killed(self, daemon):
        """SIGSTOP: nobody who comes meanwhile is lost, and no zombie stays."""
        served = daemon("handlers:OrderHandler", *QUICK, workers=2)
        victim = served.workers()[0]
        proc.suspend(victim)
        with Storm(served, clients=4, exchange=echo_order) as storm:
            wait_replaced(served, victim, 2)
        assert storm.counts.is_lossless, storm.counts
        assert SILENT in served.log()
        wait_for(lambda: not proc.zombies(served.pid), 10, "all burials")
        assert served.stop() == 0

    def test_one_that_holds_the_interpreter_in_c_is_replaced_and_its_stack_is_told(self, daemon):
        """The log says where: faulthandler needs no interpreter's lock."""
        served = daemon("handlers:OrderHandler", *QUICK, workers=1)
        (victim,) = served.workers()
        with connect(served) as frozen:
            frozen.sendall(b"freeze 60\n")
            wait_replaced(served, victim, 1)
            assert ask(served, b"echo on\n") == b"on\n"
        assert SILENT in served.log()
        wait_logged(served, "worker 0: where its threads are")
        assert re.search(r'File ".*handlers.py", line \d+ in obey', served.log())

    def test_replacement_is_ready_before_it_is_killed(self, daemon, tmp_path):
        """While none can start, the silent one is not killed: it may come back."""
        (tmp_path / "fragile.py").write_text(
            "import os\nfrom handlers import OrderHandler as Handler\n"
            f"if os.path.exists({str(tmp_path / 'broken')!r}):\n    os._exit(3)\n"
        )
        served = daemon("fragile:Handler", *QUICK, workers=1)
        (victim,) = served.workers()
        (tmp_path / "broken").touch()
        os.kill(victim, SIGSTOP)
        wait_logged(served, "exited with code 3; next try in")
        os.kill(victim, SIGCONT)
        wait_logged(served, "worker 0 gives signs of life again")
        assert ask(served, b"pid\n") == f"{victim}\n".encode()
        (tmp_path / "broken").unlink()
        wait_replaced(served, victim, 1)
        assert served.stop() == 0

    def test_busy_one_is_left_alone(self, daemon):
        """Every lane computes in Python for longer than the limit."""
        served = daemon("fork_handlers:FatalHandler", *QUICK, workers=1, threads=4)
        (worker,) = served.workers()
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                client = stack.enter_context(connect(served))
                assert order(client, "spin") == b"spinning\n"
            before = measures.cpu_seconds([worker])
            wait_for(lambda: measures.cpu_seconds([worker]) > before + 3, 60, "three seconds of computing")
            assert ask(served, b"pid\n") == f"{worker}\n".encode()
        assert served.workers() == [worker]
        assert "signs of life" not in served.log()

    @pytest.mark.parametrize("seconds", [3.0, pytest.param(10.0, marks=pytest.mark.soak)])
    def test_nobody_is_killed_because_the_master_was_stopped(self, daemon, seconds):
        """R06: workers and their clients go on meanwhile, and after it."""
        served = daemon("handlers:OrderHandler", *QUICK, workers=2)
        workers = served.workers()
        with Storm(served, clients=4, exchange=echo_order) as storm:
            served.signal(SIGSTOP)
            wait_for(lambda: proc.state(served.pid) == "T", 10, "the stop")
            cpu = storm.counts.ok
            measures.rate(lambda: storm.counts.ok, seconds)  # the stop has to last longer than the limit
            assert storm.counts.ok > cpu
            served.signal(SIGCONT)
            storm.wait_for_more(100)
            measures.rate(lambda: storm.counts.ok, 2.5)  # nor does it come to the limit later
        assert storm.counts.is_lossless, storm.counts
        assert served.workers() == workers
        assert "signs of life" not in served.log()
        assert served.stop() == 0

    def test_zero_watches_nobody(self, daemon):
        """timeouts.worker = 0."""
        served = daemon("handlers:OrderHandler", "--set", "timeouts.worker=0", workers=1)
        with connect(served) as client:
            client.sendall(b"freeze 2\n")
            assert read_line(client) == b"thawed\n"
        assert "signs of life" not in served.log()


class TestHungLane:
    def test_seven_siblings_finish_their_conversations(self, daemon):
        """The replacement is there first; the hung handler does not keep the old worker once they are over."""
        served = daemon("fork_handlers:FatalHandler", *spoken(handler=1), workers=1, threads=8)
        (old,) = served.workers()
        with contextlib.ExitStack() as stack:
            siblings = [stack.enter_context(connect(served)) for _ in range(7)]
            for sibling in siblings:
                assert order(sibling, "extend 60") == b"extended\n"
            hung = stack.enter_context(connect(served))
            assert order(hung, "hang") == b"hanging\n"
            wait_logged(served, "worker 0 has a lane that hangs (timeouts.handler); replacing it")
            wait_for(lambda: len(served.workers()) == 2, 10, "the replacement")
            for sibling in siblings:
                assert order(sibling, "pid") == f"{old}\n".encode()
                assert order(sibling, "draining") in (b"True\n", b"False\n")
        wait_replaced(served, old, 1)
        wait_logged(served, f"(pid {old}) exited with code 0")
        assert "left 1 handler(s) that did not come back: 127.0.0.1:" in served.log()
        totals = served.status()["totals"]
        assert (totals["accepted"], totals["served"], totals["timeouts"]["handler"]) == (8, 7, 1)
        assert served.stop() == 0


class TestCrash:
    def test_last_stack_is_in_the_line_that_tells_of_it(self, daemon):
        """One line for each respawn, with how it died."""
        served = daemon("fork_handlers:FatalHandler", workers=1)
        (victim,) = served.workers()
        with contextlib.suppress(ConnectionResetError), connect(served) as client:
            client.sendall(b"segfault\n")
            assert read_line(client) == b""
        told = re.compile(
            rf"worker 0 \(pid {victim}\) was killed by SIGSEGV; replacing it\n  Fatal Python error: Segmentation fault"
            r'(\n  .*)*File ".*fork_handlers.py", line \d+ in segfault_'
        )
        wait_for(lambda: told.search(served.log()), 20, "the line, and its stack")
