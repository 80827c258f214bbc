"""Starts that must not succeed, and those that must though their surroundings are hostile."""

import socket
import sys
from signal import SIGKILL

import pytest
from clients import Address, ask, own_port, wait_for


class Blind:
    """A daemon of ``handlers:OrderHandler`` that cannot say where it is: at a port that the test chose."""

    def __init__(self, port: int) -> None:
        self.url = f"tcp://127.0.0.1:{port}"
        self.addresses = [Address.parse(self.url)]

    def is_up(self) -> bool:
        """Whether it serves by now."""
        try:
            return ask(self, b"echo up\n") == b"up\n"
        except OSError:
            return False


class TestExitCodes:
    def test_wrong_command_line_is_2(self, daemon):
        """No handler, an unknown option."""
        assert daemon(None, ready=False).wait() == 2
        assert daemon("handlers:LineHandler", "--no-such-option", ready=False).wait() == 2

    def test_refused_bind_is_71(self, daemon, tmp_path):
        """A folder that is not there."""
        served = daemon("handlers:LineHandler", bind=f"unix:{tmp_path}/none/socket", ready=False)
        assert served.wait() == 71
        assert served.log().startswith(
            f"poolserver: cannot bind unix:{tmp_path}/none/socket: No such file or directory;"
        )

    def test_unknown_key_is_78(self, daemon):
        """The configuration cannot be used."""
        served = daemon("handlers:LineHandler", "--set", "pool.wrokers=3", ready=False)
        assert served.wait() == 78
        assert "wrokers" in served.log()


class TestFirstBoot:
    @pytest.mark.parametrize("workers", [0, 1, 4])
    def test_handler_that_does_not_import_ends_it_with_78(self, daemon, tmp_path, workers):
        """One clear line names the cause, once for all workers; the traceback stands below it."""
        (tmp_path / "broken.py").write_text("import no_such_module\n")
        served = daemon("broken:Handler", workers=workers, ready=False)
        assert served.wait() == 78
        lines = served.log().splitlines()
        assert "cannot import broken: ModuleNotFoundError: No module named 'no_such_module'" in lines[0]
        assert lines[0].startswith("poolserver: ")
        assert lines[1] == "Traceback (most recent call last):"
        assert served.log().count("Traceback") == 1

    @pytest.mark.parametrize(
        ("code", "cause"),
        [
            ("import os; os._exit(3)", "exited with code 3"),
            ("raise SystemExit('no licence')", "no licence"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
            ("raise RuntimeError('x' * 1_000_000)", "RuntimeError: xxx"),
        ],
        ids=["_exit", "SystemExit", "KeyboardInterrupt", "SIGKILL", "long reason"],
    )
    def test_worker_that_dies_in_the_import_ends_it_with_78(self, daemon, tmp_path, code, cause):
        """However it dies; a reason longer than the pipe holds blocks nobody (F16)."""
        (tmp_path / "fatal.py").write_text(code)
        served = daemon("fatal:Handler", workers=2, ready=False)
        assert served.wait() == 78
        first = served.log().splitlines()[0]
        assert first.startswith("poolserver: no worker could start: ")
        assert cause in first

    def test_one_that_is_not_ready_in_time_ends_it_with_78(self, daemon, tmp_path):
        """An import that never ends is killed at timeouts.boot, and named."""
        (tmp_path / "endless.py").write_text("while True: pass\n")
        served = daemon("endless:Handler", "--set", "timeouts.boot=0.5", workers=2, ready=False)
        assert served.wait() == 78
        assert "was not accepting within timeouts.boot = 0.5 s" in served.log()

    def test_one_whose_first_connection_hangs_is_ready_all_the_same(self, daemon):
        """It waits in the queue before the start, and its handler holds the interpreter's lock at once: the worker
        accepts, which is all that ready says. Else none would ever have started, and the service ended with 78."""
        queue_one = (
            "import os, socket, sys; listener = socket.create_server(('127.0.0.1', 0));"
            "client = socket.create_connection(listener.getsockname()); client.sendall(b'freeze 60\\n');"
            "os.dup2(listener.fileno(), 9); os.set_inheritable(client.fileno(), True);"
            "os.execv(sys.executable, [sys.executable, '-m', 'poolserver', 'run', *sys.argv[1:]])"
        )
        served = daemon(
            "handlers:OrderHandler", bind="fd://9", workers=1, program=(sys.executable, "-c", queue_one), ready=False
        )
        served.wait_ready()


class TestSecondStart:
    def test_on_a_taken_port_fails_and_names_the_holder(self, daemon):
        """The first goes on serving (R26)."""
        first = daemon("handlers:LineHandler")
        second = daemon("handlers:LineHandler", bind=f"tcp://127.0.0.1:{first.port}", ready=False)
        assert second.wait() == 71
        assert f"cannot bind tcp://127.0.0.1:{first.port}: Address already in use; held by pid " in second.log()
        assert "Traceback" not in second.log()
        assert ask(first, b"hello\n") == b"hello\n"

    @pytest.mark.parametrize("scheme", ["unix", "unixgram"])
    def test_on_a_live_unix_socket_fails_and_steals_nothing(self, daemon, tmp_path, scheme):
        """The file stays the first one's, which serves on."""
        path = tmp_path / "socket"
        handler = "poolserver.examples.echo:EchoHandler"
        first = daemon(handler, bind=f"{scheme}:{path}")
        inode = path.stat().st_ino
        second = daemon(handler, bind=f"{scheme}:{path}", ready=False)
        assert second.wait() == 71
        assert f"cannot bind {scheme}:{path}: a live server owns this socket" in second.log()
        assert path.stat().st_ino == inode
        assert ask(first, b"hello\n") == b"hello\n"

    def test_replaces_a_stale_unix_socket(self, daemon, tmp_path):
        """One that nobody listens on, left by a process that was killed with all its children."""
        path = tmp_path / "socket"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
            dead.listen()
        served = daemon("handlers:LineHandler", bind=f"unix:{path}")
        assert ask(served, b"hello\n") == b"hello\n"

    def test_does_not_touch_a_file_that_is_no_socket(self, daemon, tmp_path):
        """A mistyped path costs no data."""
        path = tmp_path / "precious"
        path.write_text("data")
        served = daemon("handlers:LineHandler", bind=f"unix:{path}", ready=False)
        assert served.wait() == 71
        assert path.read_text() == "data"

    def test_right_after_a_killed_master_binds_at_first_try(self, daemon):
        """Its orphans let go of the address before they have finished (F09)."""
        bind = f"tcp://127.0.0.1:{own_port()}"
        first = daemon("handlers:OrderHandler", bind=bind, workers=4)
        workers = first.workers()
        assert first.stop(SIGKILL) == -SIGKILL
        wait_for(lambda: "the master is gone" in first.log() or not first.processes(), 10, "the orphans to notice")
        assert first.wait_gone(10) == []
        second = daemon("handlers:OrderHandler", bind=bind)
        assert int(ask(second, b"pid\n")) not in workers


class TestStandardError:
    @pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&- >&- 2>&-", "2> >(:)"])
    def test_that_cannot_be_written_stops_nobody(self, daemon, redirection):
        """Full disk, closed, a pipe that nobody has: it serves, survives handlers that raise, and ends with 0 (R20)."""
        blind = Blind(own_port())
        program = ("/bin/bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-m", "poolserver", "run")
        served = daemon("handlers:OrderHandler", bind=blind.url, workers=1, program=program, ready=False)
        wait_for(lambda: served.process.poll() is not None or blind.is_up(), 20, "the first answer")
        for _ in range(5):
            assert ask(blind, b"raise\n") == b""
        assert ask(blind, b"echo still here\n") == b"still here\n"
        assert served.stop() == 0
