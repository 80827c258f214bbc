r"""The PROXY protocol's header, by which a proxy tells whose connection it passes on. Pure: octets in, header out.

Strict: what is not exactly a header is refused, and as soon as that can be told; nothing is guessed. Additional fields
(TLVs) are passed over. Source: haproxy.org, proxy-protocol.txt, sections 2.1 and 2.2.
"""

import re
import socket
import struct
from typing import NamedTuple

MAX_V1_BYTES = 107
"""The longest line with its end, as the protocol has it."""

MAX_V2_BYTES = 4096
"""Longest header with its additional fields; the protocol would allow 65,551. A certificate's name is a hundred or
two."""

MAX_BYTES = max(MAX_V1_BYTES, MAX_V2_BYTES)
"""So much of a connection's input is all that need be seen."""

V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V1_SIGNATURE = b"PROXY "
_V1_LINE = re.compile(rb"PROXY (TCP4|TCP6) ([0-9.:A-Fa-f]+) ([0-9.:A-Fa-f]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})")
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [ -~]*)?")
_V1_BEGINNING = re.compile(rb"[ -~]*\r?")
_V1_FAMILIES = {b"TCP4": socket.AF_INET, b"TCP6": socket.AF_INET6}

_V2_FIXED = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21  # version 2 in the upper half
_UNSPECIFIED, _TCP4, _TCP6, _UNIX_STREAM = 0x00, 0x11, 0x21, 0x31
_V2_ADDRESSES = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX_STREAM: 216}
"""How many bytes both addresses take, at least, in what can be told of a stream."""

Client = tuple[str, int] | tuple[str, int, int, int]


class MalformedError(ValueError):
    """What came is no header that is to be had here; the text says why."""


class Header(NamedTuple):
    """``client`` in the form that accept(2) gives it; None where the header tells of none: the proxy's own health
    check, or a client of its own host. The connection's peer counts then. ``size`` in bytes."""

    client: Client | None
    size: int


def parse(octets: bytes, mode: str) -> Header | None:
    """Read the header that ``octets`` begin with.

    Args:
        octets: What has come of a connection, or the first ``MAX_BYTES`` of it.
        mode: ``v1``, ``v2`` or ``any``.

    Returns:
        None if it is not complete yet.

    Raises:
        MalformedError: It is none, or of another version.
    """
    if not octets:
        return None
    if V2_SIGNATURE.startswith(octets[: len(V2_SIGNATURE)]):
        version, parse_it = "v2", _parse_v2
    elif _V1_SIGNATURE.startswith(octets[: len(_V1_SIGNATURE)]):
        version, parse_it = "v1", _parse_v1
    else:
        raise MalformedError("it does not begin with a PROXY header")
    if mode not in (version, "any"):
        raise MalformedError(f"its header is {version}, where proxy_protocol.mode is {mode}")
    return parse_it(octets)


def _parse_v1(octets: bytes) -> Header | None:
    end = octets.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(octets) >= MAX_V1_BYTES or not _V1_BEGINNING.fullmatch(octets):
            raise MalformedError(f"its header of version 1 is no line of up to {MAX_V1_BYTES} bytes")
        return None
    line = octets[:end]
    if _V1_UNKNOWN.fullmatch(line):
        return Header(None, end + 2)
    found = _V1_LINE.fullmatch(line)
    if found is None:
        raise MalformedError("its header of version 1 is not of the form PROXY TCP4 SOURCE DESTINATION PORT PORT")
    family = _V1_FAMILIES[found[1]]
    source, _, port, other_port = (*(_packed(family, found[place]) for place in (2, 3)), int(found[4]), int(found[5]))
    if max(port, other_port) > 65535:
        raise MalformedError("its header of version 1 has a port above 65535")
    return Header(_client(family, source, port), end + 2)


def _parse_v2(octets: bytes) -> Header | None:
    if len(octets) < _V2_FIXED.size:
        return None
    _, command, family, length = _V2_FIXED.unpack_from(octets)
    size = _V2_FIXED.size + length
    if command not in (_LOCAL, _PROXY):
        raise MalformedError(f"its header of version 2 has the unknown version and command 0x{command:02x}")
    if size > MAX_V2_BYTES:
        raise MalformedError(f"its header of version 2 has {size} bytes, more than {MAX_V2_BYTES}")
    if command == _PROXY and length < _V2_ADDRESSES.get(family, MAX_V2_BYTES):
        raise MalformedError(f"its header of version 2 has no addresses of a stream (family 0x{family:02x})")
    if len(octets) < size:
        return None
    return Header(_v2_client(family, octets) if command == _PROXY else None, size)


def _v2_client(family: int, octets: bytes) -> Client | None:
    first = _V2_FIXED.size
    if family == _TCP4:
        return _client(socket.AF_INET, octets[first : first + 4], *struct.unpack_from("!H", octets, first + 8))
    if family == _TCP6:
        return _client(socket.AF_INET6, octets[first : first + 16], *struct.unpack_from("!H", octets, first + 32))
    return None


def _packed(family: socket.AddressFamily, text: bytes) -> bytes:
    try:
        return socket.inet_pton(family, text.decode("ascii"))
    except OSError:
        raise MalformedError("its header of version 1 has an address that is none of its family") from None


def _client(family: socket.AddressFamily, packed: bytes, port: int) -> Client:
    host = socket.inet_ntop(family, packed)
    return (host, port) if family == socket.AF_INET else (host, port, 0, 0)
