"""Bind URLs: what they mean, and what is said of those that mean nothing."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver.address import parse
from poolserver.errors import ConfigError
from poolserver.holders import who_holds


@pytest.mark.parametrize(
    ("url", "family", "sockaddr", "is_stream"),
    [
        ("tcp://127.0.0.1:20000", socket.AF_INET, ("127.0.0.1", 20000), True),
        ("tcp://[::1]:0", socket.AF_INET6, ("::1", 0), True),
        ("udp://127.0.0.1:53", socket.AF_INET, ("127.0.0.1", 53), False),
        ("unix:/run/x.sock", socket.AF_UNIX, "/run/x.sock", True),
        ("unix:@name", socket.AF_UNIX, "\0name", True),
        ("unixgram:/run/x.sock", socket.AF_UNIX, "/run/x.sock", False),
    ],
)
def test_url_parses(url: str, family: int, sockaddr: object, is_stream: bool) -> None:
    """Each form of the interface page, and it is written back as it came."""
    (address,) = parse(url)
    assert (address.family, address.sockaddr, address.is_stream) == (family, sockaddr, is_stream)
    assert address.url == url


def test_no_host_is_both_families() -> None:
    """tcp://:PORT is 0.0.0.0 and [::]."""
    assert [address.sockaddr for address in parse("tcp://:80")] == [("0.0.0.0", 80), ("::", 80)]


def test_descriptor_is_named_by_number() -> None:
    """fd://3."""
    assert parse("fd://3")[0].fd == 3


@pytest.mark.parametrize(
    "url",
    ["", "tcp", "tcp:", "tcp://", "tcp://1.2.3.4", "tcp://1.2.3.4:", "tcp://1.2.3.4:65536", "tcp://1.2.3.4:-1"]
    + ["tcp://::1:80", "tcp:1.2.3.4:80", "http://x:80", "unix:", "unix:@", "unix:/" + "x" * 107, "unix:/a\0b"]
    + ["fd://x", "fd:3", "tcp://1.2.3.4:²", "tcp://[127.0.0.1:80", "tcp://127.0.0.1]:80"],
)
def test_what_is_no_address_is_refused_by_name(url: str) -> None:
    """The message repeats the URL and the key."""
    with pytest.raises(ConfigError, match=r"server\.bind"):
        parse(url)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """Nothing but ConfigError leaves the parser. (No host names here: they would be looked up.)"""
    for scheme in ("unix:", "unixgram:", "fd://", "tcp://127.0.0.1:"):
        with contextlib.suppress(ConfigError):
            parse(scheme + text)


def test_holder_of_an_address_may_be_this_very_process() -> None:
    """A URL that is given twice is nobody else's fault."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert "this very process" in who_holds("tcp", listener.getsockname())
