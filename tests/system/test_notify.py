"""The service under a real systemd: when it is ready, what it is told, what becomes of clients when it is restarted."""

import struct
import time
from signal import SIGHUP, SIGKILL, SIGSTOP
from socket import SHUT_WR, SO_LINGER, SOL_SOCKET, socket

import pytest
from clients import Served, ask, connect, read_line, wait_for

URL = "tcp://127.0.0.1:20100"

soak = [pytest.mark.soak, pytest.mark.timeout(180)]

SERVICE = """
[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
Environment=PYTHONPATH=/run/repo:/run/repo/tests/daemon RUNTIME_DIRECTORY=/run/pool {environment}
ExecStart=/run/venv/bin/python -m poolserver run {arguments}
RuntimeDirectory=pool
KillMode=mixed
NonBlocking=yes
Restart=on-failure
RestartSec=200ms
FileDescriptorStoreMax=8
StandardError=append:/run/share/service.log
{more}
"""


def service(arguments: str, more: str = "", environment: str = "") -> str:
    """A unit that runs it with these arguments."""
    return SERVICE.format(arguments=arguments, more=more, environment=environment)


class TestReady:
    def test_start_returns_when_the_workers_accept(self, sandbox):
        """With Type=notify; the status tells live numbers."""
        sandbox.unit("pool.service", service(f"handlers:LineHandler -b {URL} -w 2 -t 2"))
        sandbox.systemctl("start", "pool")
        assert sandbox.ask(URL, b"hello\n") == b"hello\n"
        status = "serving: 0 of 4 lanes busy, 0 parked; 1 accepted, "
        wait_for(lambda: sandbox.show("pool", "StatusText").startswith(status), 20, "the status")
        sandbox.systemctl("stop", "pool")
        assert sandbox.show("pool", "Result") == "success"

    def test_start_that_fails_tells_why(self, sandbox):
        """The reason stands in the status, its errno beside it, and a configuration that is wrong is not retried."""
        sandbox.unit("pool.service", service(f"no_such_module:Handler -b {URL}", "RestartPreventExitStatus=78"))
        sandbox.systemctl("start", "pool", check=False)
        assert sandbox.show("pool", "ExecMainStatus") == "78"
        assert sandbox.show("pool", "NRestarts") == "0"
        assert sandbox.show("pool", "StatusErrno") == "22"
        assert "cannot import no_such_module" in sandbox.show("pool", "StatusText")

    def test_port_in_use_is_told_as_its_errno(self, sandbox):
        """EADDRINUSE, 98."""
        sandbox.unit("first.service", service(f"handlers:LineHandler -b {URL}"))
        other = f"handlers:LineHandler -b {URL} --set control.socket=/run/share/other.sock"
        sandbox.unit("second.service", service(other, "Restart=no"))
        sandbox.systemctl("start", "first")
        sandbox.systemctl("start", "second", check=False)
        assert sandbox.show("second", "StatusErrno") == "98"
        assert sandbox.show("second", "ExecMainStatus") == "71"

    def test_start_that_takes_longer_than_systemd_waits_is_extended(self, sandbox):
        """As long as the pool still tries: here seven seconds, where the unit gives five."""
        sandbox.share.joinpath("slow.py").write_text(
            "import time; time.sleep(7)\nfrom handlers import *\n"
        )  # the import
        more = "TimeoutStartSec=5s\nEnvironment=POOLSERVER_SERVER__PYTHONPATH=/run/share"
        sandbox.unit("pool.service", service(f"slow:LineHandler -b {URL} -w 1", more))
        sandbox.systemctl("start", "pool")
        assert sandbox.ask(URL, b"hello\n") == b"hello\n"


class TestStop:
    @pytest.mark.parametrize("mode", ["mixed", "control-group"])
    def test_stop_waits_for_open_connections(self, sandbox, mode):
        """Longer than the unit's own time-out, since the drain is extended as long as it goes on; also where systemd
        tells the workers, too (R66)."""
        more = f"TimeoutStopSec=1500ms\nKillMode={mode}"
        sandbox.unit("pool.service", service(f"handlers:OrderHandler -b {URL} -w 1", more))
        sandbox.systemctl("start", "pool")
        with sandbox.inside(lambda: connect(Served(URL))) as client:
            client.sendall(b"hold\n")
            assert read_line(client) == b"holding\n"
            sandbox.systemctl("stop", "--no-block", "pool")
            wait_for(lambda: sandbox.show("pool", "SubState") == "stop-sigterm", 10, "the stop")
            asked = time.monotonic()
            wait_for(lambda: time.monotonic() > asked + 3, 10, "twice the time-out")
            client.sendall(b"go on\n")
            assert read_line(client) == b"released\n"
        wait_for(lambda: sandbox.show("pool", "ActiveState") != "deactivating", 20, "the end")
        assert sandbox.show("pool", "Result") == "success"

    def test_stop_leaves_nothing(self, sandbox):
        """No process, no socket file, no listener in the store (R67)."""
        more = "Environment=POOLSERVER_SERVER__BIND=unix:/run/share/pool.sock,tcp://127.0.0.1:20100"
        sandbox.unit("pool.service", service("handlers:LineHandler -w 2", more))
        sandbox.systemctl("start", "pool")
        wait_for(lambda: sandbox.show("pool", "NFileDescriptorStore") == "2", 10, "two stored listeners")
        assert sandbox.share.joinpath("pool.sock").is_socket()
        sandbox.systemctl("stop", "pool")
        assert sandbox.show("pool", "NFileDescriptorStore") == "0"
        assert not sandbox.share.joinpath("pool.sock").exists()
        wait_for(lambda: sandbox.refuses(URL), 10, "the listener to be closed")


class TestWatchdog:
    def test_stopped_master_is_restarted(self, sandbox):
        """SIGSTOP: its loop stands still, and so does the herald."""
        sandbox.unit("pool.service", service(f"handlers:LineHandler -b {URL} -w 2", "WatchdogSec=2s"))
        sandbox.systemctl("start", "pool")
        first = sandbox.main_pid("pool")
        sandbox.kill(first, SIGSTOP)
        wait_for(lambda: sandbox.main_pid("pool") not in (0, first), 20, "another master")
        wait_for(lambda: sandbox.show("pool", "SubState") == "running", 20, "its start")
        assert sandbox.ask(URL, b"hello\n") == b"hello\n"
        assert "Watchdog timeout" in sandbox.log()

    def test_pool_that_hangs_again_and_again_is_restarted(self, sandbox):
        """Every worker hangs, and so does each that replaces one: the master lives, but the pool does not (R62)."""
        options = "--set timeouts.worker=1 --set timeouts.graceful=1"
        sandbox.unit("pool.service", service(f"handlers:OrderHandler -b {URL} -w 2 {options}", "WatchdogSec=2s"))
        sandbox.systemctl("start", "pool")
        first = sandbox.main_pid("pool")

        def freeze(client: socket, _line: bytes) -> bool:
            # Who gives up resets: else the kept queue would be full of such orders, and the next master hang as long.
            client.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(b"freeze 60\n")
            return read_line(client) == b"thawed\n"

        with sandbox.storm(URL, clients=8, timeout=1.0, exchange=freeze):
            wait_for(lambda: "Watchdog timeout" in sandbox.log(), 40, "the watchdog")
        wait_for(lambda: sandbox.main_pid("pool") not in (0, first), 20, "another master")
        wait_for(lambda: sandbox.show("pool", "SubState") == "running", 20, "its start")
        assert sandbox.ask(URL, b"echo served again\n", timeout=20) == b"served again\n"
        assert "gives no signs of life" in sandbox.service_log()

    def test_service_in_good_health_is_let_be(self, sandbox):
        """For longer than the watchdog waits, and once more in a drain."""
        sandbox.unit("pool.service", service(f"handlers:OrderHandler -b {URL} -w 1", "WatchdogSec=3s"))
        sandbox.systemctl("start", "pool")
        assert sandbox.ask(URL, b"sleep 4\n") == b"slept\n"
        client = sandbox.inside(lambda: connect(Served(URL)))
        with client:
            client.sendall(b"echo\n")
            assert read_line(client) == b"\n"
            client.sendall(b"sleep 4\n")
            client.shutdown(SHUT_WR)
            sandbox.systemctl("stop", "pool")
            assert read_line(client) == b"slept\n"
        assert sandbox.show("pool", "Result") == "success"


class TestStore:
    def test_killed_master_costs_nobody_that_waits(self, sandbox):
        """Listeners are in systemd's store: while there is no master, clients wait in their queue."""
        sandbox.unit("pool.service", service(f"handlers:LineHandler -b {URL} -w 2 -t 4"))
        sandbox.systemctl("start", "pool")
        with sandbox.storm(URL, clients=32) as storm:
            storm.wait_for_more(500)
            first = sandbox.main_pid("pool")
            sandbox.kill(first, SIGKILL)
            wait_for(lambda: sandbox.main_pid("pool") not in (0, first), 20, "another master")
            storm.wait_for_more(500)
        counts = storm.counts
        assert (counts.refused, counts.timed_out, counts.other) == (0, 0, 0), counts
        assert counts.lost <= 8, f"more than were in handlers: {counts}"

    def test_restart_costs_nobody_where_the_store_is_known(self, sandbox):
        """$FDSTORE, as systemd 254 sets it and our units do: the door stays open, and the next master serves on."""
        sandbox.unit("pool.service", service(f"handlers:LineHandler -b {URL} -w 2 -t 4", environment="FDSTORE=8"))
        sandbox.systemctl("start", "pool")
        with sandbox.storm(URL, clients=8) as storm:
            for _ in range(2):
                storm.wait_for_more(200)
                sandbox.systemctl("restart", "pool")
            storm.wait_for_more(200)
        assert storm.counts.is_lossless, storm.counts

    def test_restart_without_a_known_store_closes_the_door(self, sandbox):
        """Then nothing is left in it that the next master would adopt: a listener that takes nobody."""
        sandbox.unit("pool.service", service(f"handlers:LineHandler -b {URL} -w 2"))
        sandbox.systemctl("start", "pool")
        wait_for(lambda: sandbox.show("pool", "NFileDescriptorStore") == "1", 10, "the stored listener")
        for _ in range(2):
            sandbox.systemctl("restart", "pool")
            assert sandbox.ask(URL, b"hello\n") == b"hello\n"

    def test_listener_that_is_configured_no_more_is_not_kept(self, sandbox):
        """What the next master does not bind leaves the store, and its address is free."""
        sandbox.unit("pool.service", service(f"handlers:LineHandler -b {URL} -w 1", environment="FDSTORE=8"))
        sandbox.systemctl("start", "pool")
        other = "tcp://127.0.0.1:20101"
        sandbox.unit("pool.service", service(f"handlers:LineHandler -b {other} -w 1", environment="FDSTORE=8"))
        sandbox.systemctl("restart", "pool")
        assert sandbox.ask(other, b"hello\n") == b"hello\n"
        wait_for(lambda: sandbox.refuses(URL), 10, "the listener to be closed")

    def test_listener_that_a_reload_closes_leaves_the_store(self, sandbox):
        """And one that it opens goes there."""
        path = sandbox.share / "pool.toml"
        text = '[server]\nhandler = "handlers:LineHandler"\nbind = ["tcp://127.0.0.1:20100", "{}"]\n'
        path.write_text(text.format("tcp://127.0.0.1:20101"))
        sandbox.unit("pool.service", service("-c /run/share/pool.toml -w 1"))
        sandbox.systemctl("start", "pool")
        path.write_text(text.format("unix:/run/share/other.sock"))
        sandbox.kill(sandbox.main_pid("pool"), SIGHUP)
        wait_for(lambda: "no longer listening on tcp://127.0.0.1:20101" in sandbox.service_log(), 20, "the reload")
        wait_for(lambda: sandbox.show("pool", "NFileDescriptorStore") == "2", 10, "two in the store")
        sandbox.kill(first := sandbox.main_pid("pool"), SIGKILL)
        wait_for(lambda: sandbox.main_pid("pool") not in (0, first), 20, "another master")
        assert sandbox.ask(URL, b"hello\n", timeout=20) == b"hello\n"
        assert ask(Served(f"unix:{sandbox.share}/other.sock"), b"hello\n") == b"hello\n"
        assert sandbox.refuses("tcp://127.0.0.1:20101")


SOCKET = """
[Socket]
{more}
[Install]
WantedBy=sockets.target
"""


class TestActivation:
    def test_first_client_starts_it(self, sandbox):
        """``systemd:`` takes whatever was passed."""
        sandbox.unit("pool.socket", SOCKET.format(more="ListenStream=127.0.0.1:20100"))
        sandbox.unit("pool.service", service("handlers:LineHandler -b systemd: -w 2"))
        sandbox.systemctl("start", "pool.socket")
        assert sandbox.ask(URL, b"hello\n", timeout=20) == b"hello\n"
        wait_for(lambda: f"ready on {URL} (pid" in sandbox.service_log(), 10, "the ready line")

    def test_two_named_sockets_go_where_they_are_named(self, sandbox):
        """``systemd:NAME``; the datagrams' to another listener of the same service."""
        sandbox.unit(
            "a.socket",
            SOCKET.format(more="ListenStream=127.0.0.1:20100\nFileDescriptorName=lines\nService=pool.service"),
        )
        sandbox.unit(
            "b.socket",
            SOCKET.format(more="ListenStream=/run/share/b.sock\nFileDescriptorName=more\nService=pool.service"),
        )
        sandbox.unit(
            "pool.service",
            service("handlers:LineHandler -b systemd:more -b systemd:lines -w 1", "Sockets=a.socket b.socket"),
        )
        sandbox.systemctl("start", "a.socket", "b.socket")
        assert sandbox.ask(URL, b"hello\n", timeout=20) == b"hello\n"
        assert ask(Served(f"unix:{sandbox.share}/b.sock"), b"hello\n") == b"hello\n"
        wait_for(lambda: f"ready on unix:/run/share/b.sock, {URL} (pid" in sandbox.service_log(), 10, "the ready line")

    def test_passed_socket_is_adopted_for_the_url_that_it_is_bound_to(self, sandbox):
        """The same configuration serves with and without a socket unit; [::] takes IPv4 clients as systemd bound it."""
        sandbox.unit("pool.socket", SOCKET.format(more="ListenStream=20100"))
        sandbox.unit("pool.service", service("handlers:LineHandler -b tcp://:20100 -w 1"))
        sandbox.systemctl("start", "pool.socket")
        assert sandbox.ask(URL, b"hello\n", timeout=20) == b"hello\n"
        assert sandbox.ask("tcp://[::1]:20100", b"hello\n") == b"hello\n"
        sandbox.systemctl("stop", "pool.service", "pool.socket")
        sandbox.systemctl("start", "pool.service")
        assert sandbox.ask(URL, b"hello\n") == b"hello\n"

    @pytest.mark.parametrize("restarts", [2, pytest.param(20, marks=soak)])
    def test_restarts_behind_a_socket_unit_cost_nobody(self, sandbox, restarts):
        """The socket is systemd's: its queue goes on (R61)."""
        sandbox.unit("pool.socket", SOCKET.format(more="ListenStream=127.0.0.1:20100"))
        sandbox.unit("pool.service", service("handlers:LineHandler -b systemd: -w 2"))
        sandbox.systemctl("start", "pool.socket")
        with sandbox.storm(URL, clients=4, timeout=20) as storm:
            for _ in range(restarts):
                storm.wait_for_more(100)
                sandbox.systemctl("restart", "pool.service")
            storm.wait_for_more(100)
        assert storm.counts.is_lossless, storm.counts

    def test_name_that_was_not_passed_is_refused(self, sandbox):
        """With what was: exit code 71."""
        sandbox.unit("pool.socket", SOCKET.format(more="ListenStream=127.0.0.1:20100"))
        sandbox.unit("pool.service", service("handlers:LineHandler -b systemd:other", "Restart=no"))
        sandbox.systemctl("start", "pool.socket")
        sandbox.systemctl("start", "pool.service", check=False)
        assert sandbox.show("pool.service", "ExecMainStatus") == "71"
        assert f"cannot adopt systemd:other: systemd passed pool.socket ({URL})" in sandbox.service_log()


class TestUpgrade:
    def upgrade(self, sandbox, *, check: bool = True) -> str:
        control = ("--control", "/run/pool/control.sock")
        environ = ("env", "PYTHONPATH=/run/repo")
        return sandbox.run(*environ, sandbox.python, "-m", "poolserver", "upgrade", *control, check=check)

    @pytest.mark.parametrize("is_activated", [False, True], ids=["own listener", "socket unit"])
    def test_unit_stays_active_under_the_new_main_pid(self, sandbox, is_activated):
        """R64: watched on, its listener where it was, and nobody is lost; twice, and then it stops as ever."""
        if is_activated:
            sandbox.unit("pool.socket", SOCKET.format(more="ListenStream=127.0.0.1:20100"))
        arguments = f"handlers:LineHandler -b {URL} -w 2 -t 4"
        sandbox.unit("pool.service", service(arguments, "WatchdogSec=3s", environment="FDSTORE=8"))
        sandbox.systemctl("start", *(["pool.socket"] if is_activated else []), "pool.service")
        stored = sandbox.show("pool.service", "NFileDescriptorStore") if is_activated else "1"
        pids = [sandbox.main_pid("pool.service")]
        with sandbox.storm(URL, clients=4) as storm:
            for _ in range(2):
                storm.wait_for_more(50)
                self.upgrade(sandbox)
                wait_for(lambda: sandbox.main_pid("pool.service") not in (0, *pids), 10, "systemd to know")
                pids.append(sandbox.main_pid("pool.service"))
                wait_for(lambda: not sandbox.is_alive(pids[-2]), 20, "the old master's end")
            storm.wait_for_more(50)
        assert storm.counts.is_lossless, storm.counts
        assert len({*pids}) == 3
        wait_for(lambda: sandbox.show("pool.service", "StatusText").startswith("serving: "), 20, "the new one's status")
        seen = int(sandbox.show("pool.service", "WatchdogTimestampMonotonic"))
        wait_for(
            lambda: int(sandbox.show("pool.service", "WatchdogTimestampMonotonic")) > seen + 4_000_000,
            20,
            "signs of life for longer than the watchdog waits",
        )
        assert sandbox.main_pid("pool.service") == pids[-1]
        assert sandbox.show("pool.service", "ActiveState") == "active"
        assert sandbox.show("pool.service", "NRestarts") == "0"
        assert sandbox.show("pool.service", "NFileDescriptorStore") == stored
        sandbox.systemctl("stop", "pool.service")
        assert sandbox.show("pool.service", "Result") == "success"
        assert not sandbox.is_alive(pids[-1])

    def test_upgrade_that_fails_leaves_the_unit_as_it_was(self, sandbox):
        """The reason is told; the same main pid goes on, and is restarted when it dies."""
        code = sandbox.share.joinpath("late.py")
        code.write_text("from handlers import *\n")
        more = "Environment=POOLSERVER_SERVER__PYTHONPATH=/run/share"
        sandbox.unit("pool.service", service(f"late:LineHandler -b {URL} -w 1", more))
        sandbox.systemctl("start", "pool")
        first = sandbox.main_pid("pool")
        code.write_text("import no_such_module\n")
        assert "cannot import late" in self.upgrade(sandbox, check=False)
        assert (sandbox.main_pid("pool"), sandbox.show("pool", "ActiveState")) == (first, "active")
        assert sandbox.ask(URL, b"hello\n") == b"hello\n"
        code.write_text("from handlers import *\n")
        sandbox.kill(first, SIGKILL)
        wait_for(lambda: sandbox.main_pid("pool") not in (0, first), 20, "another master")
        assert sandbox.ask(URL, b"hello\n", timeout=20) == b"hello\n"
