"""Networks and sources: what holds an address, and who a peer is as limits count it."""

import ipaddress
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver import networks
from poolserver.networks import NO_NETWORKS, UNKNOWN, Networks, Source, key_text, parse_network, source_of

ADDRESSES = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.builds(lambda low: ipaddress.IPv4Address(0x0A000000 | low), st.integers(0, 2**10)),  # near one another
)


def whole(text: str) -> tuple[int, int]:
    address = ipaddress.ip_address(text)
    return int(address), address.version


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0", "::c000:200"]),
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.6", "192.0.2.8"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", "::1"]),
        ("2001:db8::/32", ["2001:db8::", "2001:db8:ffff::1"], ["2001:db9::", "2001:db7::"]),
        ("::/0", ["::", "ffff::1"], ["10.0.0.1"]),
        ("::ffff:10.0.0.0/104", ["10.0.0.0", "10.255.255.255"], ["11.0.0.0", "::ff00:0"]),
        ("::ffff:0:0/96", ["0.0.0.0", "255.255.255.255"], ["::"]),
    ],
)
def test_network_holds_its_own_addresses_only(text: str, inside: list[str], outside: list[str]) -> None:
    """Both ends of the range, and the other version never."""
    found = Networks.parse([text])
    assert all(found.contains(*whole(address)) for address in inside)
    assert not any(found.contains(*whole(address)) for address in outside)


@pytest.mark.parametrize(
    "text",
    ["", " ", "localhost", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/0.0.0.255", "10.0.0.0/255.0.0.0"]
    + ["10.0.0", "fe80::1%eth0", "fe80::%eth0/64", "::/129", "10.0.0.0/8/8", "10.0.0.0/8\n", "\0", "/8", "é"],
)
def test_what_is_no_network_is_refused_by_its_text(text: str) -> None:
    """The message names it and shows what would do."""
    with pytest.raises(ValueError, match="must be a network such as") as caught:
        Networks.parse(["10.0.0.0/8", text])
    assert repr(text) in str(caught.value)


def test_network_with_host_bits_is_refused_with_the_network_it_meant() -> None:
    """Half-right is not guessed at."""
    with pytest.raises(ValueError, match=r"'10\.1\.2\.3/8' .*did you mean \"10\.0\.0\.0/8\"\?"):
        Networks.parse(["10.1.2.3/8"])


def test_no_networks_hold_nothing() -> None:
    """Empty reads as false: ``allow`` was not given."""
    assert not NO_NETWORKS
    assert not Networks.parse([])
    assert Networks.parse(["::1"])
    assert not NO_NETWORKS.contains(1, 4)


@given(st.lists(st.tuples(ADDRESSES, st.integers(0, 128)), max_size=20), st.lists(ADDRESSES, max_size=20))
def test_networks_agree_with_ipaddress(
    given_networks: list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]],
    others: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> None:
    """Overlapping, touching and nested networks, asked at their edges and elsewhere."""
    ranges = [
        ipaddress.ip_network((address, min(prefix, address.max_prefixlen)), strict=False)
        for address, prefix in given_networks
    ]
    ranges = [each for each in ranges if each.version == 4 or int(each.network_address) >> 32 != 0xFFFF]
    found = Networks.parse(map(str, ranges))
    edges = [edge for each in ranges for edge in (each.network_address, each.broadcast_address)]
    edges += [edge + 1 for edge in edges if int(edge) + 1 < 2**edge.max_prefixlen]
    for address in [*edges, *others]:
        is_inside = any(address.version == each.version and address in each for each in ranges)
        assert found.contains(int(address), address.version) is is_inside


def test_ten_thousand_networks_are_as_right_as_one() -> None:
    """A published list of networks is read whole."""
    found = Networks.parse(f"10.{number >> 7 & 255}.{(number & 127) << 1}.0/24" for number in range(10_000))
    assert found.contains(*whole("10.0.2.9"))
    assert not found.contains(*whole("10.0.3.9"))


@pytest.mark.parametrize(
    ("client_address", "text", "version"),
    [
        (("192.0.2.77", 4711), "192.0.2.0/24", 4),
        (("::ffff:192.0.2.77", 4711, 0, 0), "192.0.2.0/24", 4),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), "2001:db8:1:2::/64", 6),
        (("fe80::1%eth0", 4711, 0, 3), "fe80::/64", 6),
        (("::1", 4711, 0, 0), "::/64", 6),
        (("unix:uid=1000,pid=5", 0), "uid 1000", 0),
        (("unix:uid=0,pid=1", 0), "uid 0", 0),
        (("unix:uid=-2,pid=1", 0), "uid 4294967294", 0),
    ],
)
def test_source_is_told_from_what_socketserver_gives(client_address: object, text: str, version: int) -> None:
    """Each family as accept(2) and SO_PEERCRED name it."""
    source = source_of(client_address, 24, 64)
    assert (source.text, source.version) == (text, version)
    assert len(source.key) == 16
    assert source.digest == source.number.to_bytes(8, sys.byteorder) != bytes(8)


@pytest.mark.parametrize(
    "client_address",
    [None, "", b"", "/run/x.sock", b"\0abc", (), ("", 0), (None, 0), (b"1.2.3.4", 0), ("unix:unnamed", 0), ("unix:", 0)]
    + [("unix:uid=x,pid=5", 0), ("unix:uid=²", 0), ("1.2.3", 0), ("1.2.3.4\0", 0), ("\ud800", 0), ("1" * 999, 0)]
    + [["1.2.3.4", 1], 7, ("1.2.3.4.5", 0), (":", 0), (["1.2.3.4"], 0)],
)
def test_whoever_cannot_be_told_is_the_unknown_source(client_address: object) -> None:
    """Nothing that a user's ``get_request`` gives raises."""
    assert source_of(client_address, 32, 64) is UNKNOWN
    assert (UNKNOWN.text, UNKNOWN.version) == ("unknown", 0)


def test_whole_address_stays_for_networks_and_the_key_is_cut() -> None:
    """A single address can be exempt while its network is counted as one."""
    first, second = (source_of((host, 1), 24, 64) for host in ("192.0.2.1", "192.0.2.2"))
    assert first.key == second.key
    assert first.address != second.address
    assert Networks.parse(["192.0.2.1"]).contains(first.address, first.version)


def test_whole_prefixes_are_written_without_a_length() -> None:
    """A host is written as a host."""
    assert source_of(("192.0.2.1", 1), 32, 64).text == "192.0.2.1"
    assert source_of(("2001:db8::1", 1, 0, 0), 32, 128).text == "2001:db8::1"


def test_all_addresses_of_a_network_are_one_source() -> None:
    """10^5 addresses of one /64 have one key, and remembering them is bounded."""
    keys = {
        source_of((f"2001:db8::{number >> 16:x}:{number & 0xFFFF:x}", 1, 0, 0), 32, 64).key for number in range(100_000)
    }
    assert len(keys) == 1
    assert networks.source_of_host.cache_info().currsize <= networks.CACHED_HOSTS


@given(ADDRESSES, st.integers(1, 32), st.integers(1, 128))
def test_key_is_invertible_to_the_text(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, prefix_v4: int, prefix_v6: int
) -> None:
    """What is carried as a key is logged as a network."""
    source = source_of((str(address), 1), prefix_v4, prefix_v6)
    assert key_text(source.key, prefix_v4, prefix_v6) == source.text
    mapped = address.ipv4_mapped if address.version == 6 else None
    plain = mapped or address
    network = ipaddress.ip_network((plain, prefix_v4 if plain.version == 4 else prefix_v6), strict=False)
    assert ipaddress.ip_network(source.text) == network
    assert Source.of_key(source.key).digest == source.digest


def test_uids_and_addresses_never_share_a_key() -> None:
    """A Unix peer's uid cannot stand for an address."""
    assert source_of(("unix:uid=1,pid=2", 0), 32, 128).key != source_of(("::1", 1, 0, 0), 32, 128).key


def test_digest_is_keyed() -> None:
    """Another interpreter, started anew, gives another digest: nobody can choose sources that meet."""
    code = "from poolserver.networks import source_of; print(source_of(('192.0.2.1', 1), 32, 64).number)"
    command = [sys.executable, "-c", code]
    seeds = [
        subprocess.run(command, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True, timeout=60).stdout
        for seed in ("1", "2")
    ]
    assert seeds[0] != seeds[1]


def test_parsed_network_is_a_run_of_addresses() -> None:
    """Version, first, and the one after the last."""
    assert parse_network("::ffff:192.0.2.0/120") == (4, 0xC0000200, 0xC0000300)
