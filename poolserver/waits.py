"""What a connection must have sent before a lane is given to it (``parking.wait_for``). Pure: octets in, verdict out.

FreeBSD's accept filters are the model. Source: accf_data(9), accf_http(9).
"""

import enum

from poolserver.proxy_protocol import MalformedError, parse

_TLS_HANDSHAKE = b"\x16\x03"
"""How a client that speaks TLS begins; no line and no request does. Source: RFC 8446 section 5.1."""


class Wait(enum.StrEnum):
    """What is waited for; the values are the configuration's words."""

    NONE = "none"  # the server may speak first
    DATA = "data"  # a first byte
    LINE = "line"  # a complete line
    HTTP = "http"  # a complete request head


USUAL_END = {Wait.NONE: b"", Wait.DATA: b"", Wait.LINE: b"\n", Wait.HTTP: b"\r\n\r\n"}
"""With what the unread input of a connection ends, where a client has sent what is waited for and nothing more. Input
that ends so has it."""


class Step(enum.StrEnum):
    """What comes on a connection before its handler, in this order; admission is between the first two."""

    HEADER = "header"  # of the PROXY protocol
    HANDSHAKE = "handshake"  # of TLS
    REQUEST = "request"  # what a Wait says


class Verdict(enum.Enum):
    """How far a connection is."""

    SILENT = "silent"  # nothing unread
    PARTIAL = "partial"
    COMPLETE = "complete"
    ENDED = "ended"  # nothing unread, and no more will come: the handler is to see it
    TOO_LONG = "too long"
    RESET = "reset"


def judge(wait: Wait, octets: bytes, most: int, *, may_be_tls: bool = False) -> Verdict:
    """Say whether ``octets``, the unread input of a connection, hold what is waited for.

    Args:
        wait: What is waited for.
        octets: What has come and is unread, at most ``most`` of it.
        most: A line or head of so many bytes that is still not complete is too long.
        may_be_tls: The handler may put TLS on by itself: what is waited for cannot be seen then.
    """
    if not octets:
        return Verdict.COMPLETE if wait is Wait.NONE else Verdict.SILENT
    if may_be_tls and octets.startswith(_TLS_HANDSHAKE):
        return Verdict.COMPLETE
    if _has_head(octets) if wait is Wait.HTTP else wait is not Wait.LINE or b"\n" in octets:
        return Verdict.COMPLETE
    return Verdict.TOO_LONG if len(octets) >= most else Verdict.PARTIAL


def judge_header(mode: str, octets: bytes) -> Verdict:
    """Say whether a PROXY header is there, or what cannot become one: that is for a lane to refuse."""
    try:
        return Verdict.COMPLETE if parse(octets, mode) else Verdict.PARTIAL
    except MalformedError:
        return Verdict.COMPLETE


def _has_head(octets: bytes) -> bool:
    """Whether an HTTP request head is complete, as ``http.server`` reads it: up to an empty line, ended by CR LF or LF.

    A first line that it answers by itself is one, too; for any other it would wait in a lane.
    """
    end = octets.find(b"\n")
    if end < 0:
        return False
    if octets.find(b"\n\r\n", end) >= 0 or octets.find(b"\n\n", end) >= 0:
        return True
    words = octets[:end].decode("latin-1").split()  # as it does: there are more blanks than in bytes.split
    is_old = len(words) == 2 and words[0] == "GET"
    return not (is_old or (len(words) == 3 and words[2].startswith("HTTP/")))
