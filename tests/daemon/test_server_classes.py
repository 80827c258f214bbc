"""R52: the standard library's server classes, bound and inherited, in processes and in threads: each answers once on
each listener, and knows its own address."""

import contextlib
import http.client
import json
import logging
import logging.handlers
import socket
import sys
import xmlrpc.client
from collections.abc import Callable, Iterator

import pytest
from clients import Served, ask, wait_for

WAYS = pytest.mark.parametrize(("workers", "threads"), [(2, 1), (0, 2)], ids=["processes", "threads"])
FD = 9


def by_line(served: Served) -> bytes:
    return ask(served, b"who\n")


def by_http(served: Served) -> bytes:
    connection = http.client.HTTPConnection(*served.addresses[0].where, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().read()


def by_xmlrpc(served: Served) -> bytes:
    host, port = served.addresses[0].where
    with xmlrpc.client.ServerProxy(f"http://{host}:{port}/") as proxy:
        return str(proxy.tell()).encode()


@pytest.fixture
def passing(tmp_path) -> Callable[[str], Iterator[tuple[str, ...]]]:
    """A program that passes a listener of its own as descriptor FD."""

    def program(kind: str) -> tuple[str, ...]:
        family = "AF_UNIX" if kind.startswith("Unix") else "AF_INET"
        where = repr(str(tmp_path / "passed")) if family == "AF_UNIX" else "('127.0.0.1', 0)"
        datagram = kind in ("UDP", "UnixDatagram")
        lines = [
            "import os, socket, sys",
            f"sock = socket.socket(socket.{family}, socket.{'SOCK_DGRAM' if datagram else 'SOCK_STREAM'})",
            f"sock.bind({where})",
            *([] if datagram else ["sock.listen(50)"]),
            f"os.dup2(sock.fileno(), {FD}, inheritable=True)",
            "os.execv(sys.executable, [sys.executable, '-m', 'poolserver', 'run', *sys.argv[1:]])",
        ]
        return sys.executable, "-c", "\n".join(lines)

    return program


URLS = {"UDP": "udp://127.0.0.1:0", "UnixStream": "unix:{}", "UnixDatagram": "unixgram:{}"}
CLIENTS = dict.fromkeys(("HTTP", "ThreadingHTTP", "WSGI"), by_http) | dict.fromkeys(("XMLRPC", "DocXMLRPC"), by_xmlrpc)
KINDS = (
    "TCP",
    "ThreadingTCP",
    "UDP",
    "UnixStream",
    "UnixDatagram",
    "HTTP",
    "ThreadingHTTP",
    "WSGI",
    "XMLRPC",
    "DocXMLRPC",
)


@WAYS
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_knows_its_address(daemon, passing, tmp_path, kind, workers, threads):
    bind = [URLS.get(kind, "tcp://127.0.0.1:0").format(tmp_path / "bound"), f"fd://{FD}"]
    served = daemon(f"matrix_handlers:{kind}", bind=bind, program=passing(kind), workers=workers, threads=threads)
    for each in map(Served, served.urls):
        (address,) = each.addresses
        told = json.loads(CLIENTS.get(kind, by_line)(each))
        where = address.where if isinstance(address.where, str) else list(address.where)
        assert told["server_address"] == where
        if isinstance(where, list):
            assert {str(told.get(name, where[1])) for name in ("server_port", "SERVER_PORT")} == {str(where[1])}
    assert served.stop() == 0


@WAYS
def test_receiver_of_log_records(daemon, workers, threads):
    """The Logging Cookbook's, with the standard library's own handler as its client."""
    served = daemon("matrix_handlers:LogReceiver", workers=workers, threads=threads)
    handler = logging.handlers.SocketHandler("127.0.0.1", served.port)
    handler.handle(logging.LogRecord("far", logging.WARNING, "", 0, "told from %s", (socket.gethostname(),), None))
    handler.close()
    wait_for(lambda: f"told from {socket.gethostname()}" in served.log(), 10, "the record")
    assert served.stop() == 0
