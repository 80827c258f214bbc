"""``poolserver unit``: what the units of a configuration say."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from poolserver import config
from poolserver.unit import Installation, Units

SYSTEMD = Path(__file__).parents[2] / "systemd"


def shipped_units() -> ModuleType:
    """tests/shipped_units.py, which is a program too."""
    spec = importlib.util.spec_from_file_location("shipped_units", Path(__file__).parents[1] / "shipped_units.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def units(
    environ: Mapping[str, str] | None = None, path: str = "/etc/hello.toml", **sections: dict[str, object]
) -> Units:
    server = {"handler": "a:B", "name": "hello", "pythonpath": ["/etc"]} | sections.pop("server", {})
    loaded = config.from_sections({"server": server, **sections})
    loaded = config.Loaded(loaded.config, loaded.origins, Path(path))
    return Units(loaded, Installation(["/opt/venv/bin/poolserver"], [Path("/opt/venv")], environ or {}))


def values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_shipped_units_are_those_that_the_command_prints() -> None:
    """After a change: python tests/shipped_units.py."""
    shipped = shipped_units().shipped()
    assert {path.name: path.read_text() for path in SYSTEMD.iterdir()} == shipped


@pytest.mark.parametrize(("name", "limit"), [("poolserver.service", 12), ("poolserver@.service", 5)])
def test_shipped_service_is_verified_and_rated(name: str, limit: int) -> None:
    """systemd has nothing to say about it, and rates its exposure at 1.2 at most; without a network, at 0.5 (R60)."""
    assert shutil.which("systemd-analyze"), "systemd-analyze is missing: apt-get install systemd"
    path = str(SYSTEMD / name)
    verified = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={limit}", "--no-pager", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout


def test_times_and_limits_are_those_of_the_configuration() -> None:
    """The drain and a little more; three times what a worker may be silent; descriptors for what may be parked."""
    made = units(timeouts={"graceful": 60, "lame_duck": 5, "worker": 20}, parking={"max_parked": 100_000}).service()
    assert values(made, "TimeoutStopSec") == ["70"]
    assert values(made, "WatchdogSec") == ["60"]
    assert int(values(made, "LimitNOFILE")[0]) > 100_000


def test_port_below_1024_gets_the_one_capability_that_it_needs() -> None:
    """And no user namespace, in which that would count for nothing."""
    made = units(server={"bind": ["tcp://0.0.0.0:80"]}).service()
    assert values(made, "AmbientCapabilities") == values(made, "CapabilityBoundingSet") == ["CAP_NET_BIND_SERVICE"]
    assert "PrivateUsers" not in made


def test_service_without_addresses_of_its_own_has_no_network() -> None:
    """Passed sockets and Unix sockets need none; an abstract one lives in the network's namespace; metrics are TCP."""
    assert "PrivateNetwork=yes" in units(server={"bind": ["systemd:"]}).service()
    assert "PrivateNetwork=yes" in units(server={"bind": ["unix:/run/hello/hello.sock"]}).service()
    assert "PrivateNetwork=yes" not in units(server={"bind": ["unix:@hello"]}).service()
    assert (
        "PrivateNetwork" not in units(server={"bind": ["systemd:"]}, metrics={"bind": "tcp://127.0.0.1:9109"}).service()
    )


def test_folders_to_write_in_are_made_or_opened() -> None:
    """By systemd, where it has a place for such; the control socket's comes first."""
    made = units(
        server={"bind": ["unix:/run/hello/hello.sock"], "pidfile": "/srv/hello/pid"},
        log={"file": "/var/log/hello/log", "access": "/srv/logs/access"},
    ).service()
    assert values(made, "RuntimeDirectory") == ["poolserver/hello hello"]
    assert values(made, "LogsDirectory") == ["hello"]
    assert values(made, "ReadWritePaths") == ["/srv/hello", "/srv/logs"]


def test_what_the_sandbox_would_hide_is_let_in() -> None:
    """A configuration below /home, code and a certificate below /root; nothing else of them."""
    tls = {"certificate": "/root/tls/chain.pem", "key": "/etc/ssl/key.pem"}
    made = units(path="/home/me/hello.toml", server={"pythonpath": ["/root/code"]}, tls=tls).service()
    assert values(made, "ProtectHome") == ["tmpfs"]
    assert values(made, "BindReadOnlyPaths") == ["/home/me", "/root/code", "/root/tls"]


def test_words_are_quoted_for_systemd() -> None:
    """Spaces, quotes, specifiers, variables."""
    made = units(path='/etc/my "100%" $pool.toml').service()
    assert values(made, "ExecStart") == ['/opt/venv/bin/poolserver run -c "/etc/my \\"100%%\\" $$pool.toml"']


def test_environment_that_the_configuration_was_read_from_is_kept() -> None:
    """And PYTHONPATH, without which nothing may be importable."""
    environ = {"POOLSERVER_POOL__THREADS": "4", "PYTHONPATH": "/opt/my code", "HOME": "/root"}
    loaded = config.load(None, environ | {"POOLSERVER_SERVER__HANDLER": "a:B"}, {})
    made = Units(loaded, Installation(["x"], [], environ | {"POOLSERVER_SERVER__HANDLER": "a:B"})).service()
    assert values(made, "Environment")[:3] == [
        "POOLSERVER_POOL__THREADS=4",
        "POOLSERVER_SERVER__HANDLER=a:B",
        '"PYTHONPATH=/opt/my code"',
    ]


def test_daemonize_is_turned_off() -> None:
    """systemd would take a service that leaves it for ended."""
    assert values(units(server={"daemonize": True}).service(), "ExecStart")[0].endswith("--set server.daemonize=false")


class TestSocket:
    def test_it_binds_what_the_service_would(self) -> None:
        """With the same options."""
        binds = ["tcp://:8000", "udp://127.0.0.1:53", "unix:/run/hello/hello.sock", "unixgram:@hello"]
        made = units(
            server={"bind": binds, "user": "app", "group": "web"}, socket={"backlog": 99, "unix_mode": "0600"}
        ).socket()
        assert values(made, "ListenStream") == ["0.0.0.0:8000", "[::]:8000", "/run/hello/hello.sock"]
        assert values(made, "ListenDatagram") == ["127.0.0.1:53", "@hello"]
        assert values(made, "BindIPv6Only") == ["ipv6-only"]
        assert values(made, "Backlog") == ["99"]
        assert values(made, "SocketMode") == ["0600"]
        assert values(made, "SocketUser") == ["app"]
        assert values(made, "SocketGroup") == ["web"]

    def test_names_are_those_of_the_configuration(self) -> None:
        """A unit has one; the others need units of their own, which is said."""
        made = units(server={"bind": ["systemd:web", "systemd:admin"]}).socket()
        assert values(made, "FileDescriptorName") == ["web"]
        assert "# admin: another socket unit, with Service=hello.service" in made

    def test_port_that_the_kernel_chooses_cannot_be_a_socket_units(self) -> None:
        """It would be another at each boot."""
        assert "# tcp://127.0.0.1:0: choose a port" in units(server={"bind": ["tcp://127.0.0.1:0"]}).socket()
