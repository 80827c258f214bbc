"""Hazards that ``poolserver check`` names: when, on which configuration."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from pki import Pki
from test_config import documents

from poolserver.check import examine
from poolserver.config import from_sections
from poolserver.errors import ConfigError

TCP, TCP6, UNIX, UDP = "tcp://127.0.0.1:0", "tcp://[::1]:0", "unix:s.sock", "udp://127.0.0.1:0"
PUBLIC, PASSED = "tcp://0.0.0.0:0", "fd://3"
LOCAL = "127.0.0.0/8"


def hazards(bind: list[str], **limits: object) -> str:
    return hazards_of(bind, limits=limits)


def hazards_of(bind: list[str], **sections: dict[str, object]) -> str:
    handler = "poolserver.examples.echo:EchoHandler"
    return "\n".join(examine(from_sections({"server": {"handler": handler, "bind": bind}, **sections})).hazards)


@pytest.mark.parametrize(
    ("timeouts", "is_one"),
    [({"graceful": 91}, True), ({"graceful": 60, "lame_duck": 31}, True), ({"graceful": 60, "lame_duck": 30}, False)],
)
def test_drain_that_outlasts_systemds_patience_is_a_hazard(timeouts: dict[str, object], is_one: bool) -> None:
    """90 s by default."""
    assert ("systemd's stop time-out" in hazards_of([TCP], timeouts=timeouts)) is is_one


def problems_of(**sections: dict[str, object]) -> str:
    given = {"handler": "poolserver.examples.echo:EchoHandler", "bind": [TCP]} | sections.pop("server", {})
    return "\n".join(examine(from_sections({"server": given, **sections})).problems)


def test_files_that_cannot_be_where_they_are_to_be_are_problems(tmp_path: Path) -> None:
    """By the key that names each; so is a name that no file system takes."""
    here = tmp_path / "none"
    found = problems_of(
        server={"pidfile": f"{here}/pid", "bind": [f"unix:{here}/socket"], "chdir": "x" * 300},
        log={"file": f"{here}/log", "access": f"{here}/access"},
        control={"socket": f"{'x' * 300}/control"},
    )
    for what in ("server.pidfile", f"unix:{here}/socket", "log.file", "log.access", "control.socket"):
        assert f"{what}: the folder of " in found
    assert "server.chdir: " in found


def test_functions_that_workers_are_to_call_are_looked_up() -> None:
    """worker_start and worker_stop."""
    found = problems_of(server={"worker_start": "no_such:f"})
    assert "server.worker_start: cannot import no_such" in found
    assert "server.worker_stop: os:sep is no function" in problems_of(server={"worker_stop": "os:sep"})
    found = problems_of(server={"worker_start": "asyncio:sleep"})
    assert "server.worker_start: asyncio:sleep is a coroutine function" in found


@given(documents)
@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_is_configured_is_examined_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, document: dict[str, Any]
) -> None:
    """Or refused before. Whom to become is left out: that would be done."""
    sections = {name: dict(table) for name, table in document.items() if isinstance(table, dict)}
    for key in ("user", "group"):
        sections.get("server", {}).pop(key, None)
    with monkeypatch.context() as context:
        context.setattr(sys, "path", list(sys.path))
        try:
            loaded = from_sections(sections)
        except ConfigError:
            return
        examine(loaded)


@pytest.mark.parametrize(
    ("bind", "limits"),
    [
        ([TCP], {"per_source": 4}),
        ([TCP6, UDP], {"rate_per_source": "20/s"}),
        ([UNIX], {"rate_per_source": "20/s", "exempt": [LOCAL]}),
        ([TCP, UNIX], {"per_source": 4, "exempt": [LOCAL]}),
    ],
)
def test_limits_by_source_where_every_peer_is_local_are_a_hazard(bind: list[str], limits: dict[str, object]) -> None:
    """All clients of a proxy are one source then."""
    assert "all clients of a local proxy count as one source" in hazards(bind, **limits)


@pytest.mark.parametrize(
    ("bind", "limits"),
    [
        ([TCP], {}),
        ([TCP], {"deny": ["192.0.2.1"]}),
        ([TCP, PUBLIC], {"rate_per_source": "20/s"}),
        ([TCP], {"per_source": 4, "exempt": [LOCAL]}),
        ([PASSED], {"rate_per_source": "20/s"}),
        ([UDP], {"rate_per_source": "20/s"}),
    ],
)
def test_limits_by_source_are_none_where_peers_differ_or_nobody_is_counted(
    bind: list[str], limits: dict[str, object]
) -> None:
    """Strangers connect too, the proxy is exempt, a passed descriptor may be anything, or nothing is limited."""
    assert "local proxy" not in hazards(bind, **limits)


def test_proxy_that_says_who_its_clients_are_makes_limits_by_source_no_hazard() -> None:
    """Each is a source of its own."""
    proxy = {"mode": "v2", "trusted": ["127.0.0.1"]}
    found = hazards_of([TCP], limits={"per_source": 4}, proxy_protocol=proxy)
    assert "local proxy" not in found


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0"])
def test_trusting_everybody_with_proxy_headers_is_a_hazard(network: str) -> None:
    """Whoever connects could pass any limit."""
    proxy = {"mode": "any", "trusted": ["192.0.2.1", network]}
    assert f"proxy_protocol.trusted: {network} is everybody" in hazards_of([PUBLIC], proxy_protocol=proxy)
    assert "is everybody" not in hazards_of([PUBLIC], proxy_protocol=proxy | {"trusted": ["192.0.2.0/24"]})


def test_proxy_headers_are_not_for_datagrams() -> None:
    """They are taken as they are, and that is said."""
    proxy = {"mode": "any", "trusted": ["192.0.2.1"]}
    assert "udp://127.0.0.1:0 takes datagrams as they are" in hazards_of([TCP, UDP], proxy_protocol=proxy)


def test_tls_that_nobody_speaks_is_a_hazard(pki: Pki) -> None:
    """A certificate without tls://, and signers without anybody who is asked."""
    section = {"certificate": pki.server, "key": pki.server_key, "client_ca": pki.ca}
    found = hazards_of([TCP], tls=section)
    assert "tls.certificate is given, but nothing listens on tls://" in found
    assert "tls.client_auth = none asks nobody" in found
    found = hazards_of(["tls://127.0.0.1:0"], tls=section | {"client_auth": "optional"})
    assert "tls.c" not in found


def test_key_that_everybody_can_read_is_a_hazard(pki: Pki, tmp_path: Path) -> None:
    """By its permissions."""
    key = tmp_path / "key.pem"
    key.write_bytes(Path(pki.server_key).read_bytes())
    for mode, is_hazard in ((0o640, False), (0o644, True)):
        key.chmod(mode)
        found = hazards_of(["tls://127.0.0.1:0"], tls={"certificate": pki.server, "key": str(key)})
        assert ("can read the key" in found) == is_hazard
