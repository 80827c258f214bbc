"""DNS over UDP: every name below ``example.`` is 192.0.2.1, no other name exists.

Serve it, and talk to it::

    poolserver run poolserver.examples.dns:DNSHandler -b udp://127.0.0.1:20053
    dig @127.0.0.1 -p 20053 www.example
    echo 'www.example A' | dnsperf -s 127.0.0.1 -p 20053 -l 5

A packet that is not one well-formed query gets no answer: answering it with an error is how two servers
come to answer each other for ever. A reply is at most 16 bytes longer than its query, so nobody can use this
server to multiply traffic towards a forged address.

Source: RFC 1035, section 4 (format), RFC 2606 (``example.``), RFC 5737 (192.0.2.0/24).
"""

import socketserver
import struct
from typing import NamedTuple

HEADER = struct.Struct("!6H")  # id, flags, and the counts of questions, answers, authorities and additional records
QUESTION_END = struct.Struct("!2H")  # type and class, after the name

MAX_QUERY_BYTES = 512  # RFC 1035, 4.2.1; also with EDNS, where only replies grow
MAX_NAME_BYTES = 255  # RFC 1035, 3.1

IS_REPLY = 0x8000
OPCODE = 0x7800
AUTHORITATIVE = 0x0400
RECURSION_DESIRED = 0x0100  # copied from the query, as every server does
NO_SUCH_NAME = 3

TYPE_A, TYPE_ANY, CLASS_IN = 1, 255, 1
ADDRESS = bytes([192, 0, 2, 1])
ANSWER = struct.pack("!3HIH", 0xC00C, TYPE_A, CLASS_IN, 60, len(ADDRESS)) + ADDRESS
"""The one answer: a pointer to the question's name at offset 12, A, IN, 60 s to live, four bytes."""


class DNSHandler(socketserver.BaseRequestHandler):
    """Answers one packet. (A DatagramRequestHandler would answer every packet, if only with nothing.)"""

    def handle(self) -> None:
        """Answer a well-formed query, ignore the rest."""
        packet, sock = self.request
        reply = answer(packet)
        if reply and self.client_address:
            try:
                sock.sendto(reply, self.client_address)
            except BlockingIOError:
                pass  # the send buffer is full: the client asks again


class Query(NamedTuple):
    """What a reply has to know of a query."""

    ident: int
    flags: int
    labels: list[bytes]
    rtype: int
    question: bytes
    """The question section as it came, to be sent back."""


def answer(packet: bytes) -> bytes | None:
    """The reply to ``packet``; None when it is not one well-formed query."""
    query = parse(packet)
    if query is None:
        return None
    is_ours = bool(query.labels) and query.labels[-1].lower() == b"example"
    records = [ANSWER] if is_ours and query.rtype in (TYPE_A, TYPE_ANY) else []
    flags = IS_REPLY | AUTHORITATIVE | (query.flags & RECURSION_DESIRED) | (0 if is_ours else NO_SUCH_NAME)
    return HEADER.pack(query.ident, flags, 1, len(records), 0, 0) + query.question + b"".join(records)


def parse(packet: bytes) -> Query | None:
    """``packet`` as a query of class IN with one question, or None.

    What follows the question (EDNS, for one) is not read.
    """
    if not HEADER.size < len(packet) <= MAX_QUERY_BYTES:
        return None
    ident, flags, questions, *_ = HEADER.unpack_from(packet)
    if flags & (IS_REPLY | OPCODE) or questions != 1:
        return None
    name = read_name(packet, HEADER.size)
    if name is None or len(packet) < name.end + QUESTION_END.size:
        return None
    rtype, rclass = QUESTION_END.unpack_from(packet, name.end)
    if rclass != CLASS_IN:
        return None
    return Query(ident, flags, name.labels, rtype, packet[HEADER.size : name.end + QUESTION_END.size])


class Name(NamedTuple):
    """A name and the offset behind it."""

    labels: list[bytes]
    end: int


def read_name(packet: bytes, start: int) -> Name | None:
    """The name at ``start``, or None where it is cut short, too long, or compressed (no question need be)."""
    labels: list[bytes] = []
    at = start
    while at < len(packet) and at - start < MAX_NAME_BYTES:
        size = packet[at]
        if size == 0:
            return Name(labels, at + 1)
        if size > 63:
            return None
        labels.append(packet[at + 1 : at + 1 + size])
        at += 1 + size
    return None
