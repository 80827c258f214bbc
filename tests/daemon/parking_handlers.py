"""Handlers whose connections are parked, some of which do what they should not."""

import http.server
import itertools
import mmap
import os
import socket
import socketserver
import ssl
import threading
import time
from pathlib import Path
from typing import ClassVar

from handlers import MAX_LINE_BYTES, OrderHandler

from poolserver import ParkingMixIn


class Orders(ParkingMixIn, OrderHandler):
    """An order a line, as OrderHandler takes them; "bye" ends. Leaves a mark when it is finished, if $MARKS is set."""

    wait_for = "line"

    def handle_one_request(self):
        line = self.rfile.readline(MAX_LINE_BYTES)
        order, _, argument = line.decode().strip().partition(" ")
        self.close_connection = order in ("bye", "")
        if not self.close_connection:
            self.obey(order, argument)

    def finish(self):
        super().finish()
        if path := os.environ.get("MARKS"):
            with Path(path).open("a") as marks:
                marks.write(f"finished {self.client_address[1]}\n")


class Numbered(Orders):
    """Answers "number" with how many orders its worker has taken before."""

    _numbers = itertools.count()

    def obey(self, order, argument):
        number = next(self._numbers)
        if order == "number":
            self.answer(number)
        else:
            super().obey(order, argument)


class MovableOrders(Orders):
    """They keep nothing between two lines: any worker can go on."""

    movable = True
    finish = socketserver.StreamRequestHandler.finish


class WaitsForData(OrderHandler):
    """Says for itself what is to be there."""

    wait_for = "data"


class HasMethodOfThatName(OrderHandler):
    """Its ``wait_for`` is its own affair."""

    def wait_for(self):
        """Nothing to do with parking."""


class Page(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1. Answers with what the path asks for: /pid, /hold/SECONDS, else the path. Silent."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server_version = "parking"

    def do_GET(self):
        if self.path == "/pid":
            self.answer(str(os.getpid()))
        elif self.path.startswith("/hold/"):
            time.sleep(min(float(self.path.removeprefix("/hold/")), 60))  # the work that was asked for
            self.answer("held")
        else:
            self.answer(self.path)

    def do_POST(self):
        self.answer(str(len(self.rfile.read(int(self.headers["Content-Length"])))))

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format, *args):
        """Nothing."""


class OwnLoop(Page):
    """The same in a loop that nobody knows: it keeps its lane from the first request to the last."""

    def handle(self):
        super().handle()


class CountedPage(Page):
    """Counts requests by the client's port, in a file that $COUNTS names, for whichever worker they meet."""

    _map = None
    _lock = threading.Lock()

    def do_GET(self):
        with self._lock:  # one for all: CPython 3.11 crashes when an attribute of a class is replaced under a reader
            if CountedPage._map is None:
                with Path(os.environ["COUNTS"]).open("r+b") as file:
                    CountedPage._map = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
        CountedPage._map[self.client_address[1]] += 1  # a connection is in one lane at a time
        super().do_GET()


class OwnTimeout(Page):
    """Sets a time-out on its socket, which makes the descriptor non-blocking."""

    timeout = 30


class ClosesItself(Orders):
    """Closes its connection, and says nothing of an end."""

    rbufsize = 0

    def obey(self, order, argument):
        if order == "detach":
            threading.Thread(target=linger, args=(self.request.detach(),)).start()
        else:
            super().obey(order, argument)


def linger(fd):
    """What took the connection from its handler answers, and closes it a while later."""
    os.write(fd, b"taken\n")
    os.read(fd, 1)
    os.close(fd)


class Pushes(Orders):
    """A thread of its own writes while the connection is parked, and closes it at the end."""

    def obey(self, order, argument):
        if order == "push":
            threading.Thread(target=self.push, args=(int(argument),)).start()
        else:
            super().obey(order, argument)

    def push(self, count):
        for number in range(count):
            self.wfile.write(b"%d\n" % number)
        self.request.shutdown(socket.SHUT_RDWR)


class Forks(Orders):
    """Its child comes back from the handler, with an end or without, or stays and keeps the connection open."""

    def obey(self, order, argument):
        if order == "fork" and (pid := os.fork()):
            if argument != "stays":
                os.waitpid(pid, 0)
            self.answer("parent")
        elif order == "fork" and argument == "ends":
            self.close_connection = True
        elif order == "fork" and argument == "stays":
            time.sleep(60)  # or until the test's end
            os._exit(0)
        elif order != "fork":
            super().obey(order, argument)


class FailsAtTheEnd(Orders):
    """Its finish() raises."""

    def finish(self):
        super().finish()
        raise LookupError("in finish")


def context():
    """With the certificate and key that $CERTIFICATE names."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(os.environ["CERTIFICATE"])
    return made


class TLSPage(Page):
    """Puts TLS on each connection, as the documentation says: in setup()."""

    def setup(self):
        self.request = context().wrap_socket(self.request, server_side=True)
        super().setup()


class TLSOrders(Orders):
    """Likewise, for lines: several may come in one record."""

    wait_for = "data"

    def setup(self):
        self.request = context().wrap_socket(self.request, server_side=True)
        super().setup()


class TLSServer(http.server.HTTPServer):
    """Puts TLS on in get_request(), as many recipes have it."""

    RequestHandlerClass = Page

    def get_request(self):
        request, address = super().get_request()
        return context().wrap_socket(request, server_side=True), address


class ImpatientServer(socketserver.TCPServer):
    """Its module sets a default time-out for every socket."""

    RequestHandlerClass = Orders

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        socket.setdefaulttimeout(20)


class Leaves(Orders):
    """ "leave" closes its connection under poolserver's feet, while the file lives on as another's that never reads."""

    _kept: ClassVar[list[socket.socket]] = []

    def obey(self, order, argument):
        if order == "leave":
            self._kept.append(self.request.dup())
            self.answer("left")
            os.close(self.request.detach())
        else:
            super().obey(order, argument)
