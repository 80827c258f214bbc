"""Deaths of workers, lanes and the master: who is replaced, how soon, and who leaves."""

import contextlib
import itertools
import os
import re
import signal
import time
from pathlib import Path
from signal import SIGKILL

import proc
import pytest
from clients import ask, connect, own_port, read_line, wait_for

RAISED = ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "MemoryError", "RecursionError", "ValueError"]

ORPHAN_TIMEOUT = 5.0 + 5.0
"""Seconds in which workers whose master was killed leave, whatever their handlers do: the requirement, and as much as
a busy test machine may be late."""


def wait_whole(served, workers: int, but: int = 0) -> list[int]:
    """Wait until so many workers, ``but`` not among them, are alive and the kernel knows no zombie; their pids."""

    def is_whole() -> bool:
        return len(set(served.workers()) - {but}) == workers and not proc.zombies(served.pid)

    wait_for(is_whole, 20, f"{workers} workers")
    return served.workers()


def order(client, text: str) -> bytes:
    """Order something on an open connection; the answer."""
    client.sendall(f"{text}\n".encode())
    return read_line(client)


def end_of(client, text: str) -> bytes:
    """Order something that ends the connection: what came before the end, be it a reset."""
    try:
        return order(client, text)
    except ConnectionResetError:
        return b""


class TestDeadWorker:
    def test_is_replaced_at_once_and_the_sibling_serves_on(self, daemon):
        """Whatever kills it: its slot has a new worker, a conversation with the other goes on, the log says how."""
        served = daemon("fork_handlers:FatalHandler", workers=2, threads=2)
        deaths = {
            "die": "was killed by SIGKILL",
            "segfault": "was killed by SIGSEGV",
            "abort": "was killed by SIGABRT",
            "_exit 7": "exited with code 7",
            "_exit 0": "exited with code 0",
        }
        victims: dict[str, int] = {}
        for fatal in deaths:
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(served)) for _ in range(4)]  # every lane of both
                pids = [int(order(client, "pid")) for client in clients]
                survivor, victims[fatal] = sorted(set(pids))
                kept, doomed = (clients[pids.index(pid)] for pid in (survivor, victims[fatal]))
                assert end_of(doomed, fatal) == b""
                assert survivor in wait_whole(served, 2, but=victims[fatal])
                assert order(kept, "echo still here") == b"still here\n"
        assert served.stop() == 0
        for fatal, how in deaths.items():
            assert re.search(rf"worker \d \(pid {victims[fatal]}\) {how}; replacing it", served.log()), fatal

    def test_replacements_are_at_most_twenty_a_second(self, daemon):
        """F06: many deaths at once are all seen, none stays a zombie, and the pool is whole after its rate allows."""
        served = daemon("handlers:LineHandler", workers=30, threads=1)
        first = served.workers()
        served.signal(signal.SIGSTOP)  # so that all deaths meet it at once
        for pid in first:
            os.kill(pid, SIGKILL)
        wait_for(lambda: len(proc.zombies(served.pid)) == 30, 10, "thirty deaths")
        served.signal(signal.SIGCONT)
        fresh = wait_whole(served, 30)
        assert not set(fresh) & set(first)
        starts = sorted(proc.started_at(pid) for pid in fresh)
        assert starts[20] - starts[0] > 0.7  # 1 s, less what the first fork was late
        assert served.stop() == 0
        assert served.log().count("was killed by SIGKILL; replacing it") == 30

    def test_replacement_that_cannot_start_is_tried_again_with_back_off(self, daemon, tmp_path):
        """At once, then ever later, with jitter; the others serve on, and the pool is whole when the cause is gone."""
        marker = tmp_path / "broken"
        (tmp_path / "fragile.py").write_text(
            "import os\nfrom handlers import OrderHandler as Handler\n"
            f"if os.path.exists({str(marker)!r}):\n    os._exit(3)\n"
        )
        served = daemon("fragile:Handler", workers=2)
        marker.touch()
        os.kill(served.workers()[0], SIGKILL)
        tries = re.compile(r"could not start: \(pid \d+\) exited with code 3; next try in (\S+) s")
        wait_for(lambda: len(tries.findall(served.log())) >= 5, 20, "five tries")
        assert ask(served, b"echo on\n") == b"on\n"
        marker.unlink()
        wait_whole(served, 2)
        delays = [float(delay) for delay in tries.findall(served.log())][:5]
        assert delays[0] == 0
        for delay, centre in zip(delays[1:], (0.5, 0.75, 1.125, 1.6875), strict=True):
            assert centre * 0.8 - 0.06 <= delay <= centre * 1.2 + 0.06  # printed with one digit
        assert served.stop() == 0


class TestLane:
    @pytest.mark.parametrize("where", ["handle", "verify_request", "handle_error"])
    def test_survives_what_hooks_raise(self, daemon, where):
        """The only lane goes on serving, and the log names the peer and has the traceback; nothing is printed."""
        served = daemon("fork_handlers:RaisingServer", workers=1, threads=1)
        (worker,) = served.workers()
        peers: dict[str, str] = {}
        for name in RAISED:
            with connect(served) as client:
                peers[name] = f"127.0.0.1:{client.getsockname()[1]}"
                assert end_of(client, f"{where} {name}") == b""
            assert ask(served, b"still here\n") == b"still here\n"
            assert served.workers() == [worker]
        assert served.stop() == 0
        for name, peer in peers.items():
            is_hooks = where == "handle_error" and name in RAISED[3:]
            entry = re.escape(f"handle_error failed for {peer}" if is_hooks else f"for {peer}")
            # a traceback's lines are indented, but for its headings and the exceptions
            whole = rf"ERROR worker 0 \[{worker}\]: .*{entry}\nTraceback (?:(?!\d{{4}}-).*\n)*?{name}: "
            assert re.search(whole, served.log()), name
        assert "Exception occurred during" not in served.log()
        assert served.out_path.read_text() == ""

    def test_survives_what_get_request_raises(self, daemon):
        """A KeyboardInterrupt out of the first get_request is logged, and the client is served all the same."""
        served = daemon("fork_handlers:RaisingServer", workers=1, threads=1)
        assert ask(served, b"hello\n") == b"hello\n"
        assert "get_request failed\nTraceback " in served.log()

    def test_get_request_that_always_raises_does_not_spin(self, daemon):
        """One client in the queue of a broken server costs pauses, not the processor and the disk."""
        served = daemon("fork_handlers:DeafServer", workers=1, threads=1)
        with connect(served):
            wait_for(lambda: served.log().count("get_request failed") >= 18, 20, "the first failures")
            (worker,) = served.workers()
            before, start = served.log().count("get_request failed"), time.monotonic()
            used = cpu_seconds(worker)
            wait_for(lambda: served.log().count("get_request failed") > before, 20, "one more")
            more = served.log().count("get_request failed") - before
            assert more < 20 + 20 * (time.monotonic() - start)  # one each 0.1 s, after a few without a pause
            assert cpu_seconds(worker) - used < 0.5

    def test_thread_that_dies_is_replaced(self, daemon):
        """All lanes but one are killed from outside; soon there are as many as before, and they serve."""
        served = daemon("fork_handlers:FatalHandler", workers=1, threads=4)
        (worker,) = served.workers()
        threads = proc.threads(worker)
        assert ask(served, b"kill lanes\n") == b"killed\n"
        with contextlib.ExitStack() as stack:  # wakes every lane, and needs every lane
            clients = [stack.enter_context(connect(served)) for _ in range(4)]
            assert [order(client, "hold") for client in clients] == [b"holding\n"] * 4
        assert lanes_replaced(served) == 3
        assert served.workers() == [worker]
        wait_for(lambda: proc.threads(worker) == threads, 10, f"{threads} threads")
        assert served.stop() == 0


def lanes_replaced(served) -> int:
    """How many lanes the log says were replaced."""
    return len(re.findall(r"lane \d died; replacing it", served.log()))


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used. Source: proc(5) stat."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class TestKilledMaster:
    def test_workers_leave(self, daemon):
        """F09: one is idle, one waits for a client, hangs, loops, holds the interpreter's lock in a C call: all are
        gone within 5 s, and the port is free."""
        bind = f"tcp://127.0.0.1:{own_port()}"
        served = daemon("fork_handlers:FatalHandler", bind=bind, workers=5, threads=2)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(served)) for _ in range(10)]  # every lane of all
            one_of_each = {order(client, "pid"): client for client in clients}
            waits, hangs, loops, freezes, _ = one_of_each.values()
            for client in set(clients) - {waits, hangs, loops, freezes}:
                client.close()
            assert order(waits, "hold") == b"holding\n"
            assert order(hangs, "hang") == b"hanging\n"
            assert order(loops, "spin") == b"spinning\n"
            wait_for(lambda: served.status()["pool"]["busy"] == 4, 10, "the other six lanes to be idle")
            freezes.sendall(b"freeze 60\n")
            assert served.stop(SIGKILL) == -SIGKILL
            assert served.wait_gone(ORPHAN_TIMEOUT) == []
        again = daemon("handlers:LineHandler", bind=bind)
        assert ask(again, b"hello\n") == b"hello\n"

    def test_open_connection_may_still_finish(self, daemon):
        """An orphan drains for a few seconds."""
        served = daemon("handlers:OrderHandler", workers=1)
        with connect(served) as client:
            assert order(client, "hold") == b"holding\n"
            assert served.stop(SIGKILL) == -SIGKILL
            wait_for(lambda: "the master is gone" in served.log(), 10, "the orphan to notice")
            assert order(client, "go") == b"released\n"

    def test_workers_that_still_import_leave(self, daemon, tmp_path):
        """F08: PR_SET_PDEATHSIG, since nobody watches the lifeline yet."""
        (tmp_path / "endless.py").write_text("while True: pass\n")
        served = daemon("endless:Handler", workers=2, ready=False)
        wait_for(lambda: len(served.workers()) == 2, 20, "two workers")
        wait_for(lambda: all("worker" in proc.title(pid) for pid in served.workers()), 10, "their titles")
        assert served.stop(SIGKILL) == -SIGKILL
        assert served.wait_gone(ORPHAN_TIMEOUT) == []

    def test_children_forked_too_late_for_the_signal_leave(self, daemon, tmp_path):
        """F08: the master died between fork and prctl, so no signal comes: the lifeline tells."""
        (tmp_path / "sitecustomize.py").write_text(
            "import os, time\nmaster = os.getpid()\n"
            "def wait():\n"
            f"    while os.path.exists({str(tmp_path / 'late')!r}) and os.getppid() == master: time.sleep(0.01)\n"
            "os.register_at_fork(after_in_child=wait)\n"
        )
        (tmp_path / "late").touch()
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent)])
        served = daemon("handlers:LineHandler", workers=2, env={"PYTHONPATH": path}, ready=False)
        wait_for(lambda: len(served.workers()) == 2, 20, "two children")
        assert served.stop(SIGKILL) == -SIGKILL
        assert served.wait_gone(ORPHAN_TIMEOUT) == []

    def test_after_many_respawns_workers_leave(self, daemon):
        """F21: no worker holds the write end of a pipe whose end of file another waits for."""
        served = daemon("handlers:LineHandler", workers=3)
        for _ in itertools.repeat(None, 4):
            for pid in served.workers():
                os.kill(pid, SIGKILL)
                wait_whole(served, 3, but=pid)
        # a child that is being forked still shares everything
        wait_for(lambda: all(proc.threads(pid) > 1 for pid in served.workers()), 10, "lanes in each worker")
        ends = {pid: proc.write_ends(pid) for pid in [served.pid, *served.workers()]}
        for one, other in itertools.combinations(ends, 2):
            assert not ends[one] & ends[other], f"{one} and {other} can write to the same pipe"
        assert served.stop(SIGKILL) == -SIGKILL
        assert served.wait_gone(ORPHAN_TIMEOUT) == []
