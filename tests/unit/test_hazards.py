"""Hazards that ``poolserver check`` names: when, on which configuration."""

from pathlib import Path

import pytest
from pki import Pki

from poolserver.check import examine
from poolserver.config import from_sections

TCP, TCP6, UNIX, UDP = "tcp://127.0.0.1:0", "tcp://[::1]:0", "unix:s.sock", "udp://127.0.0.1:0"
PUBLIC, PASSED = "tcp://0.0.0.0:0", "fd://3"
LOCAL = "127.0.0.0/8"


def hazards(bind: list[str], **limits: object) -> str:
    return hazards_of(bind, limits=limits)


def hazards_of(bind: list[str], **sections: dict[str, object]) -> str:
    handler = "poolserver.examples.echo:EchoHandler"
    return "\n".join(examine(from_sections({"server": {"handler": handler, "bind": bind}, **sections})).hazards)


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
