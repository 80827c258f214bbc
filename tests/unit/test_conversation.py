"""Conversations an exchange at a time: known handlers as they are, whatever they raise; other loops are left alone."""

import contextlib
import functools
import http.server
import io
import socket
import socketserver
import ssl
import sys
import wsgiref.simple_server
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolserver import ParkingMixIn, PreThreadMixIn
from poolserver.adapter import adapted, close_for_good
from poolserver.conversation import Conversation, is_conversational, is_movable

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"
PEER = ("192.0.2.1", 4711)


class Page(http.server.BaseHTTPRequestHandler):
    """Answers with the path."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Shout(ParkingMixIn, socketserver.StreamRequestHandler):
    """A line in, a line out; "bye" ends."""

    steps: list[str]

    def setup(self) -> None:
        super().setup()
        self.steps = ["setup"]

    def handle_one_request(self) -> None:
        line = self.rfile.readline(100)
        self.steps.append(line.decode().strip())
        self.wfile.write(line.upper())
        self.close_connection = not line or line == b"bye\n"

    def finish(self) -> None:
        super().finish()
        self.steps.append("finish")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's end and the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), 10)
        request, _ = listener.accept()
    request.settimeout(10)
    yield client, request
    close_for_good(request)  # where a handler was not finished its files are open
    client.close()


Ends = tuple[socket.socket, socket.socket]


def read_until(client: socket.socket, end: bytes) -> None:
    """Read on until that comes."""
    reply = b""
    while not reply.endswith(end):
        octets = client.recv(1000)
        assert octets, reply
        reply += octets


def steps(conversation: Conversation) -> list[str]:
    return conversation.handler.steps


# -- handlers as they are


def test_http_conversation_goes_on_request_by_request(ends: Ends) -> None:
    """With one handler object, until the client says that it was the last."""
    client, request = ends
    client.sendall(GET % 1)
    conversation = Conversation(Page, request, PEER, None)
    handler = conversation.handler
    for number in (1, 2, 3):
        read_until(client, b"/%d" % number)
        assert not conversation.is_over
        client.sendall(GET % (number + 1) if number < 3 else LAST)
        conversation.go_on()
    read_until(client, b"/last")
    assert conversation.is_over
    assert conversation.handler is handler
    assert handler.rfile.closed
    assert "handle" not in vars(handler)


def test_http_1_0_ends_with_its_request(ends: Ends) -> None:
    """As with http.server's own loop."""
    client, request = ends
    client.sendall(b"GET /old HTTP/1.0\r\n\r\n")
    assert Conversation(Page, request, PEER, None).is_over
    read_until(client, b"/old")


def test_files_are_served_by_a_partial(ends: Ends, tmp_path: Path) -> None:
    """SimpleHTTPRequestHandler with its folder, as its documentation has it."""
    (tmp_path / "a.txt").write_text("in the folder")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        log_message = Page.log_message

    client, request = ends
    client.sendall(b"GET /a.txt HTTP/1.1\r\n\r\n")
    conversation = Conversation(functools.partial(Quiet, directory=str(tmp_path)), request, PEER, None)
    read_until(client, b"in the folder")
    assert not conversation.is_over
    client.sendall(b"GET /none HTTP/1.1\r\n\r\n")
    conversation.go_on()
    read_until(client, b"</html>\n")
    assert conversation.is_over  # as http.server's errors have it


def test_calls_are_answered_one_by_one(ends: Ends) -> None:
    """SimpleXMLRPCRequestHandler over HTTP/1.1."""

    class Calls(xmlrpc.server.SimpleXMLRPCRequestHandler):
        protocol_version = "HTTP/1.1"

    service = xmlrpc.server.SimpleXMLRPCDispatcher()
    service.logRequests = False  # type: ignore[attr-defined]
    service.register_function(lambda a, b: a + b, "add")
    body = xmlrpc.client.dumps((1, 2), "add").encode()
    call = b"POST /RPC2 HTTP/1.1\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    client, request = ends
    client.sendall(call)
    conversation = Conversation(Calls, request, PEER, service)
    for _ in range(2):
        read_until(client, b"</methodResponse>\n")
        client.sendall(call)
        conversation.go_on()
    conversation.end()


def test_exchanges_of_the_mixin_follow_each_other(ends: Ends) -> None:
    """Set up once, finished once."""
    client, request = ends
    client.sendall(b"one\n")
    conversation = Conversation(Shout, request, PEER, None)
    client.sendall(b"two\n")
    conversation.go_on()
    client.sendall(b"bye\n")
    assert not conversation.is_over
    conversation.go_on()
    assert conversation.is_over
    assert steps(conversation) == ["setup", "one", "two", "bye", "finish"]
    read_until(client, b"ONE\nTWO\nBYE\n")


def test_mixin_is_an_ordinary_handler_elsewhere(ends: Ends) -> None:
    """Under a stock server its loop is its own."""
    client, request = ends
    client.sendall(b"one\ntwo\nbye\nnot read\n")
    handler = Shout(request, PEER, None)  # type: ignore[arg-type]
    assert handler.steps == ["setup", "one", "two", "bye", "finish"]


def test_mixin_that_setup_has_ended_takes_no_exchange(ends: Ends) -> None:
    """As its loop would not."""

    class Refuses(Shout):
        def setup(self) -> None:
            super().setup()
            self.close_connection = True

    client, request = ends
    client.sendall(b"one\n")
    conversation = Conversation(Refuses, request, PEER, None)
    assert conversation.is_over
    assert steps(conversation) == ["setup", "finish"]


def test_mixin_without_exchanges_says_what_is_missing(ends: Ends) -> None:
    """The method is named."""

    class Empty(ParkingMixIn, socketserver.StreamRequestHandler):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty must define handle_one_request"):
        Conversation(Empty, ends[1], PEER, None)


def test_last_exchange_ends_whatever_the_handler_says(ends: Ends) -> None:
    """At the end of input a handler that does not look would go on for ever."""

    class Blind(Shout):
        def handle_one_request(self) -> None:
            self.steps.append(self.rfile.readline(100).decode())

    client, request = ends
    client.sendall(b"one\n")
    conversation = Conversation(Blind, request, PEER, None)
    client.close()
    conversation.go_on(is_last=True)
    assert conversation.is_over
    assert steps(conversation)[-1] == "finish"


def test_conversation_that_nobody_goes_on_with_is_finished(ends: Ends) -> None:
    """Between two exchanges, once."""
    client, request = ends
    client.sendall(b"one\n")
    conversation = Conversation(Shout, request, PEER, None)
    conversation.end()
    assert steps(conversation) == ["setup", "one", "finish"]


# -- exceptions


class Fails(Shout):
    """Raises where it is told to."""

    where = ""
    last: Any = None

    def setup(self) -> None:
        type(self).last = self
        super().setup()
        self.fail("setup")

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.fail(self.steps[-1])

    def finish(self) -> None:
        super().finish()
        self.fail("finish")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise SystemExit(where) if where == "exit" else LookupError(where)


def failing(where: str) -> type[Fails]:
    return type("FailsThere", (Fails,), {"where": where})


@pytest.mark.parametrize("where", ["one", "exit"])
def test_exception_in_the_first_exchange_is_raised_and_the_handler_finished(ends: Ends, where: str) -> None:
    """As BaseRequestHandler does it; SystemExit too."""
    client, request = ends
    client.sendall(where.encode() + b"\n")
    cls = failing(where)
    with pytest.raises((LookupError, SystemExit), match=where):
        Conversation(cls, request, PEER, None)
    assert cls.last.steps == ["setup", where, "finish"]


def test_exception_in_a_later_exchange_is_raised_and_the_handler_finished(ends: Ends) -> None:
    """Likewise, in whatever lane that is."""
    client, request = ends
    client.sendall(b"one\n")
    conversation = Conversation(failing("two"), request, PEER, None)
    client.sendall(b"two\n")
    with pytest.raises(LookupError, match="two"):
        conversation.go_on()
    assert conversation.is_over
    assert steps(conversation) == ["setup", "one", "two", "finish"]


def test_exception_in_finish_is_raised_once(ends: Ends) -> None:
    """From the call that ended the conversation."""
    client, request = ends
    client.sendall(b"one\n")
    conversation = Conversation(failing("finish"), request, PEER, None)
    with pytest.raises(LookupError, match="finish"):
        conversation.end()
    assert steps(conversation) == ["setup", "one", "finish"]


def test_exception_in_setup_is_raised_and_nothing_is_finished(ends: Ends) -> None:
    """As BaseRequestHandler does it; and the handler is freed with the exception, without the garbage collector."""
    cls = failing("setup")
    with pytest.raises(LookupError, match="setup"):
        Conversation(cls, ends[1], PEER, None)
    assert cls.last.steps == ["setup"]
    assert not {"handle", "finish"} & set(vars(cls.last))


def test_conversation_that_is_over_is_freed_at_once(ends: Ends) -> None:
    """Handler and conversation held each other while it went on."""
    client, request = ends
    client.sendall(b"bye\n")
    handler = Conversation(Shout, request, PEER, None).handler
    assert sys.getrefcount(handler) == 2


# -- what was read already


@pytest.mark.parametrize("sent", [1, 2, 3])
def test_requests_sent_together_are_taken_without_waiting(ends: Ends, sent: int) -> None:
    """What the buffer holds is input; what it does not is not read for the question."""
    client, request = ends
    client.sendall(b"".join(GET % number for number in range(sent)))
    conversation = Conversation(Page, request, PEER, None)
    taken = 1
    while conversation.has_input():
        conversation.go_on()
        taken += 1
    assert taken == sent
    client.sendall(GET % 9)
    assert not conversation.has_input()
    conversation.go_on()
    read_until(client, b"/9")
    conversation.end()


def test_plain_conversation_goes_on_as_before_until_it_is_over(ends: Ends) -> None:
    """Whose input is in the kernel alone, between two exchanges."""
    client, request = ends
    request.settimeout(None)
    client.sendall(GET % 0)
    conversation = Conversation(Page, request, PEER, None)
    client.sendall(GET % 1)
    assert conversation.goes_on_as_before()
    client.sendall(GET % 2 + GET % 3)
    assert not conversation.goes_on_as_before()
    assert (conversation.is_over, conversation.has_input()) == (False, True)
    conversation.go_on()
    client.sendall(b"GET /4 HTTP/1.0\r\n\r\n")
    assert not conversation.goes_on_as_before()
    assert conversation.is_over
    assert conversation.handler.wfile.closed


def test_exchange_that_fails_as_before_is_raised_and_the_handler_finished(ends: Ends) -> None:
    client, request = ends
    request.settimeout(None)
    client.sendall(b"one\n")
    conversation = Conversation(Shout, request, PEER, None)

    def fail() -> None:
        raise ZeroDivisionError

    conversation.handler.handle_one_request = fail
    with pytest.raises(ZeroDivisionError):
        conversation.goes_on_as_before()
    assert conversation.is_over
    assert steps(conversation)[-1] == "finish"


@pytest.mark.parametrize("change", ["connection", "request", "rfile", "timeout", "nothing"])
def test_conversation_that_the_handler_changes_does_not_go_on_as_before(ends: Ends, change: str) -> None:
    """It puts TLS on, say, or reads elsewhere, or waits for so long only."""
    client, request = ends
    request.settimeout(None)
    client.sendall(b"one\n")
    conversation = Conversation(Shout, request, PEER, None)
    handler = conversation.handler
    inner = handler.handle_one_request

    def changes() -> None:
        inner()
        if change == "timeout":
            request.settimeout(10)
        elif change == "rfile":
            del handler.rfile
        elif change != "nothing":
            setattr(handler, change, object())

    handler.handle_one_request = changes
    client.sendall(b"two\n")
    assert conversation.goes_on_as_before() is (change == "nothing")
    assert not conversation.is_over


def test_unbuffered_reader_holds_nothing(ends: Ends) -> None:
    """What its client sent is in the kernel, which tells the epoll."""

    class Unbuffered(Shout):
        rbufsize = 0

    client, request = ends
    client.sendall(b"one\ntwo\n")
    conversation = Conversation(Unbuffered, request, PEER, None)
    assert not conversation.has_input()
    conversation.end()


def test_reader_that_does_not_tell_may_hold_something(ends: Ends, tmp_path: Path) -> None:
    """Such a handler is gone on with, as a stock server would; to park it could mean to wait for what is there."""

    class OwnFile(Shout):
        def setup(self) -> None:
            super().setup()
            self.rfile = io.BufferedReader(io.FileIO(tmp_path / "lines"))

    (tmp_path / "lines").write_bytes(b"one\ntwo\n")
    conversation = Conversation(OwnFile, ends[1], PEER, None)
    assert conversation.has_input()
    conversation.end()


def test_layer_that_nobody_knows_may_hold_something(ends: Ends) -> None:
    """A handler that puts pyOpenSSL's, say, between itself and the socket: what the epoll sees is not what it reads."""

    class Layer:
        def __init__(self, request: socket.socket) -> None:
            self.makefile = request.makefile
            self.sendall = request.sendall

    class Layered(Shout):
        def setup(self) -> None:
            self.request = Layer(self.request)
            super().setup()

    client, request = ends
    client.sendall(b"one\n")
    conversation = Conversation(Layered, request, PEER, None)
    assert conversation.has_input()
    assert not conversation.is_plain
    assert conversation.connection is request
    conversation.end()


@pytest.mark.parametrize("name", ["request", "connection"])
def test_tls_put_on_in_setup_is_where_the_client_is(ends: Ends, name: str) -> None:
    """The socket that was wrapped has no descriptor any more."""

    class Wraps(Shout):
        def setup(self) -> None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            wrapped = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
            super().setup()
            setattr(self, name, wrapped)

        def handle_one_request(self) -> None:
            """Nothing."""

    _, request = ends
    conversation = Conversation(Wraps, request, PEER, None)
    assert request.fileno() == -1
    assert conversation.connection.fileno() >= 0
    assert not conversation.is_plain
    assert not conversation.has_input()
    conversation.end()
    conversation.connection.close()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, True), ({"wbufsize": -1}, False), ({"finish": Shout.finish}, False)],
    ids=["stock", "buffered", "own"],
)
def test_finish_that_may_be_called_anywhere_is_the_stock_one(ends: Ends, changes: dict, expected: bool) -> None:
    """It sends nothing and runs no code of the user's."""
    cls = type("Changed", (Page,), {"steps": [], **changes})
    client, request = ends
    client.sendall(GET % 1)
    conversation = Conversation(cls, request, PEER, None)
    assert conversation.has_stock_finish == expected
    with contextlib.suppress(TypeError):  # super() in a function that was made for another class
        conversation.end()


# -- which loops are known


def hooked(name: str) -> type:
    def hook(self: Any, *args: Any) -> Any:
        return getattr(super(cls, self), name)(*args)

    cls = type("Hooked", (socketserver.TCPServer,), {name: hook})
    return cls


def seated(server_class: type, handler: Any) -> socketserver.BaseServer:
    cls = adapted(server_class)
    server = cls.__new__(cls)
    server.RequestHandlerClass = handler
    return server


class Threading(socketserver.ThreadingMixIn, socketserver.TCPServer):
    pass


class Pooled(PreThreadMixIn, http.server.HTTPServer):
    pass


@pytest.mark.parametrize(
    "handler",
    [
        Page,
        Shout,
        http.server.SimpleHTTPRequestHandler,
        functools.partial(http.server.SimpleHTTPRequestHandler, directory="/"),
        xmlrpc.server.SimpleXMLRPCRequestHandler,
    ],
)
@pytest.mark.parametrize(
    "server",
    [socketserver.TCPServer, socketserver.UnixStreamServer, http.server.HTTPServer, http.server.ThreadingHTTPServer]
    + [Threading, Pooled, xmlrpc.server.SimpleXMLRPCServer, hooked("verify_request"), hooked("handle_error")],
)
def test_known_loops_are_taken_in_pieces(server: type, handler: Any) -> None:
    """socketserver's own, under servers that stand no code of theirs around a connection."""
    assert is_conversational(seated(server, handler))


class OwnLoop(Page):
    def handle(self) -> None:
        super().handle()


class OwnMaker(Page):
    def __new__(cls, *args: object) -> "OwnMaker":
        return super().__new__(cls)


class Meta(type):
    def __call__(cls, *args: Any) -> Any:
        return super().__call__(*args)


class OwnMeta(Page, metaclass=Meta):
    pass


@pytest.mark.parametrize(
    "handler",
    [
        OwnLoop,
        OwnMaker,
        OwnMeta,
        socketserver.StreamRequestHandler,
        wsgiref.simple_server.WSGIRequestHandler,
        vars(OwnMaker).get,
        functools.partial(OwnLoop),
        None,
    ],
)
def test_loops_of_others_are_left_alone(handler: Any) -> None:
    """Nobody knows where such a handler may be interrupted, or what is done around its making."""
    assert not is_conversational(seated(socketserver.TCPServer, handler))


@pytest.mark.parametrize("name", ["process_request", "finish_request", "shutdown_request", "close_request"])
def test_hooks_of_the_users_stand_around_a_whole_connection(name: str) -> None:
    """In the class or in the object: a conversation in pieces would pass them over."""
    assert not is_conversational(seated(hooked(name), Page))
    server = seated(socketserver.TCPServer, Page)
    setattr(server, name, lambda *_: None)
    assert not is_conversational(server)


def test_movable_is_http_or_what_says_so() -> None:
    """A new handler object can go on where the protocol keeps nothing between requests."""

    class SaysNo(Page):
        movable = False

    class SaysYes(Shout):
        movable = True

    movable = {Page: True, OwnLoop: False, Shout: False, SaysNo: False, SaysYes: True}
    assert {cls: is_movable(cls) for cls in movable} == movable
