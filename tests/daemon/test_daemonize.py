"""``--daemon``: what the launching shell learns, and what surrounds the daemon then."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR1

import pytest
from clients import ask, connect, read_line, wait_for
from proc import files, is_alive

ECHO = "poolserver.examples.echo:EchoHandler"


def program(before: str) -> tuple[str, str, str]:
    """A program that does something first, and goes on as ``poolserver run``."""
    after = "os.execv(sys.executable, [sys.executable, '-m', 'poolserver', 'run', *sys.argv[1:]])"
    return (sys.executable, "-c", f"import os, sys; {before}; {after}")


@pytest.fixture
def launch(daemon):
    """Starts a daemon, waits for the end of what launched it, and has it ended with the test."""

    def start(*args, code=0, **options):
        launched = daemon(*args, "--daemon", ready=False, **options)
        assert launched.process.wait(30) == code, launched.log()
        if code == 0:
            launched.adopt(launched.pid)
        return launched

    return start


class TestLaunch:
    def test_shell_learns_that_it_serves(self, launch):
        """0, once and only when it does; the ready line names the daemon."""
        served = launch(ECHO)
        assert ask(served, b"hello\n") == b"hello\n"
        assert served.pid != served.process.pid
        assert len(served.ready_lines()) == 1

    def test_daemon_stands_alone(self, launch, tmp_path):
        """A session of another's, which it does not lead, so that it can never get a terminal; nobody's descriptors."""
        before = "os.dup2(os.open('/dev/null', 0), 9)"
        served = launch(ECHO, "--set", f"log.file={tmp_path}/log", program=program(before))
        assert os.getsid(served.pid) not in (served.pid, os.getsid(0))
        assert os.getpgid(served.pid) != served.pid
        for pid in (served.pid, *served.workers()):
            found = files(pid)
            assert found[0] == "/dev/null"
            assert found[1] == found[2] == str(tmp_path / "log")
            assert "/dev/null" not in [name for fd, name in found.items() if fd > 2]

    def test_daemon_keeps_what_it_is_not_told_to_change(self, launch, tmp_path):
        """Its working directory, which relative paths start from; its limits, core dumps among them; its groups."""
        served = launch(ECHO)
        assert Path(f"/proc/{served.pid}/cwd").readlink() == tmp_path
        for name, line in (("limits", "Max core file size.*"), ("status", "Groups:.*"), ("status", "[UG]id:.*")):
            ours, its = (Path(f"/proc/{pid}/{name}").read_text() for pid in ("self", served.pid))
            assert re.findall(line, its) == re.findall(line, ours)
        assert re.search(r"Umask:\s+0027", Path(f"/proc/{served.pid}/status").read_text())

    def test_nobody_holds_the_shells_pipes(self):
        """``$(poolserver run --daemon …)`` ends when the launcher does."""
        with tempfile.TemporaryDirectory(prefix="pool-") as runtime:
            done = subprocess.run(
                [sys.executable, "-m", "poolserver", "run", ECHO, "--daemon", "-b", "tcp://127.0.0.1:0", "-w", "1"],
                env={**os.environ, "XDG_RUNTIME_DIR": runtime},
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
            pid = int(re.search(r"pid (\d+)", done.stderr)[1])
            os.kill(pid, SIGTERM)
            wait_for(lambda: not is_alive(pid), 20, "its end")

    def test_shell_without_standard_streams_can_launch(self, launch):
        """Closed 0 and 1: no socket becomes anybody's standard output."""
        served = launch(ECHO, program=("sh", "-c", f'exec {sys.executable} -m poolserver run "$@" <&- >&-', "sh"))
        assert ask(served, b"hello\n") == b"hello\n"
        assert {files(served.pid)[fd] for fd in (0, 1, 2)} == {"/dev/null"}

    def test_passed_listener_goes_along(self, launch):
        """``fd://``: all other descriptors are closed."""
        before = "import socket; s = socket.create_server(('127.0.0.1', 0)); os.dup2(s.fileno(), 9)"
        served = launch(ECHO, bind="fd://9", program=program(before))
        assert ask(served, b"hello\n") == b"hello\n"


class TestFailure:
    def test_handler_that_does_not_import_is_78_with_its_traceback(self, launch, tmp_path):
        """As without --daemon."""
        (tmp_path / "broken.py").write_text("import no_such_module\n")
        launched = launch("broken:Handler", code=78, cwd=tmp_path)
        assert "cannot import broken: ModuleNotFoundError" in launched.log().splitlines()[0]
        assert "Traceback" in launched.log()

    def test_port_in_use_is_71(self, launch):
        """With who holds it."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            launched = launch(ECHO, bind=f"tcp://127.0.0.1:{taken.getsockname()[1]}", code=71)
        assert f"Address already in use; held by pid {os.getpid()}" in launched.log()

    def test_daemon_that_dies_without_a_word_is_1(self, launch, tmp_path):
        """Here in an import, in the one process that there is."""
        (tmp_path / "fatal.py").write_text("import os; os._exit(0)")
        launched = launch("fatal:Handler", workers=0, code=1)
        assert launched.log() == "poolserver: the daemon ended before it was ready\n"

    @pytest.mark.parametrize("variable", ["NOTIFY_SOCKET", "LISTEN_FDS"])
    def test_under_systemd_it_is_refused(self, launch, variable):
        """It would be taken for ended: 78, and the reason."""
        launched = launch(ECHO, env={variable: "1"}, code=78)
        assert launched.log().startswith("poolserver: server.daemonize: systemd supervises this process")


class TestLog:
    def test_log_gets_what_handlers_print_and_follows_a_rotation(self, launch, tmp_path):
        """Opened after the detaching: no line of it goes into a client's connection."""
        log, handler = tmp_path / "log", tmp_path / "talk.py"
        handler.write_text(
            "import socketserver\n"
            "class Handler(socketserver.StreamRequestHandler):\n"
            "    def handle(self):\n"
            "        print(self.rfile.readline(), flush=True)\n"
            "        self.wfile.write(b'done\\n')\n"
        )
        served = launch("talk:Handler", "--set", f"log.file={log}", "--set", "log.level=debug")
        assert ask(served, b"first\n") == b"done\n"
        wait_for(lambda: "b'first\\n'" in log.read_text(), 10, "what the handler printed")
        log.rename(tmp_path / "log.1")
        served.signal(SIGUSR1)
        wait_for(lambda: {files(pid)[1] for pid in (served.pid, *served.workers())} == {str(log)}, 10, "the new log")
        assert ask(served, b"second\n") == b"done\n"
        wait_for(lambda: "b'second\\n'" in log.read_text(), 10, "what the handler printed")

    def test_reload_reads_a_relative_path_again(self, launch, tmp_path):
        """The daemon has not left the directory where it was given."""
        (tmp_path / "pool.toml").write_text(f'[server]\nhandler = "{ECHO}"\nbind = ["tcp://127.0.0.1:0"]\n')
        served = launch(None, "-c", "pool.toml", "--set", "log.file=log", bind=())
        served.signal(SIGHUP)
        wait_for(lambda: "reload done" in (tmp_path / "log").read_text(), 20, "the reload")


class TestPidFile:
    def test_it_names_the_master_while_it_runs(self, launch, tmp_path):
        """Readable by anybody, gone in the end; no worker has it open."""
        path = tmp_path / "pid"
        served = launch(ECHO, "--set", f"server.pidfile={path}")
        assert path.read_text() == f"{served.pid}\n"
        assert path.stat().st_mode & 0o777 == 0o644
        assert str(path) in files(served.pid).values()
        assert all(str(path) not in files(pid).values() for pid in served.workers())
        served.stop()
        assert not path.exists()

    def test_second_start_is_refused_and_names_the_first(self, launch, daemon, tmp_path):
        """71, with and without --daemon; the first goes on."""
        option = f"server.pidfile={tmp_path}/pid"
        served = launch(ECHO, "--set", option)
        message = f"server.pidfile: {tmp_path}/pid is held by pid {served.pid}, which is running"
        assert message in launch(ECHO, "--set", option, code=71).log()
        second = daemon(ECHO, "--set", option, ready=False)
        assert second.wait() == 71
        assert message in second.log()
        assert ask(served, b"hello\n") == b"hello\n"

    def test_stale_one_is_replaced(self, daemon, tmp_path):
        """Of a master that was killed, though its worker hangs on and its number may be a stranger's."""
        path = tmp_path / "pid"
        first = daemon("handlers:OrderHandler", "--set", f"server.pidfile={path}", workers=1)
        with connect(first) as client:
            client.sendall(b"freeze 3\n")
            wait_for(lambda: first.status()["pool"]["busy"] == 1, 10, "a busy lane")
            os.kill(first.pid, SIGKILL)
            assert path.read_text() == f"{first.pid}\n"
            path.write_text(f"{os.getpid()}\n")
            second = daemon(ECHO, "--set", f"server.pidfile={path}")
            assert path.read_text() == f"{second.pid}\n"
            with contextlib.suppress(OSError):  # it may have left by itself
                client.shutdown(socket.SHUT_WR)
                read_line(client)

    def test_one_that_somebody_else_has_put_there_stays(self, daemon, tmp_path):
        """At the end only our own file is removed."""
        path = tmp_path / "pid"
        served = daemon(ECHO, "--set", f"server.pidfile={path}")
        path.rename(tmp_path / "moved")
        path.write_text("another's\n")
        assert served.stop() == 0
        assert path.read_text() == "another's\n"

    def test_symbolic_link_is_refused(self, daemon, tmp_path):
        """Somebody may have planted it, and it would be their choice what is overwritten (C01)."""
        precious = tmp_path / "precious"
        precious.write_text("precious\n")
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o1777)
        (tmp_path / "open/pid").symlink_to(precious)
        refused = daemon(ECHO, "--set", f"server.pidfile={tmp_path}/open/pid", ready=False)
        assert refused.wait() == 71
        assert f"server.pidfile: cannot open {tmp_path}/open/pid: it is a symbolic link" in refused.log()
        assert precious.read_text() == "precious\n"

    def test_hard_link_is_refused(self, daemon, tmp_path):
        """Likewise."""
        precious = tmp_path / "precious"
        precious.write_text("precious\n")
        (tmp_path / "pid").hardlink_to(precious)
        refused = daemon(ECHO, "--set", f"server.pidfile={tmp_path}/pid", ready=False)
        assert refused.wait() == 71
        assert "is no plain file of ours" in refused.log()
        assert precious.read_text() == "precious\n"

    def test_folder_that_everybody_may_write_to_is_refused(self, daemon, tmp_path):
        """Without the sticky bit anybody could put another file there."""
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        refused = daemon(ECHO, "--set", f"server.pidfile={tmp_path}/open/pid", ready=False)
        assert refused.wait() == 71
        assert f"everybody may write in {tmp_path}/open" in refused.log()
        assert list((tmp_path / "open").iterdir()) == []
