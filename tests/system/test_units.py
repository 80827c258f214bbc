"""The units that we ship and those that ``poolserver unit`` prints, under a real systemd: the examples work in them."""

import shutil
import ssl
import sys
from pathlib import Path
from signal import SIGKILL

import pytest
from clients import Served, connect, read_line, wait_for
from pki import Pki

SYSTEMD = Path(__file__).parents[2] / "systemd"

URL = "tcp://127.0.0.1:20100"

ECHO = "poolserver.examples.echo:EchoHandler"
WEB = "poolserver.examples.web:HelloHandler"
SECURE = "poolserver.examples.secure:SecureEchoHandler"
TLS_URL = "tls://127.0.0.1:20100"

COMMAND = "/run/venv/bin/python -m poolserver"

CONFIG = """
[server]
handler = "{handler}"
name = "{name}"
bind = [{binds}]
[pool]
workers = 2
"""

HERE = f"""
[Service]
Environment=PYTHONPATH=/run/repo
ExecStartPre=
ExecStartPre={COMMAND} check -c /run/share/{{name}}.toml
ExecStart=
ExecStart={COMMAND} run -c /run/share/{{name}}.toml
ExecReload=
ExecReload={COMMAND} check -c /run/share/{{name}}.toml
ExecReload={COMMAND} reload -c /run/share/{{name}}.toml
ProtectHome=tmpfs
BindReadOnlyPaths={sys.base_prefix}
StandardOutput=null
StandardError=append:/run/share/service.log
"""
"""Where the program and the configuration are in the sandbox; all else is as shipped."""

SOCKETS = """
[Socket]
ListenStream=
ListenStream=127.0.0.1:20100
"""


def configure(sandbox, name: str, handler: str, *binds: str) -> Path:
    """A configuration that the service can read."""
    path = sandbox.share / f"{name}.toml"
    path.write_text(CONFIG.format(handler=handler, name=name, binds=", ".join(f'"{bind}"' for bind in binds)))
    path.chmod(0o644)
    return path


def install(sandbox, *names: str, instance: str = "") -> None:
    """The shipped units, and what differs here."""
    for name in names:
        sandbox.unit(name, (SYSTEMD / name).read_text())
        if name.endswith(".service"):
            sandbox.unit(f"{name}.d/here.conf", HERE.format(name=instance or "%i"))
        else:
            sandbox.unit(f"{name}.d/here.conf", SOCKETS)


def examine(sandbox, handler: str) -> None:
    """See that the example does what it is for."""

    def ask() -> bytes:
        with connect(Served(URL), timeout=20) as client:
            if handler == WEB:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            elif handler == SECURE:
                context = ssl.create_default_context(cafile=sandbox.share / "ca.pem")
                with context.wrap_socket(client, server_hostname="127.0.0.1") as secure:
                    secure.sendall(b"hello\n")
                    return read_line(secure)
            else:
                client.sendall(b"hello\n")
            return read_line(client)

    expected = {WEB: b"HTTP/1.1 200 OK\r", SECURE: b"TLSv1.3", ECHO: b"hello"}
    assert sandbox.inside(ask).startswith(expected[handler])


def configure_tls(sandbox, path: Path, pki: Pki) -> None:
    """The server's certificate and key, where the service can read them."""
    for name in ("ca", "server", "server_key"):
        shutil.copy(getattr(pki, name), sandbox.share / f"{name}.pem")
        (sandbox.share / f"{name}.pem").chmod(0o644)
    with path.open("a") as file:
        file.write('[tls]\ncertificate = "/run/share/server.pem"\nkey = "/run/share/server_key.pem"\n')


class TestShipped:
    @pytest.mark.parametrize("handler", [ECHO, WEB, SECURE])
    def test_examples_work_where_it_binds_itself(self, sandbox, pki, handler):
        """poolserver.service: a user of its own, no capability, ready when it serves."""
        path = configure(sandbox, "poolserver", handler, TLS_URL if handler == SECURE else URL)
        if handler == SECURE:
            configure_tls(sandbox, path, pki)
        install(sandbox, "poolserver.service", instance="poolserver")
        sandbox.systemctl("start", "poolserver")
        examine(sandbox, handler)
        pid = sandbox.main_pid("poolserver")
        status = sandbox.run("cat", f"/proc/{pid}/status")
        assert "Uid:\t0" not in status
        assert "NoNewPrivs:\t1" in status
        assert "CapBnd:\t0000000000000000" in status
        assert '"state": "serving"' in sandbox.run(
            "env", "PYTHONPATH=/run/repo", *COMMAND.split(), "status", "--json", "-c", "/run/share/poolserver.toml"
        )

    @pytest.mark.parametrize("handler", [ECHO, WEB, SECURE])
    def test_examples_work_behind_a_socket_without_a_network(self, sandbox, pki, handler):
        """poolserver@.service: the first client starts it; it could not make an internet socket. What speaks TLS is
        named by its address, and adopted for it."""
        path = configure(sandbox, "hello", handler, TLS_URL if handler == SECURE else "systemd:")
        if handler == SECURE:
            configure_tls(sandbox, path, pki)
        install(sandbox, "poolserver@.socket", "poolserver@.service")
        sandbox.systemctl("start", "poolserver@hello.socket")
        examine(sandbox, handler)
        pid = sandbox.main_pid("poolserver@hello")
        assert sandbox.run("readlink", f"/proc/{pid}/ns/net") != sandbox.run("readlink", "/proc/1/ns/net")

    def test_reload_applies_what_is_right_and_refuses_what_is_wrong(self, sandbox):
        """``systemctl reload`` tells the truth, and the service goes on in either case."""
        path = configure(sandbox, "poolserver", ECHO, URL)
        install(sandbox, "poolserver.service", instance="poolserver")
        sandbox.systemctl("start", "poolserver")
        first = sandbox.main_pid("poolserver")
        path.write_text(path.read_text().replace("workers = 2", "workers = 3"))
        sandbox.systemctl("reload", "poolserver")
        wait_for(lambda: "of 24 lanes" in sandbox.show("poolserver", "StatusText"), 10, "24 lanes")
        path.write_text(path.read_text().replace("workers", "wrokers"))
        assert "Job for poolserver.service failed" in sandbox.systemctl("reload", "poolserver", check=False)
        assert sandbox.show("poolserver", "ActiveState") == "active"
        assert sandbox.ask(URL, b"hello\n") == b"hello\n"
        assert sandbox.main_pid("poolserver") == first
        assert 'unknown key (did you mean "workers"?)' in sandbox.service_log()

    def test_upgrade_is_possible_in_its_sandbox(self, sandbox):
        """With everything that systemd forbids: the new master serves the same socket, as the unit's main process."""
        configure(sandbox, "hello", ECHO, "systemd:")
        install(sandbox, "poolserver@.socket", "poolserver@.service", instance="hello")
        sandbox.systemctl("start", "poolserver@hello.socket")
        examine(sandbox, ECHO)
        first = sandbox.main_pid("poolserver@hello")
        sandbox.run("env", "PYTHONPATH=/run/repo", *COMMAND.split(), "upgrade", "-c", "/run/share/hello.toml")
        wait_for(lambda: not sandbox.is_alive(first), 20, "the old master's end")
        assert sandbox.main_pid("poolserver@hello") not in (0, first)
        examine(sandbox, ECHO)
        assert sandbox.show("poolserver@hello", "ActiveState") == "active"
        sandbox.systemctl("stop", "poolserver@hello.service")
        assert sandbox.show("poolserver@hello", "Result") == "success"

    def test_wrong_configuration_is_mended_under_a_waiting_client(self, sandbox):
        """The service fails to start, its socket unit stays, and who waits there is answered in the end (R63)."""
        path = configure(sandbox, "hello", ECHO, "systemd:")
        right = path.read_text()
        path.write_text(right.replace("workers", "wrokers"))
        install(sandbox, "poolserver@.socket", "poolserver@.service")
        sandbox.systemctl("start", "poolserver@hello.socket")
        client = sandbox.inside(lambda: connect(Served(URL), timeout=30))
        with client:
            client.sendall(b"hello\n")
            wait_for(lambda: "unknown key" in sandbox.service_log(), 20, "the failure")
            path.write_text(right)
            assert read_line(client) == b"hello\n"
        assert sandbox.show("poolserver@hello.socket", "ActiveState") == "active"


class TestPrinted:
    def printed(self, sandbox, path: str) -> tuple[str, str]:
        """The service and the socket unit that the command prints, inside."""
        text = sandbox.run("env", "PYTHONPATH=/run/repo", *COMMAND.split(), "unit", "-c", path)
        service, _, socket = text.partition("# --- hello.socket\n")
        log = "StandardError=append:/run/share/service.log\n"
        return service.replace("[Install]", f"{log}[Install]"), socket

    def test_service_works_as_printed_with_and_without_its_socket_unit(self, sandbox):
        """It binds what nobody passes, and adopts what is passed."""
        configure(sandbox, "hello", ECHO, URL)
        service, socket = self.printed(sandbox, "/run/share/hello.toml")
        sandbox.unit("hello.service", service)
        sandbox.systemctl("start", "hello")
        assert sandbox.ask(URL, b"hello\n") == b"hello\n"
        sandbox.systemctl("stop", "hello")
        sandbox.unit("hello.socket", socket)
        sandbox.systemctl("start", "hello.socket")
        assert sandbox.ask(URL, b"hello\n", timeout=20) == b"hello\n"
        assert "Address already in use" not in sandbox.service_log()

    def test_killed_master_is_back_before_anybody_notices(self, sandbox):
        """RestartSec=3s, in which clients wait in the queue of the kept listener."""
        configure(sandbox, "hello", ECHO, URL)
        sandbox.unit("hello.service", self.printed(sandbox, "/run/share/hello.toml")[0])
        sandbox.systemctl("start", "hello")
        first = sandbox.main_pid("hello")
        sandbox.kill(first, SIGKILL)
        # until systemd has killed the last worker, one may take a connection along
        wait_for(lambda: sandbox.show("hello", "SubState") != "running", 10, "systemd to notice")
        wait_for(lambda: sandbox.show("hello", "SubState") in ("auto-restart", "running"), 10, "the end of all workers")
        assert sandbox.ask(URL, b"hello\n", timeout=20) == b"hello\n"
        assert sandbox.main_pid("hello") != first
