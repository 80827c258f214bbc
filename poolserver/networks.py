"""Networks and sources: where an address belongs, and who a peer is as limits count it.

Pure: it opens nothing and resolves no names. ``sections.py`` judges networks with it, lanes name their peers with it.
"""

import bisect
import functools
import ipaddress
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

UNIX = 0
"""The version of a source that is no IP address: no network holds it."""

# No zone, which is of one host alone, and no mask: ipaddress takes both, and 0.0.0.255 for 255.255.255.0.
_NETWORK = re.compile(r"([0-9A-Fa-f.:]+)(?:/[0-9]{1,3})?")
_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
_NOT_IP = b"\xff" * 8  # begins the keys of uids: as an address multicast, which nobody connects from
_UNKNOWN = b"\xff" * 16
_WORD = 2**64 - 1
# No byte of a digest is like those of a free word: bytes.count() then leaps over free words, 8 times as fast.
_ODD_BYTES = 0x0101010101010101
_MAX_HOST_CHARS = 64  # an IPv6 address and its zone are at most 39 + 1 + 15; longer text is not worth caching

CACHED_HOSTS = 8192
"""Hosts whose source is remembered, about 4 MB at most. A flood from more of them costs 3 us each instead of 0.3."""


class Networks:
    """A set of networks. IPv4-mapped IPv6 networks are IPv4 ones; ``::/0`` holds IPv6 addresses only.

    The first and the last-but-one address of each run, in order: an address is inside when an odd number of these
    bounds is at or below it. One C call whatever the prefix lengths, where a set of each length costs up to 129
    look-ups. Source: measured, 0.2-0.4 us over 10,000 networks.
    """

    __slots__ = ("_bounds",)

    def __init__(self, bounds: dict[int, list[int]]) -> None:
        self._bounds = bounds

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Networks":
        """Read networks such as ``"192.0.2.0/24"``, ``"2001:db8::/32"``, or single addresses.

        Raises:
            ValueError: one of them is none, by its text.
        """
        runs: dict[int, list[tuple[int, int]]] = {}
        for text in texts:
            try:
                version, first, after = parse_network(text)
            except ValueError as error:
                raise ValueError(f"{text!r} {error}") from None
            runs.setdefault(version, []).append((first, after))
        return cls({version: list(_merged(sorted(found))) for version, found in runs.items()})

    def __bool__(self) -> bool:
        """Whether there is any network in it."""
        return bool(self._bounds)

    def contains(self, address: int, version: int) -> bool:
        """Whether one of the networks holds ``address``; never for a ``version`` that is neither 4 nor 6."""
        bounds = self._bounds.get(version)
        return bounds is not None and bisect.bisect_right(bounds, address) & 1 == 1


NO_NETWORKS = Networks({})
"""Holds no address."""


def _merged(runs: list[tuple[int, int]]) -> Iterator[int]:
    """The bounds of these (first, after) runs, sorted, with those that overlap or touch made one."""
    start, end = runs[0]
    for first, after in runs:
        if first > end:
            yield start
            yield end
            start, end = first, after
        end = max(end, after)
    yield start
    yield end


def parse_network(text: str) -> tuple[int, int, int]:
    """Read one network: its version, its first address, and the one after its last.

    Raises:
        ValueError: it is none; a clause without the text, which the caller names with its place.
    """
    found = _NETWORK.fullmatch(text)
    try:
        address = ipaddress.ip_address(found[1] if found else "")
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError('must be a network such as "192.0.2.0/24" or "2001:db8::/32"') from None
    if network.network_address != address:
        raise ValueError(f'must be a network, with no bits below its prefix (did you mean "{network}"?)')
    version, first, size = network.version, int(network.network_address), network.num_addresses
    if version == 6 and first >> 32 == 0xFFFF and network.prefixlen >= 96:
        version, first = 4, first - _MAPPED
    return version, first, first + size


@dataclass(frozen=True, slots=True)
class Source:
    """Who connects, as limits count it.

    ``key`` is the address cut to its ``prefix``, 16 bytes; IPv4 as it is mapped into IPv6. ``address`` is whole, for
    networks. ``version`` is 4, 6 or 0, with 0 for a Unix peer and for whoever cannot be told: networks do not apply.

    ``digest`` stands for the key in shared memory, in native order, and ``number`` is the same as a word. It is
    ``hash(key)``, a siphash keyed by the interpreter's seed: forked workers share it, and no outsider can choose
    sources whose digests meet, unless ``PYTHONHASHSEED`` makes the seed known. Never zero, which says "free".
    """

    key: bytes
    digest: bytes
    number: int
    address: int
    version: int
    prefix: int

    @classmethod
    def of_key(cls, key: bytes, address: int = 0, version: int = UNIX, prefix: int = 128) -> "Source":
        """Make one of its key; without the address it is good for tables, not for networks."""
        number = digest_number(key)
        return cls(key, number.to_bytes(8, sys.byteorder), number, address, version, prefix)

    @property
    def text(self) -> str:
        """As the log and status write it: ``192.0.2.0/24``, ``2001:db8::/64``, ``uid 1000``, ``unknown``."""
        return key_text(self.key, self.prefix, self.prefix)


def digest_number(key: bytes) -> int:
    """The keyed digest of a key: 56 bits and 8 that are set, so never 0. The same in all processes of a fork family."""
    return hash(key) & _WORD | _ODD_BYTES


def key_text(key: bytes, prefix_v4: int, prefix_v6: int) -> str:
    """Write the source that has this key, which was cut to these prefixes."""
    if key == _UNKNOWN:
        return "unknown"
    if key[:8] == _NOT_IP:
        return f"uid {int.from_bytes(key[8:], 'big')}"
    if int.from_bytes(key[:12], "big") == 0xFFFF:
        host, prefix, width = socket.inet_ntop(socket.AF_INET, key[12:]), prefix_v4, 32
    else:
        host, prefix, width = socket.inet_ntop(socket.AF_INET6, key), prefix_v6, 128
    return host if prefix >= width else f"{host}/{prefix}"


def source_of(client_address: object, prefix_v4: int, prefix_v6: int) -> Source:
    """Say who ``client_address`` is, whatever socketserver or a user's ``get_request`` gave."""
    return source_of_host(host_of(client_address), prefix_v4, prefix_v6)


def host_of(client_address: object) -> str:
    """The host in it, of a length worth caching; empty when there is none."""
    if isinstance(client_address, tuple) and client_address:
        host = client_address[0]
        if isinstance(host, str) and len(host) <= _MAX_HOST_CHARS:
            return host
    return ""


@functools.lru_cache(maxsize=CACHED_HOSTS)
def source_of_host(host: str, prefix_v4: int, prefix_v6: int) -> Source:
    """Say who that is: IPv4-mapped IPv6 is IPv4; an IPv6 zone (``%eth0``) is passed over; ``unix:uid=…`` is told by its
    uid. All others count as one source, ``unknown``: among them the peers of a Unix datagram socket, whose names are
    theirs to choose."""
    if host.startswith("unix:"):
        return _source_of_uid(host.partition(",")[0].removeprefix("unix:uid="))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        address = int.from_bytes(socket.inet_pton(family, host.partition("%")[0]), "big")
    except (OSError, ValueError):  # ValueError: a NUL, or a lone surrogate
        return UNKNOWN
    if family == socket.AF_INET6 and address >> 32 != 0xFFFF:
        return Source.of_key(_cut(address, 128 - prefix_v6).to_bytes(16, "big"), address, 6, prefix_v6)
    address &= 2**32 - 1
    return Source.of_key((_MAPPED | _cut(address, 32 - prefix_v4)).to_bytes(16, "big"), address, 4, prefix_v4)


def _cut(address: int, bits: int) -> int:
    return address >> bits << bits


def _source_of_uid(text: str) -> Source:
    digits = text.removeprefix("-")  # SO_PEERCRED read as a signed int
    if not (digits.isascii() and digits.isdecimal()):
        return UNKNOWN
    return Source.of_key(_NOT_IP + (int(text) & 0xFFFFFFFF).to_bytes(8, "big"))


UNKNOWN = Source.of_key(_UNKNOWN)
"""Whoever cannot be told from others."""
