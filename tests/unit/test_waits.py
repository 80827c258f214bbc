"""What is waited for: data, lines, and heads as ``http.server`` reads them, which is the judge here."""

import io
from http.server import BaseHTTPRequestHandler

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver.waits import Verdict, Wait, judge

MOST = 16384

GET = b"GET / HTTP/1.1\r\n"


def verdict(wait: str, octets: bytes, most: int = MOST) -> Verdict:
    return judge(Wait(wait), octets, most)


class NeedsMoreError(Exception):
    """A read that would wait for the client."""


class Unread:
    """The octets that have come; reading past them would wait."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets

    def readline(self, limit: int) -> bytes:
        """As a buffered reader's."""
        end = self.octets.find(b"\n", 0, limit) + 1
        if not end and len(self.octets) < limit:
            raise NeedsMoreError
        line, self.octets = self.octets[: end or limit], self.octets[end or limit :]
        return line


class Reader(BaseHTTPRequestHandler):
    """Reads one head, from memory, and does nothing about it."""

    def __init__(self, octets: bytes) -> None:
        self.rfile = Unread(octets)
        self.wfile = io.BytesIO()
        self.client_address = ("192.0.2.1", 1)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def stops_for(octets: bytes) -> bool:
    """Whether ``http.server`` waits for more when it has read these."""
    try:
        Reader(octets).handle_one_request()
    except NeedsMoreError:
        return True
    return False


METHODS = st.sampled_from([b"GET", b"POST", b"get", b"", b"\0"])
BLANKS = st.sampled_from([b" ", b"  ", b"\t", b"\x1c", b"\x85", b"\xa0", b""])
VERSIONS = st.sampled_from(
    [
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/0.9",
        b"HTTP/01.1",
        b"HTTP/2.0",
        b"HTTP/",
        b"HTTP/-1.1",
        b"http/1.1",
        b"FTP/1",
        b"",
    ]
)
ENDS = st.sampled_from([b"\r\n", b"\n", b"\r", b""])
HEADERS = st.sampled_from([b"Host: x", b"Expect: 100-continue", b":", b"x", b"\xff", b"", b" folded"])
REQUEST_LINES = st.tuples(METHODS, BLANKS, st.sampled_from([b"/", b"//x", b""]), BLANKS, VERSIONS, BLANKS, ENDS)
UNREAD = st.tuples(REQUEST_LINES, st.lists(st.tuples(HEADERS, ENDS).map(b"".join), max_size=4)).map(
    lambda parts: b"".join(parts[0]) + b"".join(parts[1])
)


@given(UNREAD)
def test_lane_never_waits_for_the_rest_of_a_head(octets: bytes) -> None:
    """Whatever a client sends: what is complete to us is all that http.server reads before it acts."""
    if octets and verdict("http", octets) is Verdict.COMPLETE:
        assert not stops_for(octets)


@given(UNREAD)
def test_client_whose_head_is_complete_is_served(octets: bytes) -> None:
    """What http.server acts upon is complete; if not for its version, which no client sends without a head."""
    if not stops_for(octets) and verdict("http", octets) is not Verdict.COMPLETE:
        line = octets.partition(b"\n")[0].decode("latin-1").split()
        assert len(line) == 3
        assert line[2].startswith("HTTP/")
        assert verdict("http", octets + b"\r\n\r\n") is Verdict.COMPLETE


@pytest.mark.parametrize(
    "octets",
    [
        GET + b"\r\n",
        GET + b"Host: x\r\n\r\n",
        GET + b"Host: x\n\nbody",
        b"GET /\r\n\r\n",
        b"\r\n",
        b"nonsense\r\n",
        b"GET / FTP/1.0\r\n",
        b"a b c d\n",
        GET + b"\r\n" + GET,
    ],
)
def test_heads_that_are_complete(octets: bytes) -> None:
    """With CR LF or LF, with a body or the next request behind them; and lines that http.server refuses at once."""
    assert verdict("http", octets) is Verdict.COMPLETE


@pytest.mark.parametrize(
    "octets",
    [
        b"G",
        GET[:-1],
        GET,
        GET + b"Host: x\r\n",
        GET + b"Host: x\r\n\r",
        b"GET /\r\n",
        b"GET / HTTP/0.9\r\n",
        b"GET / HTTP/01.1\r\n",
        b"GET\xa0/\xa0HTTP/1.1\r\n",
        b"GET\x1c/\x1cHTTP/1.1\r\n",
    ],
)
def test_heads_that_are_not(octets: bytes) -> None:
    """Those with old versions and odd blanks, too: http.server reads on for their headers."""
    assert verdict("http", octets) is Verdict.PARTIAL


@pytest.mark.parametrize(("wait", "octets"), [("data", b"x"), ("line", b"x\n"), ("line", b"\nx"), ("none", b"x")])
def test_what_is_waited_for_is_there(wait: str, octets: bytes) -> None:
    """A byte, a line, nothing at all."""
    assert verdict(wait, octets) is Verdict.COMPLETE


def test_nothing_is_silence_unless_nothing_is_waited_for() -> None:
    """Before the first byte."""
    silent = {wait: verdict(wait, b"") for wait in Wait}
    assert silent.pop(Wait.NONE) is Verdict.COMPLETE
    assert set(silent.values()) == {Verdict.SILENT}


@pytest.mark.parametrize("wait", ["line", "http"])
def test_bound_is_on_what_is_incomplete(wait: str) -> None:
    """A line or head that fills it, and a little below; one that is complete may have much behind it."""
    assert verdict(wait, b"x" * 99, 100) is Verdict.PARTIAL
    assert verdict(wait, b"x" * 100, 100) is Verdict.TOO_LONG
    assert verdict(wait, (GET + b"\r\n").ljust(100, b"x"), 100) is Verdict.COMPLETE
