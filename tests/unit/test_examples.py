"""The example handlers, under the standard library's own servers, which know nothing of poolserver."""

import http.client
import logging
import socket
import socketserver
import struct
import threading
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poolserver.examples import dns, keyvalue, rpc, smtp, web
from poolserver.examples.dns import DNSHandler
from poolserver.examples.echo import EchoHandler
from poolserver.examples.keyvalue import KeyValueHandler, Store
from poolserver.examples.rpc import RPCServer
from poolserver.examples.smtp import SMTPHandler
from poolserver.examples.web import FilesHandler, HelloHandler

PATIENCE = 10  # seconds that a client waits for anything; reached only where a test fails


class QuietServer(socketserver.ThreadingTCPServer):
    """Keeps what a handler raised, for the test to look at."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.errors = 0

    def handle_error(self, request, client_address):
        self.errors += 1


@contextmanager
def running(server):
    """``server`` in a thread, until the block ends; its handlers are waited for."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        assert not getattr(server, "errors", 0), "a handler raised"


@contextmanager
def talking_to(handler) -> Iterator[socket.socket]:
    """A connected client of a stock server with ``handler``; the client leaves first."""
    with (
        running(QuietServer(("127.0.0.1", 0), handler)) as server,
        socket.create_connection(server.server_address, timeout=PATIENCE) as client,
    ):
        yield client


def ask(client: socket.socket, *chunks: bytes) -> bytes:
    """Send ``chunks``, close that side, and read everything that comes back.

    All in one segment, so that the server has read all of it even where it leaves early: a stock server that
    closes with input unread resets the connection.
    """
    client.sendall(b"".join(chunks))
    client.shutdown(socket.SHUT_WR)
    with client.makefile("rb") as replies:
        return replies.read()


def converse(handler, *chunks: bytes) -> bytes:
    """Everything a stock server with ``handler`` answers to ``chunks``."""
    with talking_to(handler) as client:
        return ask(client, *chunks)


@pytest.fixture
def store(monkeypatch) -> Store:
    """A fresh key-value store for at most two keys."""
    fresh = Store(max_entries=2)
    monkeypatch.setattr(KeyValueHandler, "store", fresh)
    return fresh


class TestEcho:
    """echo.EchoHandler"""

    def test_stream_comes_back_whole_until_its_end(self):
        """More than one read's worth returns byte for byte, then the end."""
        payload = bytes(range(256)) * 1024
        with talking_to(EchoHandler) as client:
            sender = threading.Thread(target=lambda: (client.sendall(payload), client.shutdown(socket.SHUT_WR)))
            sender.start()
            with client.makefile("rb") as replies:
                assert replies.read() == payload
            sender.join()

    def test_udp_datagram_comes_back(self):
        """One datagram in, the same out, and an empty one gets no answer."""
        with (
            running(socketserver.UDPServer(("127.0.0.1", 0), EchoHandler)) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            client.settimeout(PATIENCE)
            client.connect(server.server_address)
            client.send(b"")
            client.send(b"hello")
            assert client.recv(100) == b"hello"

    def test_unix_datagram_is_answered_where_its_sender_has_an_address(self, tmp_path):
        """A sender without a name is passed over, and the named one behind it still gets its answer."""
        path = str(tmp_path / "echo")
        with (
            running(socketserver.UnixDatagramServer(path, EchoHandler)),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nobody,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as somebody,
        ):
            nobody.sendto(b"hello?", path)
            somebody.bind("")  # Linux chooses an abstract name
            somebody.settimeout(PATIENCE)
            somebody.sendto(b"hello", path)
            assert somebody.recv(100) == b"hello"


class TestKeyValue:
    """keyvalue.KeyValueHandler"""

    def test_inline_commands_are_answered_in_order(self, store):
        """A whole pipelined conversation, as typed by hand."""
        typed = b"PING\r\nset K blue\nGET K\r\n\r\nGET x\r\nDEL K x\r\nDEL K\r\nping hi\r\nQUIT\r\nPING\r\n"
        replies = b"+PONG\r\n+OK\r\n$4\r\nblue\r\n$-1\r\n:1\r\n:0\r\n$2\r\nhi\r\n+OK\r\n"
        assert converse(KeyValueHandler, typed) == replies

    def test_arrays_are_answered_as_redis_benchmark_sends_them(self, store):
        """RESP arrays, binary values included."""
        sent = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\0\xff\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*0\r\n"
        assert converse(KeyValueHandler, sent) == b"+OK\r\n$4\r\n\r\n\0\xff\r\n"

    def test_config_get_answers_what_redis_benchmark_asks(self):
        """An array of name and value; an empty one for a name it does not know."""
        replies = converse(KeyValueHandler, b"CONFIG GET save\r\nCONFIG GET nothing\r\n")
        assert replies == b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n*0\r\n"

    @pytest.mark.parametrize("command", [b"GET", b"SET k", b"DEL", b"CONFIG SET save x", b"PING a b", b"EVAL x"])
    def test_wrong_command_is_answered_and_the_conversation_goes_on(self, command):
        """An error for it, then the next command's reply."""
        first, second = converse(KeyValueHandler, command + b"\r\nPING\r\n").splitlines()
        assert first.startswith(b"-ERR")
        assert second == b"+PONG"

    @pytest.mark.parametrize(
        "sent",
        [
            b"*17\r\n",
            b"*-1\r\n",
            b"*\xb2\r\n",
            b"*1000000000000\r\n",
            b"*1\r\n+PING\r\n",
            b"*1\r\n$65537\r\n",
            b"*1\r\n$4\r\nPINGPING\r\n",
        ],
    )
    def test_malformed_array_ends_the_conversation_with_an_error(self, sent):
        """Where the next command begins cannot be known, so nothing more is answered."""
        reply = converse(KeyValueHandler, sent + b"PING\r\n")
        assert reply.startswith(b"-ERR Protocol error")
        assert reply.count(b"\r\n") == 1

    def test_endless_line_is_read_only_to_its_limit(self):
        """S16: the error comes though the line has not ended."""
        with talking_to(KeyValueHandler) as client:
            client.sendall(b"x" * (keyvalue.MAX_LINE_BYTES + 1))
            with client.makefile("rb") as replies:
                assert replies.read() == b"-ERR Protocol error: too big inline request\r\n"

    @pytest.mark.parametrize("sent", [b"", b"PIN", b"*2\r\n$4\r\nPING\r\n", b"*1\r\n$4\r\nPI"])
    def test_client_that_leaves_midway_gets_no_reply(self, sent):
        """What was not sent whole is no command."""
        assert converse(KeyValueHandler, sent) == b""

    def test_full_store_refuses_new_keys_only(self, store):
        """Known keys may still be changed, and a deleted one makes room."""
        typed = b"SET a 1\nSET b 1\nSET c 1\nSET a 2\nDEL b\nSET c 1\n"
        assert [line[:4] for line in converse(KeyValueHandler, typed).splitlines()] == [
            b"+OK",
            b"+OK",
            b"-OOM",
            b"+OK",
            b":1",
            b"+OK",
        ]

    def test_conversation_ends_after_its_share_of_commands(self, monkeypatch):
        """The limit counts commands on one connection."""
        monkeypatch.setattr(keyvalue, "MAX_COMMANDS", 2)
        assert converse(KeyValueHandler, b"PING\nPING\nPING\n") == b"+PONG\r\n" * 2


def get(address, *requests: str, version: str = "HTTP/1.1") -> bytes:
    """All that comes back for raw GETs on one connection; each of ``requests`` is its further headers."""
    with socket.create_connection(address, timeout=PATIENCE) as client:
        return ask(client, *(f"GET / {version}\r\nHost: x\r\n{headers}\r\n".encode() for headers in requests))


class TestWeb:
    """web.HelloHandler and web.FilesHandler"""

    @pytest.fixture
    def server(self):
        with running(QuietServer(("127.0.0.1", 0), HelloHandler)) as server:
            yield server

    def test_get_and_head_share_a_connection(self, server):
        """HEAD says the length and sends no body, so the GET behind it is read right."""
        connection = http.client.HTTPConnection(*server.server_address, timeout=PATIENCE)
        connection.request("HEAD", "/")
        head = connection.getresponse()
        assert (head.status, head.read(), head.headers["Content-Length"]) == (200, b"", str(len(web.BODY)))
        own_port = connection.sock.getsockname()
        connection.request("GET", "/")
        assert connection.getresponse().read() == web.BODY
        assert connection.sock.getsockname() == own_port
        connection.close()

    def test_http_1_0_keep_alive_is_confirmed(self, server):
        """As ab -k needs it; without the client's wish the connection ends."""
        kept = get(server.server_address, "Connection: keep-alive\r\n", "", version="HTTP/1.0")
        assert kept.count(web.BODY) == 2
        assert kept.count(b"Connection: keep-alive\r\n") == 1
        assert kept.count(b"Connection: close\r\n") == 1

    @pytest.mark.parametrize("headers", ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"])
    def test_body_is_never_taken_for_the_next_request(self, server, headers):
        """The connection ends with the request that brought one."""
        reply = get(server.server_address, headers, "")
        assert reply.count(web.BODY) == 1
        assert b"Connection: close\r\n" in reply

    def test_connection_ends_after_its_share_of_requests(self, server, monkeypatch):
        """The last answer says so."""
        monkeypatch.setattr(web, "MAX_REQUESTS", 2)
        reply = get(server.server_address, "", "", "")
        assert reply.count(web.BODY) == 2
        assert reply.count(b"Connection: close\r\n") == 1

    def test_draining_server_ends_the_connection_politely(self, server):
        """With poolserver's ``draining`` true, keep-alive is not offered any more."""
        server.draining = True
        assert b"Connection: close\r\n" in get(server.server_address, "")

    def test_requests_are_logged_at_debug_only(self, server, capsys, caplog):
        """http.server's own log goes to standard error; this one does not, and escapes what clients send."""
        caplog.set_level(logging.DEBUG, logger=web.__name__)
        get(server.server_address, "")
        get(server.server_address, "", version="\x1b[31mHTTP/1.1")
        assert capsys.readouterr().err == ""
        assert '"GET / HTTP/1.1" 200' in caplog.text
        assert "\x1b" not in caplog.text
        assert {record.levelname for record in caplog.records} == {"DEBUG"}

    def test_unix_socket_client_without_an_address_is_served(self, tmp_path):
        """http.server's log looks into the address, which is '' here."""
        path = str(tmp_path / "web")
        with (
            running(socketserver.ThreadingUnixStreamServer(path, HelloHandler)),
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.settimeout(PATIENCE)
            client.connect(path)
            assert ask(client, b"GET / HTTP/1.1\r\n\r\n").endswith(web.BODY)

    def test_files_below_the_current_directory_are_served(self, tmp_path: Path, monkeypatch):
        """And those above it are not."""
        root = tmp_path / "root"
        root.mkdir()
        (root / "page.txt").write_text("the page")
        (tmp_path / "secret.txt").write_text("the secret")
        monkeypatch.chdir(root)
        reply = converse(FilesHandler, b"GET /page.txt HTTP/1.1\r\n\r\n")
        assert reply.startswith(b"HTTP/1.0 200")
        assert reply.endswith(b"\r\n\r\nthe page")
        assert converse(FilesHandler, b"GET /../secret.txt HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.0 404")


def query(
    name: bytes = b"\3www\7Example\0", rtype: int = 1, rclass: int = 1, flags: int = 0x0100, count: int = 1
) -> bytes:
    """A DNS query, right unless told otherwise."""
    return struct.pack("!6H", 0xBEEF, flags, count, 0, 0, 0) + name + struct.pack("!2H", rtype, rclass)


class TestDNS:
    """dns.DNSHandler"""

    def test_name_below_example_has_the_address(self):
        """Header, the question as it was asked, and one record."""
        reply = dns.answer(query())
        assert struct.unpack_from("!6H", reply) == (0xBEEF, 0x8500, 1, 1, 0, 0)
        assert reply[12:] == query()[12:] + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([192, 0, 2, 1])

    def test_other_type_below_example_has_no_records(self):
        """The name exists, so it is no error."""
        reply = dns.answer(query(rtype=28))
        assert struct.unpack_from("!6H", reply) == (0xBEEF, 0x8500, 1, 0, 0, 0)

    @pytest.mark.parametrize("name", [b"\3www\7invalid\0", b"\7example\3org\0", b"\0"])
    def test_other_name_does_not_exist(self, name):
        """NXDOMAIN."""
        reply = dns.answer(query(name))
        assert struct.unpack_from("!6H", reply) == (0xBEEF, 0x8503, 1, 0, 0, 0)

    @pytest.mark.parametrize(
        "packet",
        [
            b"",
            b"\0" * 12,
            query(flags=0x8180),  # a reply
            query(flags=0x2800),  # an update
            query(count=0),
            query(count=2),
            query(rclass=3),
            query(b"\xc0\x0c"),  # a name that points at itself
            query(b"\x40" + b"x" * 64 + b"\0"),
            query((b"\x3f" + b"x" * 63) * 4 + b"\0"),  # 257 bytes
            query(b"\3www\7exam"),
            query()[:-1],
            query() + b"\0" * 512,
        ],
    )
    def test_malformed_packet_gets_no_answer(self, packet):
        """No error either: that is how two servers come to answer each other for ever."""
        assert dns.answer(packet) is None

    @pytest.mark.parametrize("cut", range(len(query())))
    def test_packet_cut_anywhere_gets_no_answer(self, cut):
        """No prefix of a query is one."""
        assert dns.answer(query()[:cut]) is None

    def test_longest_name_is_answered(self):
        """255 bytes with the root's."""
        name = (b"\x3f" + b"x" * 63) * 3 + b"\x35" + b"y" * 53 + b"\7example\0"
        assert len(name) == 255
        assert dns.answer(query(name)).endswith(dns.ADDRESS)

    def test_server_ignores_the_malformed_and_answers_the_next(self):
        """Over a real socket."""
        with (
            running(socketserver.UDPServer(("127.0.0.1", 0), DNSHandler)) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        ):
            client.settimeout(PATIENCE)
            client.connect(server.server_address)
            client.send(b"")
            client.send(b"nonsense")
            client.send(query())
            assert client.recv(512) == dns.answer(query())


def replies_to(*lines: str) -> list[str]:
    """The sink's replies to a pipelined session, without the greeting."""
    replies = converse(SMTPHandler, "".join(f"{line}\r\n" for line in lines).encode()).decode().splitlines()
    assert replies[0].startswith("220 ")
    return replies[1:]


def codes(*lines: str) -> str:
    """The codes of those replies."""
    return " ".join(reply[:3] for reply in replies_to(*lines))


class TestSMTP:
    """smtp.SMTPHandler"""

    def test_server_speaks_first(self):
        """The client has sent nothing yet."""
        with talking_to(SMTPHandler) as client:
            assert client.recv(100).startswith(b"220 ")

    def test_mail_is_taken_and_logged(self, caplog):
        """A dot on its own line ends it, a dot before text does not."""
        caplog.set_level(logging.INFO, logger=smtp.__name__)
        session = [
            "HELO me",
            "MAIL FROM:<you@example>",
            "RCPT TO:<me@example>",
            "DATA",
            "Subject: x",
            "..",
            ".",
            "QUIT",
        ]
        assert codes(*session) == "250 250 250 354 250 221"
        assert "mail from '<you@example>' to 1, 16 bytes: discarded" in caplog.text

    def test_second_mail_in_one_session_starts_anew(self):
        """The first one's recipients are not the second one's."""
        mail = ["MAIL FROM:<a@example>", "RCPT TO:<b@example>", "DATA", "."]
        assert codes(*mail, "DATA", *mail, "QUIT") == "250 250 354 250 503 250 250 354 250 221"

    def test_commands_out_of_order_are_refused(self):
        """Each needs the one before it; RSET and EHLO forget."""
        session = [
            "RCPT TO:<x>",
            "DATA",
            "MAIL TO:<x>",
            "MAIL FROM:<x>",
            "DATA",
            "RSET",
            "RCPT TO:<x>",
            "WHAT",
            "NOOP",
        ]
        assert codes(*session) == "503 503 501 250 503 250 503 500 250"

    def test_ehlo_announces_the_size_that_is_enforced(self):
        """RFC 1870: announced, declared, refused."""
        replies = replies_to(
            "EHLO me",
            f"MAIL FROM:<a> SIZE={smtp.MAX_MAIL_BYTES}",
            f"MAIL FROM:<a> SIZE={smtp.MAX_MAIL_BYTES + 1}",
            "MAIL FROM:<a> SIZE=" + "9" * 1000,
        )
        assert f"250 SIZE {smtp.MAX_MAIL_BYTES}" in replies
        assert [reply[:3] for reply in replies[-3:]] == ["250", "552", "552"]

    def test_mail_that_declares_nothing_and_never_ends_is_cut_off(self, monkeypatch):
        """The reply comes though the mail has not ended."""
        monkeypatch.setattr(smtp, "MAX_MAIL_BYTES", 4096)
        with talking_to(SMTPHandler) as client, client.makefile("rb") as replies:
            client.sendall(b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\n" + b"x" * 6144)
            assert [line[:3] for line in replies] == [b"220", b"250", b"250", b"354", b"552"]

    @pytest.mark.parametrize("end", [b"\n.\n", b"\r\n.\n", b"\n.\r\n"])
    def test_only_the_exact_end_ends_a_mail(self, end):
        """What others take for the end could smuggle in a second mail."""
        sent = b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nDATA\r\nx" + end + b"NOOP\r\n.\r\nQUIT\r\n"
        assert [line[:3] for line in converse(SMTPHandler, sent).splitlines()] == [
            b"220",
            b"250",
            b"250",
            b"354",
            b"250",
            b"221",
        ]

    def test_long_line_whose_piece_is_a_dot_does_not_end_the_mail(self):
        """A line longer than one read comes in pieces, and only the first begins a line."""
        line = "x" * smtp.MAX_LINE_BYTES + "."
        assert codes("MAIL FROM:<a>", "RCPT TO:<b>", "DATA", line, ".", "QUIT") == "250 250 354 250 221"

    def test_endless_command_is_read_only_to_its_limit(self):
        """S16: the session ends with an error though the line has not."""
        with talking_to(SMTPHandler) as client, client.makefile("rb") as replies:
            client.sendall(b"x" * smtp.MAX_LINE_BYTES)
            assert [line[:3] for line in replies] == [b"220", b"500"]

    def test_limits_on_commands_and_recipients(self, monkeypatch):
        """One recipient too many is refused, one command too many ends the session."""
        monkeypatch.setattr(smtp, "MAX_COMMANDS", 4)
        monkeypatch.setattr(smtp, "MAX_RECIPIENTS", 1)
        assert codes("MAIL FROM:<a>", "RCPT TO:<b>", "RCPT TO:<c>", "NOOP") == "250 250 452 250 421"

    def test_draining_server_ends_the_session_between_mails(self, monkeypatch):
        """The first mail of a session is taken, the second asked to come back."""
        monkeypatch.setattr(QuietServer, "draining", True, raising=False)
        session = ["MAIL FROM:<a>", "RCPT TO:<b>", "DATA", ".", "MAIL FROM:<a>"]
        assert codes(*session) == "250 250 354 250 421"


class TestRPC:
    """rpc.RPCServer"""

    @pytest.fixture
    def address(self):
        with running(RPCServer(("127.0.0.1", 0))) as server:
            yield server.server_address

    @pytest.fixture
    def proxy(self, address):
        with xmlrpc.client.ServerProxy("http://{}:{}".format(*address)) as proxy:
            yield proxy

    def test_server_can_be_made_without_binding(self):
        """As poolserver makes it: address, handler, bind_and_activate."""
        with RPCServer(("127.0.0.1", 0), RPCServer.RequestHandlerClass, bind_and_activate=False) as server:
            assert server.socket.getsockname()[1] == 0

    def test_functions_and_introspection(self, proxy):
        """What a client can ask for, and the answers."""
        assert proxy.pow(2, 10) == 1024
        assert proxy.pow(2.5, 2) == 6.25
        assert proxy.pow(-2, 31) == -(2**31)
        assert proxy.add(2, 3) == 5
        assert proxy.system.listMethods() == [
            "add",
            "pow",
            "system.listMethods",
            "system.methodHelp",
            "system.methodSignature",
        ]

    @pytest.mark.parametrize("numbers", [(9, 2**31 - 1), (2, 31), (0, -1), ("a", 2), (-8.0, 0.5)])
    def test_impossible_power_is_a_fault_at_once(self, proxy, numbers):
        """No result that could not be sent is computed, and the server goes on."""
        with pytest.raises(xmlrpc.client.Fault):
            proxy.pow(*numbers)
        assert proxy.add(1, 1) == 2

    @pytest.mark.parametrize(
        ("length", "status"),
        [
            (None, b"411"),
            ("-5", b"411"),
            ("\xb2", b"411"),
            (str(rpc.MAX_BODY_BYTES + 1), b"413"),
            ("9" * 5000, b"413"),
        ],
    )
    def test_call_without_a_bounded_length_is_refused(self, address, capsys, length, status):
        """S16: before its body is read, and without a word on standard error."""
        header = "" if length is None else f"Content-Length: {length}\r\n"
        with socket.create_connection(address, timeout=PATIENCE) as client:
            reply = ask(client, f"POST /RPC2 HTTP/1.1\r\n{header}\r\n".encode("latin-1"))
        assert reply.split()[1] == status
        assert capsys.readouterr().err == ""
