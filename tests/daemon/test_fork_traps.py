"""The traps of fork, signals and time (F.. of RELIABILITY.md), each as a regression test of a real daemon."""

import ast
import contextlib
import itertools
import os
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import proc
import pytest
from clients import ask, connect, read_line, storm, wait_for

import poolserver

HERE = Path(__file__).parent

COMMAND = (sys.executable, "-m", "poolserver", "run")


def wait_whole(served, workers: int, but: int = 0) -> set[int]:
    """Wait until so many workers, ``but`` not among them, are alive and nobody is a zombie; their pids."""

    def is_whole() -> bool:
        return len(set(served.workers()) - {but}) == workers and not proc.zombies(served.pid)

    wait_for(is_whole, 20, f"{workers} workers")
    return set(served.workers())


def customized(folder: Path, code: str) -> dict[str, str]:
    """Variables for a daemon in which ``code`` runs as sitecustomize: before anything of poolserver's."""
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(HERE)])}


class TestF01Threads:
    def test_master_has_one_thread_whatever_handlers_start(self, daemon, tmp_path):
        """F01: a module that logs for ever in a thread, under a lock of its own, hangs 0 of 20 replacements."""
        (tmp_path / "busy.py").write_text(
            "import logging, threading\nfrom handlers import OrderHandler as Handler\n"
            "class Locked(logging.Handler):\n"
            "    def emit(self, record):\n"
            "        with lock: threading.Event().wait(0.001)\n"
            "lock = threading.Lock(); log = logging.getLogger('busy'); log.propagate = False\n"
            "log.addHandler(Locked()); log.warning('once')\n"
            "def run():\n"
            "    while True: log.warning('again')\n"
            "threading.Thread(target=run, daemon=True).start()\n"
        )
        served = daemon("busy:Handler", workers=1, threads=2)
        for _ in range(20):
            assert proc.threads(served.pid) == 1
            victim = int(ask(served, b"pid\n"))
            os.kill(victim, SIGKILL)
            wait_whole(served, 1, but=victim)
        assert ask(served, b"echo on\n") == b"on\n"
        assert served.stop() == 0


class TestF03Buffers:
    def test_what_the_master_has_buffered_and_registered_is_its_own(self, daemon, tmp_path):
        """F03: unflushed output comes out once, atexit hooks run once, in the master; workers flush their own."""
        code = (
            "import atexit, os, sys\n"
            "print('header line')\n"
            f"atexit.register(lambda: open({str(tmp_path / 'ended')!r}, 'a').write(f'{{os.getpid()}}\\n'))\n"
        )
        env = customized(tmp_path, code) | {"PYTHONUNBUFFERED": None}
        served = daemon("fork_handlers:FatalHandler", workers=3, env=env)
        assert ask(served, b"print from a worker\n") == b"printed\n"
        victim = served.workers()[0]
        os.kill(victim, SIGKILL)
        wait_whole(served, 3, but=victim)
        assert ask(served, b"_exit 3\n") == b""
        wait_for(lambda: served.log().count("exited with code 3; replacing it") == 1, 10, "its death")
        wait_whole(served, 3)
        assert served.stop() == 0
        output = served.out_path.read_text()
        assert output.count("header line") == 1
        assert output.count("from a worker") <= 1  # not at all if its worker was the one to be killed
        assert (tmp_path / "ended").read_text() == f"{served.pid}\n"


class TestF05Signals:
    def test_signal_to_a_fresh_child_does_not_reach_the_master(self, daemon, tmp_path):
        """F05: TERM before the child has its own handlers ends the child alone."""
        held = tmp_path / "held"
        env = customized(
            tmp_path,
            "import os, time\n"
            "def wait():\n"
            f"    while os.path.exists({str(held)!r}): time.sleep(0.01)\n"
            "os.register_at_fork(after_in_child=wait)\n",
        )
        served = daemon("handlers:OrderHandler", workers=2, env=env)
        with connect(served) as kept:
            kept.sendall(b"pid\n")
            sibling = int(read_line(kept))
            (victim,) = set(served.workers()) - {sibling}
            held.touch()
            os.kill(victim, SIGKILL)
            wait_whole(served, 2, but=victim)
            (fresh,) = set(served.workers()) - {sibling}
            os.kill(fresh, SIGTERM)
            held.unlink()
            assert sibling in wait_whole(served, 2, but=fresh)
            kept.sendall(b"echo on\n")
            assert read_line(kept) == b"on\n"
        assert f"(pid {fresh}) was killed by SIGTERM" in served.log()
        assert "stopping" not in served.log()

    @pytest.mark.parametrize("launcher", ["", "env --block-signal --ignore-signal=CHLD,TERM,INT,HUP,QUIT"])
    def test_handlers_programs_have_an_empty_mask_and_defaults(self, daemon, launcher):
        """F05: masks and ignored signals survive exec; what a careless parent left to us ends with us."""
        served = daemon("fork_handlers:FatalHandler", program=(*launcher.split(), *COMMAND))
        masks = [int(field.partition(b":")[2], 16) for field in ask(served, b"signals\n").split()]
        # glibc's posix_spawn, which make uses, ignores its own two signals in what it starts; no program can set them
        own = 1 << 32 - 1 | 1 << 33 - 1
        assert [mask & ~own for mask in masks] == [0, 0]
        assert served.stop(SIGTERM) == 0

    def test_workers_hold_no_end_of_the_masters_pipes(self, daemon):
        """F05: the inbox that wakes the master is nobody else's; F21: nor is the lifeline's write end."""
        served = daemon("handlers:LineHandler", workers=3)
        ends = {pid: proc.write_ends(pid) for pid in [served.pid, *served.workers()]}
        assert all(len(pipes) >= 2 for pipes in ends.values())
        for one, other in itertools.combinations(ends, 2):
            assert not ends[one] & ends[other]


class TestF07ReusedPids:
    def test_each_worker_has_a_pidfd_until_its_burial(self, daemon):
        """F07: the master signals through descriptors, and leaks none."""
        served = daemon("handlers:LineHandler", workers=3)

        def watched() -> set[int]:
            fds = [fd for fd, name in proc.files(served.pid).items() if name == "anon_inode:[pidfd]"]
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                return {int(proc.fdinfo(served.pid, fd)["Pid"]) for fd in fds}
            return set()

        assert watched() == set(served.workers())
        count = len(proc.files(served.pid))
        for pid in served.workers():
            os.kill(pid, SIGKILL)
            wait_whole(served, 3, but=pid)
        wait_for(lambda: watched() == set(served.workers()), 10, "pidfds of the new workers")
        wait_for(lambda: len(proc.files(served.pid)) <= count, 10, "no more descriptors than before")

    @pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace whose next pid can be chosen takes root")
    def test_a_stranger_with_the_old_number_is_not_hit(self, tmp_path):
        """F07: a worker that somebody else has buried is not signalled, though its number lives again."""
        script = tmp_path / "reuse.py"
        script.write_text(
            "import os, signal\nfrom poolserver import process\n"
            "worker = process.fork(lambda report_fd: 0)\n"
            "os.waitpid(worker.pid, 0)  # somebody else's reaper\n"
            "open('/proc/sys/kernel/ns_last_pid', 'w').write(str(worker.pid - 1))\n"
            "stranger = process.fork(lambda report_fd: signal.pause())\n"
            "assert stranger.pid == worker.pid\n"
            "worker.send(signal.SIGKILL)\n"
            "print('unhurt' if os.waitpid(stranger.pid, os.WNOHANG) == (0, 0) else 'hit')\n"
        )
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.stdout == "unhurt\n", done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a PID namespace takes root")
class TestF10Init:
    @pytest.fixture
    def init(self, daemon) -> Iterator[tuple]:
        """A daemon that is PID 1 of its namespace, and its pid out here: its own idea of it must never be signalled."""
        unshare = ("unshare", "--fork", "--kill-child", "--pid", "--mount-proc")
        served = daemon("fork_handlers:FatalHandler", program=(*unshare, *COMMAND), ready=False)
        wait_for(lambda: "ready on" in served.log() or served.process.poll() is not None, 20, "the ready line")
        assert "(pid 1, " in served.log(), served.log()
        (pid,) = proc.children(served.process.pid)
        yield served, pid
        served.process.kill()  # its death takes the namespace along, and clean_up meets nobody
        served.process.wait()

    @pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.soak)], ids="{} orphans".format)
    def test_buries_orphans_and_stops(self, init, count):
        """F10, R16: TERM is heeded by a PID 1, and grandchildren that handlers leave do not stay as zombies."""
        served, pid = init
        for _ in range(count):
            assert ask(served, b"orphan\n") == b"orphaned\n"
        wait_for(lambda: not proc.zombies(pid) and len(proc.children(pid)) == 2, 20, "burials")
        os.kill(pid, SIGTERM)
        assert served.process.wait(20) == 0

    def test_replaces_workers(self, init):
        """F10: whoever of the two buries a dead worker, it is missed and replaced."""
        served, pid = init
        first = set(proc.children(pid))
        for worker in first:
            os.kill(worker, SIGKILL)
        wait_for(lambda: len(set(proc.children(pid)) - first) == 2 and not proc.zombies(pid), 20, "replacements")
        assert served.log().count("was killed by SIGKILL; replacing it") == 2
        assert ask(served, b"echo on\n") == b"on\n"


class TestF12SharedEpoll:
    def test_no_epoll_is_older_than_its_process(self, daemon):
        """F12: the master has none to share, each worker two of its own (one for lanes that leave), and kills disturb
        no sibling."""
        served = daemon("handlers:LineHandler", workers=2)
        assert "anon_inode:[eventpoll]" not in proc.files(served.pid).values()
        for pid in served.workers():
            assert list(proc.files(pid).values()).count("anon_inode:[eventpoll]") == 2
        os.kill(served.workers()[0], SIGKILL)
        assert storm(served, clients=8, requests=20).is_lossless


class TestF15FrozenHeap:
    def test_collection_in_a_worker_keeps_shared_pages_shared(self, daemon, tmp_path):
        """F15: with a heap of about 100 MB in the master, 1 MB and the worker's own (4 in all), where 40 were."""
        env = customized(tmp_path, "heap = [{'k': i, 'v': [i]} for i in range(300_000)]\n")
        served = daemon("fork_handlers:FatalHandler", workers=1, env=env)
        assert int(ask(served, b"dirty\n")) < 4096


class TestF16FullPipe:
    def test_reports_to_a_master_that_does_not_read_block_nobody(self, daemon):
        """F16: more reports than its pipe holds; then the one that counts is heeded."""
        served = daemon("fork_handlers:FatalHandler", workers=1)
        served.signal(signal.SIGSTOP)
        assert ask(served, b"shutdown 70000\n") == b"asked\n"
        assert ask(served, b"echo on\n") == b"on\n"
        served.signal(signal.SIGCONT)
        assert served.wait() == 0


class TestF17Clocks:
    def test_supervision_knows_no_wall_clock(self):
        """F17: time.time and its kin are used by the log alone, to stamp lines, and by status, to tell of ages."""
        allowed = {"lines.py": {"strftime", "localtime"}, "metrics.py": {"time", "clock_gettime", "CLOCK_BOOTTIME"}}
        for path in Path(poolserver.__file__).parent.glob("*.py"):
            used = {
                node.attr
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
            }
            wall = used - {"monotonic", "monotonic_ns", "sleep", "perf_counter", "thread_time", "process_time"}
            wall -= {"clock_gettime", "clock_gettime_ns", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC"}  # steady ones
            assert wall <= allowed.get(path.name, set()), path.name

    def test_clock_that_jumps_by_hours_kills_nobody(self, daemon, tmp_path):
        """F17, R15: each look at the wall clock is an hour before or after the last; workers stay, deadlines hold."""
        env = customized(
            tmp_path,
            "import itertools, time\nreal, jumps = time.time, itertools.cycle([3600, -3600])\n"
            "time.time = lambda: real() + next(jumps)\n",
        )
        served = daemon("fork_handlers:SlowHandler", "--set", "timeouts.boot=20", env=env)
        workers = served.workers()
        assert storm(served, clients=8, requests=3).is_lossless
        assert served.workers() == workers
        assert served.stop() == 0
        assert not re.search("ERROR|WARNING", served.log())


class TestF18StoppedWorker:
    def test_clients_go_to_the_others(self, daemon):
        """F18: with the shared listener a worker under SIGSTOP that has no connection costs no client anything."""
        served = daemon("handlers:LineHandler", workers=2, threads=4)
        assert storm(served, clients=4, requests=10).is_lossless
        stopped = served.workers()[0]
        wait_for(lambda: served.status()["pool"]["busy"] == 0, 10, "it to have no connection")
        proc.suspend(stopped)
        counts = storm(served, clients=8, requests=25)
        assert counts.is_lossless, counts
        os.kill(stopped, signal.SIGCONT)
        assert served.stop() == 0


class TestStolenWakeup:
    def test_queued_client_is_found_all_the_same(self, daemon):
        """A sibling that is killed between wake-up and accept takes the wake-up along: others look again by themselves.

        One worker has no free lane but a handler that steals; the other registered after it, so it is not woken.
        """
        served = daemon("fork_handlers:FatalHandler", workers=2, threads=2)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(served)) for _ in range(4)]  # every lane of both
            pids = []
            for client in clients:
                client.sendall(b"pid\n")
                pids.append(int(read_line(client)))
            thief, busy = (client for client, pid in zip(clients, pids, strict=True) if pid == pids[0])
            victim = next(pid for pid in pids if pid != pids[0])
            busy.sendall(b"hold\n")
            assert read_line(busy) == b"holding\n"
            thief.sendall(b"steal\n")
            assert read_line(thief) == b"stealing\n"
            os.kill(victim, SIGKILL)
            (fresh,) = wait_whole(served, 2, but=victim) - {pids[0]}
            wait_for(lambda: is_waiting(fresh), 10, "its lanes")
            # again, should a routine look of the fresh worker have come before the thief could run
            wait_for(lambda: int(ask(served, b"pid\n")) == fresh and is_readable(thief), 20, "a theft")
            assert read_line(thief) == b"stolen\n"


def is_readable(client: socket.socket) -> bool:
    """Whether an answer is there."""
    return bool(select.select([client], [], [], 0)[0])


def is_waiting(pid: int) -> bool:
    """Whether two lanes of it wait in epoll_wait(2)."""
    waits = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/wchan")]
    return sum("ep_poll" in wait or "epoll" in wait for wait in waits) == 2


class TestF19Respawn:
    def test_replacement_answers_soon(self, daemon):
        """F19: from the kill to an answer of the only worker's replacement; 2 ms were measured, 50 are the figure."""
        served = daemon("handlers:OrderHandler", workers=1, threads=1)
        taken = []
        for _ in range(10):
            victim = int(ask(served, b"pid\n"))
            start = time.monotonic()
            os.kill(victim, SIGKILL)
            wait_whole(served, 1, but=victim)
            assert int(ask(served, b"pid\n")) != victim
            taken.append(time.monotonic() - start)
        assert statistics.median(taken) < 3.0, taken  # on a busy machine, too
