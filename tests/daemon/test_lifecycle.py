"""Start and stop: signals, drains, exit codes, and nothing left behind."""

import contextlib
import os
import socket
import subprocess
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU

import proc
import pytest
from clients import Counts, answered, ask, connect, dial, read_line, wait_for

LONG_DRAIN = ("--set", "timeouts.graceful=60")
"""Longer than any test waits for an end: who ends nevertheless did not wait for it."""


def hold(served, index: int = 0) -> socket.socket:
    """A client whose handler runs until it is sent a line."""
    client = connect(served, index)
    client.sendall(b"hold\n")
    assert read_line(client) == b"holding\n"
    return client


def release(client: socket.socket) -> bytes:
    """Let the handler of ``hold`` answer; its answer."""
    client.sendall(b"go\n")
    return read_line(client)


def refuses(served) -> bool:
    """Whether nobody listens any more."""
    try:
        dial(served.addresses[0], 1.0).close()
    except OSError:
        return True
    return False


def wait_logged(served, text: str) -> None:
    """Wait until the daemon has logged ``text``."""
    wait_for(lambda: text in served.log(), 20, f"{text!r} in the log of {served}:\n{served.log()}")


class TestTerm:
    def test_open_connection_finishes(self, daemon):
        """What is in a handler when TERM comes is answered before the end."""
        served = daemon("handlers:OrderHandler", *LONG_DRAIN)
        with hold(served) as client:
            served.signal(SIGTERM)
            wait_logged(served, "stopping: open connections have 60 s")
            assert release(client) == b"released\n"
        assert served.wait() == 0

    def test_what_is_open_after_graceful_is_cut_and_named(self, daemon):
        """Handlers that wait for their clients, and those that hang: the end comes, with 0, and the log says who."""
        served = daemon("fork_handlers:FatalHandler", "--set", "timeouts.graceful=0.5", workers=1)
        with hold(served) as waiting, connect(served) as hung:
            hung.sendall(b"hang\n")
            assert read_line(hung) == b"hanging\n"
            peers = ["{}:{}".format(*client.getsockname()) for client in (waiting, hung)]
            assert served.stop(SIGTERM) == 0
        assert "cut 2 open: " in served.log()
        assert "left 1 handler(s) that did not come back: " + peers[1] in served.log()
        assert all(peer in served.log() for peer in peers)

    @pytest.mark.parametrize("scheme", ["tcp", "unix"])
    def test_accept_queue_is_served(self, daemon, tmp_path, scheme):
        """Thirty clients are queued for four lanes: none is refused, reset or truncated."""
        bind = "tcp://127.0.0.1:0" if scheme == "tcp" else f"unix:{tmp_path}/socket"
        served = daemon("fork_handlers:SlowHandler", bind=bind, workers=4, threads=1)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(served)) for _ in range(30)]
            for client in clients:
                client.sendall(b"served\n")
            served.signal(SIGTERM)
            counts = answered(clients, b"served\n")
        assert counts == Counts(ok=30)
        assert served.wait() == 0

    def test_second_term_changes_nothing(self, daemon):
        """It neither cuts what drains nor starts the drain anew."""
        served = daemon("handlers:OrderHandler", *LONG_DRAIN)
        with hold(served) as client:
            served.signal(SIGTERM)
            wait_logged(served, "stopping: ")
            served.signal(SIGTERM)
            assert proc.is_alive(served.pid)
            assert release(client) == b"released\n"
        assert served.wait() == 0
        assert served.log().count("stopping: ") == 1

    @pytest.mark.parametrize("sig", [SIGTERM, SIGINT])
    def test_signals_up_to_the_last_moment_do_not_change_the_exit_code(self, daemon, sig):
        """Who presses Ctrl-C twice, or asks again and again, still gets a clean end."""
        served = daemon("handlers:LineHandler")
        pid = served.process.pid

        def send_again() -> bool:
            while served.process.poll() is None and proc.is_alive(pid):
                os.kill(pid, sig)
            return True

        wait_for(send_again, 20, "the end")
        assert served.wait() == 0
        assert "Traceback" not in served.log()

    @pytest.mark.parametrize("instant", [step * 30 for step in range(10)], ids="{}ms".format)
    def test_at_any_instant_of_the_start_ends_cleanly(self, daemon, tmp_path, instant):
        """TERM ends it with 0, or by the signal itself before handlers stand; no process and no file stay."""
        path = tmp_path / "socket"
        served = daemon("handlers:LineHandler", bind=f"unix:{path}", ready=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            served.process.wait(instant / 1000)  # the instant itself, of which there is no fact to wait for
        assert served.stop(SIGTERM) in (0, -SIGTERM)
        assert served.wait_gone(10) == []
        assert not path.exists()
        assert "Traceback" not in served.log()

    @pytest.mark.parametrize("stage", ["title", "first child", "second child", "ready"])
    def test_at_each_stage_of_the_start_ends_cleanly(self, daemon, tmp_path, stage):
        """The same by what has happened, however slow the machine: after the first fork there are handlers."""
        path = tmp_path / "socket"
        served = daemon("handlers:LineHandler", bind=f"unix:{path}", ready=False)
        pid = served.process.pid
        reached = {
            "title": lambda: proc.title(pid).startswith("poolserver: master"),
            "first child": lambda: proc.children(pid),
            "second child": lambda: len(proc.children(pid)) == 2,
            "ready": served.ready_lines,
        }
        wait_for(reached[stage], 20, stage)
        assert served.stop(SIGTERM) in ((0, -SIGTERM) if stage == "title" else (0,))
        assert served.wait_gone(10) == []
        assert not path.exists()
        assert "Traceback" not in served.log()


class TestStopNow:
    @pytest.mark.parametrize("sig", [SIGINT, SIGQUIT])
    def test_does_not_wait_for_open_connections(self, daemon, sig):
        """INT and QUIT cut at once, and end with 0."""
        served = daemon("handlers:OrderHandler", *LONG_DRAIN)
        with hold(served):
            assert served.stop(sig) == 0
        assert "cut 1 open: 127.0.0.1:" in served.log()

    @pytest.mark.parametrize("order", ["hang", "spin"])
    def test_does_not_wait_for_hung_handlers(self, daemon, order):
        """A handler that never comes back is left, and its worker gone."""
        served = daemon("fork_handlers:FatalHandler", *LONG_DRAIN)
        with connect(served) as client:
            client.sendall(order.encode() + b"\n")
            assert read_line(client)
            assert served.stop(SIGINT) == 0

    def test_int_ends_a_drain(self, daemon):
        """Who has waited long enough after TERM sends INT."""
        served = daemon("handlers:OrderHandler", *LONG_DRAIN)
        with hold(served):
            served.signal(SIGTERM)
            wait_logged(served, "stopping: ")
            assert served.stop(SIGINT) == 0
        assert "stopping now" in served.log()

    def test_kills_a_stopped_worker(self, daemon):
        """A worker under SIGSTOP takes no order but SIGKILL."""
        served = daemon("handlers:LineHandler")
        proc.suspend(served.workers()[0])
        assert served.stop(SIGINT) == 0
        assert "did not stop within 2 s; killing it" in served.log()


class TestScale:
    def test_ttin_and_ttou_change_the_number_of_workers(self, daemon):
        """One more, one less, down to one, which stays; no client is lost on the way."""
        served = daemon("handlers:LineHandler", workers=2)
        for sig, count in ((SIGTTIN, 3), (SIGTTOU, 2), (SIGTTOU, 1)):
            served.signal(sig)
            wait_for(lambda count=count: len(served.workers()) == count, 20, f"{count} workers")
            assert ask(served, b"hello\n") == b"hello\n"
        served.signal(SIGTTOU)
        wait_logged(served, "one worker is left, and stays")
        assert len(served.workers()) == 1
        assert served.stop() == 0

    def test_ttou_lets_open_connections_finish(self, daemon):
        """The worker that goes drains first."""
        served = daemon("handlers:OrderHandler", *LONG_DRAIN, workers=2, threads=1)
        with hold(served) as one, hold(served) as other:
            served.signal(SIGTTOU)
            wait_logged(served, "scaling from 2 to 1 workers")
            assert (release(one), release(other)) == (b"released\n", b"released\n")
        wait_for(lambda: len(served.workers()) == 1, 20, "one worker")


class TestWithoutWorkers:
    @pytest.mark.parametrize("sig", [SIGTERM, SIGINT])
    def test_serves_and_stops(self, daemon, sig):
        """-w 0: no fork, and the same ends."""
        served = daemon("handlers:LineHandler", workers=0)
        assert ask(served, b"hello\n") == b"hello\n"
        assert proc.children(served.pid) == []
        assert served.stop(sig) == 0

    def test_term_lets_open_connection_finish(self, daemon):
        """The drain is that of a worker."""
        served = daemon("handlers:OrderHandler", *LONG_DRAIN, workers=0)
        with hold(served) as client:
            served.signal(SIGTERM)
            wait_logged(served, "stopping: ")
            assert release(client) == b"released\n"
        assert served.wait() == 0

    def test_hung_handler_does_not_keep_it(self, daemon):
        """INT ends it though a lane never comes back."""
        served = daemon("fork_handlers:FatalHandler", workers=0)
        with connect(served) as client:
            client.sendall(b"hang\n")
            assert read_line(client) == b"hanging\n"
            assert served.stop(SIGINT) == 0

    def test_ttin_is_answered_in_the_log(self, daemon):
        """There is no worker to add, and serving goes on."""
        served = daemon("handlers:LineHandler", workers=0)
        served.signal(SIGTTIN)
        wait_logged(served, "cannot scale: everything runs in this one process")
        assert ask(served, b"hello\n") == b"hello\n"


class TestLeavesNothingBehind:
    @pytest.mark.parametrize("sig", [SIGTERM, SIGINT, SIGKILL])
    @pytest.mark.parametrize("scheme", ["unix", "unixgram"])
    def test_neither_process_nor_socket_file(self, daemon, tmp_path, sig, scheme):
        """Also after SIGKILL of the master, whose workers tidy up."""
        path = tmp_path / "socket"
        handler = "poolserver.examples.echo:EchoHandler"
        served = daemon(handler, bind=f"{scheme}:{path}")
        assert ask(served, b"hello\n") == b"hello\n"
        assert path.is_socket()
        assert served.stop(sig) == (0 if sig != SIGKILL else -SIGKILL)
        assert served.wait_gone(10) == []
        assert not path.exists()

    def test_no_shared_segment_has_a_name(self, daemon):
        """The scoreboard is anonymous memory, which ends with its last process, however that ends."""
        served = daemon("handlers:LineHandler")
        for pid in [served.pid, *served.workers()]:
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "/dev/zero (deleted)" in maps
            assert "/dev/shm" not in maps
            assert "/SYSV" not in maps


class TestTitles:
    def test_ps_tells_master_and_workers(self, daemon):
        """With the slot and the service's name, which is the handler's module unless server.name says otherwise."""
        served = daemon("handlers:LineHandler", workers=2)
        assert proc.title(served.pid) == "poolserver: master [handlers]"
        titles = sorted(proc.title(pid) for pid in served.workers())
        assert titles == [f"poolserver: worker {slot} [handlers]" for slot in range(2)]

    def test_replacement_takes_the_slot_and_the_given_name(self, daemon):
        """A slot is stable."""
        served = daemon("handlers:LineHandler", "--set", "server.name=line", workers=2)
        first = served.workers()
        victim = next(pid for pid in first if proc.title(pid) == "poolserver: worker 1 [line]")
        os.kill(victim, SIGKILL)
        wait_for(lambda: len(set(served.workers()) - {victim}) == 2, 10, "the replacement")
        (fresh,) = set(served.workers()) - set(first)
        wait_for(lambda: proc.title(fresh) == "poolserver: worker 1 [line]", 10, "its title")
