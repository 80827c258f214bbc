"""The PROXY protocol's parser: headers, what is none, every way of arriving, and another parser's opinion (R38)."""

import ipaddress
import random
import socket
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxyprotocol import ProxyProtocolIncompleteError
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6, ProxyResultUnix
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from poolserver.proxy_protocol import MAX_BYTES, V2_SIGNATURE, Header, MalformedError, parse

TCP4 = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"
TCP6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n"


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    return V2_SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


V2_TCP4 = v2(0x21, 0x11, bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack("!HH", 56324, 443))
V2_TCP6 = v2(
    0x21,
    0x21,
    socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack("!HH", 56324, 443),
)
TLVS = b"\x03\0\4abcd" + b"\x04\0\2\0\0" + b"\xee\xff\xff"  # the last one runs over: passed over as well

HEADERS = {
    "v1-tcp4": (TCP4, ("192.0.2.7", 56324)),
    "v1-tcp6": (TCP6, ("2001:db8::7", 56324, 0, 0)),
    "v1-tcp6-long": (b"PROXY TCP6 2001:DB8:0:0:0:0:0:7 ::1 0 65535\r\n", ("2001:db8::7", 0, 0, 0)),
    "v1-longest": (
        b"PROXY TCP6 %s %s 65535 65535\r\n" % (b"ffff:" * 7 + b"ffff", b"ffff:" * 7 + b"ffff"),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535, 0, 0),
    ),
    "v1-mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", ("::ffff:192.0.2.7", 1, 0, 0)),
    "v1-unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1-unknown-more": (b"PROXY UNKNOWN ffff:f...f:ffff whatever 1\r\n", None),
    "v2-tcp4": (V2_TCP4, ("192.0.2.7", 56324)),
    "v2-tcp6": (V2_TCP6, ("2001:db8::7", 56324, 0, 0)),
    "v2-tlvs": (v2(0x21, 0x11, V2_TCP4[16:] + TLVS), ("192.0.2.7", 56324)),
    "v2-unix": (v2(0x21, 0x31, b"/run/a".ljust(108, b"\0") + bytes(108)), None),
    "v2-local": (v2(0x20, 0x00, b""), None),
    "v2-local-with-addresses": (v2(0x20, 0x11, V2_TCP4[16:]), None),
    "v2-local-of-no-family": (v2(0x20, 0xFF, b"abc"), None),
    "v2-unspecified": (v2(0x21, 0x00, b"anything"), None),
    "v2-longest": (v2(0x21, 0x11, V2_TCP4[16:].ljust(MAX_BYTES - 16, b"\0")), ("192.0.2.7", 56324)),
}

MALFORMED = {
    "http": b"GET / HTTP/1.1\r\n",
    "lower-case": b"proxy TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "two-blanks": b"PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "trailing-blank": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n",
    "no-cr": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n",
    "nul": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\0\r\n",
    "no-end": b"PROXY TCP6 " + b"f" * 97,
    "end-one-too-late": b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n",
    "other-family": b"PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
    "one-of-other-family": b"PROXY TCP6 2001:db8::7 192.0.2.1 1 2\r\n",
    "udp": b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
    "zone": b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
    "octal": b"PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n",
    "three-parts": b"PROXY TCP4 192.0.2 198.51.100.1 1 2\r\n",
    "name": b"PROXY TCP4 localhost 198.51.100.1 1 2\r\n",
    "port-too-high": b"PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
    "port-of-six-digits": b"PROXY TCP4 192.0.2.7 198.51.100.1 100000 2\r\n",
    "port-with-zero": b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n",
    "port-with-sign": b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n",
    "port-with-underscore": b"PROXY TCP4 192.0.2.7 198.51.100.1 1_0 2\r\n",
    "unknown-glued": b"PROXY UNKNOWNS\r\n",
    "no-family": b"PROXY \r\n",
    "v2-signature-of-eleven": V2_SIGNATURE[:11] + b"\r",
    "v2-version-1": v2(0x11, 0x11, V2_TCP4[16:]),
    "v2-command-2": v2(0x22, 0x11, V2_TCP4[16:]),
    "v2-udp": v2(0x21, 0x12, V2_TCP4[16:]),
    "v2-family-4": v2(0x21, 0x41, bytes(216)),
    "v2-addresses-cut": v2(0x21, 0x11, V2_TCP4[16:-1]),
    "v2-addresses-of-ipv4-in-ipv6": v2(0x21, 0x21, V2_TCP4[16:]),
    "v2-longest-of-all": v2(0x21, 0x11, b"", 65535),
    "v2-one-too-long": v2(0x20, 0x00, b"", MAX_BYTES - 15),
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("rest", [b"", b"GET / HTTP/1.1\r\n", TCP4], ids=["alone", "data", "twice"])
def test_header_is_read_and_nothing_behind_it(name: str, rest: bytes) -> None:
    """Who it is, and how long the header is."""
    octets, client = HEADERS[name]
    assert parse(octets + rest, "any") == Header(client, len(octets))


@pytest.mark.parametrize("name", HEADERS)
def test_part_of_a_header_is_waited_for(name: str) -> None:
    """However it is split."""
    octets, _ = HEADERS[name]
    assert all(parse(octets[:size], "any") is None for size in range(len(octets)))


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_header_is_refused(name: str) -> None:
    """In words, whatever stands behind it."""
    for rest in (b"", bytes(5000)):
        with pytest.raises(MalformedError, match=r"^it[s ]"):
            parse(MALFORMED[name] + rest, "any")


@pytest.mark.parametrize("octets", [b"G", b"PROXYX", b"\r\n\r\r", b"PROXY TCP4 \x80", b"PROXY TCP4 1\n", b"PROXY \rx"])
def test_what_cannot_become_a_header_is_refused_at_once(octets: bytes) -> None:
    """No need to wait for its end."""
    with pytest.raises(MalformedError):
        parse(octets, "any")


@pytest.mark.parametrize(("octets", "mode"), [(V2_TCP4, "v1"), (V2_SIGNATURE[:3], "v1"), (TCP4, "v2"), (b"PRO", "v2")])
def test_header_of_the_other_version_is_refused(octets: bytes, mode: str) -> None:
    """By name."""
    with pytest.raises(MalformedError, match=r"where proxy_protocol\.mode is"):
        parse(octets, mode)


PORTS = st.integers(0, 65535)
V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)
RESULTS = st.one_of(
    st.builds(ProxyResultIPv4, st.tuples(V4, PORTS), st.tuples(V4, PORTS), protocol=st.just(socket.SOCK_STREAM)),
    st.builds(ProxyResultIPv6, st.tuples(V6, PORTS), st.tuples(V6, PORTS), protocol=st.just(socket.SOCK_STREAM)),
)


@given(result=RESULTS, rest=st.binary(max_size=50), packer=st.sampled_from([ProxyProtocolV1(), ProxyProtocolV2()]))
def test_what_the_other_parser_writes_is_read(result, rest, packer) -> None:
    """Any client, either version."""
    octets = packer.pack(result)
    header = parse(octets + rest, "any")
    assert header is not None
    assert header.size == len(octets)
    assert header.client is not None
    host, port, *_ = header.client
    assert (ipaddress.ip_address(host), port) == (result.source[0], result.source[1])
    assert len(header.client) == (2 if isinstance(result, ProxyResultIPv4) else 4)


def opinion(octets: bytes) -> tuple[object, ...] | None:
    """The client that the other parser finds, () for none; None if it finds no header."""
    packer = ProxyProtocolV2() if octets.startswith(V2_SIGNATURE) else ProxyProtocolV1()
    try:
        result = packer.unpack(octets)
    except (ProxyProtocolIncompleteError, ValueError, struct.error):
        return None
    if isinstance(result, ProxyResultIPv4 | ProxyResultIPv6):
        return (result.source[0], result.source[1])
    return ()


PIECES = st.sampled_from(
    [b"PROXY", b" ", b"TCP4", b"TCP6", b"UNKNOWN", b"192.0.2.7", b"::1", b"1", b"65535", b"65536", b"01", b"\r\n", b"x"]
)
LINES = st.lists(PIECES, max_size=12).map(b" ".join) | st.lists(PIECES, max_size=12).map(b"".join)
FIXED = st.tuples(st.sampled_from([0x20, 0x21, 0x22, 0x11]), st.sampled_from([0, 0x11, 0x21, 0x31, 0x12, 0x41]))
BODIES = st.binary(max_size=40) | st.just(bytes(216))
V2S = st.builds(lambda fixed, body: v2(*fixed, body), FIXED, BODIES)


@settings(max_examples=1000)
@given(octets=st.one_of(st.binary(max_size=300), LINES, LINES.map(lambda line: b"PROXY " + line + b"\r\n"), V2S))
@example(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n")
def test_what_is_read_is_what_the_other_parser_reads(octets: bytes) -> None:
    """Ours may refuse more, never find another client. TLV checksums, which ours passes over, are not in these."""
    try:
        header = parse(octets, "any")
    except MalformedError:
        return
    if header is None:
        return
    head = octets[: header.size]
    found = opinion(head)
    if header.client is not None:
        host, port, *_ = header.client
        assert found == (ipaddress.ip_address(host), port)
    elif found is not None:
        assert found == () or head[12] == 0x20  # LOCAL, whatever family it names


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_mutated_headers_are_read_refused_or_waited_for(count: int) -> None:
    """R38: no other exception escapes, and no header is longer than what it was read from."""
    dice = random.Random(38)
    seeds = [octets for octets, _ in HEADERS.values()] + list(MALFORMED.values())
    for _ in range(count):
        octets = bytearray(dice.choice(seeds))
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(octets) + 1)
            octets[place : place + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
        try:
            header = parse(bytes(octets), dice.choice(["v1", "v2", "any"]))
        except MalformedError:
            continue
        assert header is None or 0 < header.size <= len(octets)


def test_unix_client_of_the_other_parser_is_told_of_by_nothing() -> None:
    """Its path says nothing to limits or logs here: the proxy counts."""
    octets = ProxyProtocolV2().pack(ProxyResultUnix("/run/a", "/run/b", protocol=socket.SOCK_STREAM))
    assert parse(octets, "v2") == Header(None, len(octets))
