"""The syslog and WSGI examples, by themselves."""

import io
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from poolserver.examples.syslog import MAX_MESSAGE_CHARS, understood
from poolserver.examples.wsgi import MAX_BODY_BYTES, application


@pytest.mark.parametrize(
    ("message", "priority", "text"),
    [
        ("<28>Nov 21 12:00:00 host me: hello", "daemon.warning", "Nov 21 12:00:00 host me: hello"),
        ("<155>1 2026-11-21T12:00:00Z host me - - - hello\n", "local3.err", "2026-11-21T12:00:00Z host me - - - hello"),
        ("<191>x", "local7.debug", "x"),
        ("<192>x", "user.notice", "<192>x"),
        ("hello\x1b[2J\nworld", "user.notice", "hello?[2J?world"),
        ("", "user.notice", ""),
        ("<13>" + "x" * 5000, "user.notice", "x" * MAX_MESSAGE_CHARS),
    ],
)
def test_syslog_messages_are_understood(message: str, priority: str, text: str) -> None:
    """On one line, bounded, and with a priority whatever was sent."""
    assert understood(message) == (priority, text)


def asked(method: str, query: str = "", body: bytes = b"", **more: str) -> tuple[str, bytes]:
    """The status and the body of an answer that PEP 3333 allows."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "QUERY_STRING": query, "wsgi.input": io.BytesIO(body)} | more
    setup_testing_defaults(environ)
    told: list[str] = []

    def start_response(status: str, _headers: object, _error: object = None) -> object:
        told.append(status)
        return lambda _data: None

    answer = validator(application)(environ, start_response)
    try:
        return told[0], b"".join(answer)
    finally:
        answer.close()


@pytest.mark.parametrize(
    ("request_", "status", "answer"),
    [
        (("GET", "name=world"), "200 OK", b"hello world\n"),
        (("GET", ""), "200 OK", b"hello stranger\n"),
        (("HEAD", "name=world"), "200 OK", b""),
        (("DELETE", ""), "405 Method Not Allowed", b"GET, HEAD or POST\n"),
        (("POST", "", b"12345"), "411 Length Required", b"how long is it?\n"),
    ],
)
def test_wsgi_application_answers(request_: tuple[Any, ...], status: str, answer: bytes) -> None:
    """As PEP 3333 has it: wsgiref's validator stands between."""
    assert asked(*request_) == (status, answer)


def test_wsgi_application_reads_what_it_is_told_to_and_no_more() -> None:
    """Within its limit."""
    assert asked("POST", "", b"1234567", CONTENT_LENGTH="5") == ("200 OK", b"5 bytes\n")
    status, _ = asked("POST", "", b"", CONTENT_LENGTH=str(MAX_BODY_BYTES + 1))
    assert status.startswith("413")
