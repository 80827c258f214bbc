"""Handlers and server classes that fall into the traps of socketserver, as RELIABILITY.md's section 1 lists them."""

import builtins
import gc
import http.server
import logging
import os
import resource
import signal
import socket
import socketserver
import sys
import time
import wsgiref.simple_server
from pathlib import Path

from handlers import LineHandler, OrderHandler

hogged: list[int] = []


def raw_shutdown(server):
    """Past the guard of the server's socket object, as a C library would do it."""
    with socket.socket(fileno=os.dup(server.fileno())) as listener:
        listener.shutdown(socket.SHUT_RDWR)


def raw_close(server):
    os.close(server.socket.fileno())


def raw_close_and_reuse(server):
    """The number goes to a connection that the handler opens and keeps, as a database client does."""
    os.close(server.socket.fileno())
    hogged.extend(end.detach() for end in socket.socketpair())


BREAKS = {
    "socket.shutdown": lambda server: server.socket.shutdown(socket.SHUT_RDWR),
    "socket.setblocking": lambda server: server.socket.setblocking(True),
    "socket.settimeout": lambda server: server.socket.settimeout(5),
    "socket.close": lambda server: server.socket.close(),
    "server_close": lambda server: server.server_close(),
    "raw_blocking": lambda server: os.set_blocking(server.fileno(), True),
    "raw_shutdown": raw_shutdown,
    "raw_close": raw_close,
    "raw_close_and_reuse": raw_close_and_reuse,
}


class TrapHandler(OrderHandler):
    """OrderHandler's orders, and::

    shutdown        "asked", after ``server.shutdown()``
    throw NAME      no answer: raises the built-in exception of that name
    break WAY       "broken", after the listener was broken in that way
    hog             "hogged", with every descriptor of this process in use
    free            "freed": they are given back
    fork            the pid of a child that keeps the listener and lives on
    peer            the client's address
    """

    def obey(self, order, argument):
        match order:
            case "shutdown":
                self.server.shutdown()
                self.answer("asked")
            case "throw":
                raise getattr(builtins, argument)("ordered to throw")
            case "break":
                BREAKS[argument](self.server)
                self.answer("broken")
            case "hog":
                self.hog()
                self.answer("hogged")
            case "free":
                while hogged:
                    os.close(hogged.pop())
                self.answer("freed")
            case "fork":
                self.answer(self.fork())
            case "peer":
                self.answer(self.client_address)
            case _:
                super().obey(order, argument)

    def hog(self):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, most))
        try:
            while True:
                hogged.append(os.dup(0))
        except OSError:
            pass  # EMFILE, as wanted

    def fork(self):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # so that nothing is left of a test gone wrong
            signal.pause()
        return pid


class EmptyHandler(socketserver.BaseRequestHandler):
    """Closes at once."""


class IdleHandler(socketserver.BaseRequestHandler):
    """Waits for its client's first byte or end."""

    def handle(self):
        self.request.recv(1)


class EarlyHandler(socketserver.BaseRequestHandler):
    """Answers after 100 bytes, whatever is still to come."""

    def handle(self):
        self.request.recv(100)
        self.request.sendall(b"413 too large\n")


class SetupRaises(socketserver.StreamRequestHandler):
    """Raises in setup(), after rfile and wfile were made, and is part of a cycle that only the collector undoes."""

    def setup(self):
        gc.disable()
        super().setup()
        self.cycle = self
        raise RuntimeError("setup")


class BufferedToTheGone(socketserver.StreamRequestHandler):
    """Buffers its answer for a client that is gone; likewise in a cycle."""

    wbufsize = -1

    def handle(self):
        gc.disable()
        self.cycle = self
        self.rfile.readline(10)
        while self.rfile.read(1):  # to the client's reset
            continue
        self.wfile.write(b"x" * 1000)

    def finish(self):
        self.wfile.write(b"y")
        super().finish()


class HelloHTTPHandler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello\n")


class NamedHTTPHandler(http.server.BaseHTTPRequestHandler):
    """Says what HTTPServer.server_bind sets."""

    def do_GET(self):
        reply = f"{self.server.server_name} {self.server.server_port}\n".encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)


class WSGIServer(wsgiref.simple_server.WSGIServer):
    """A WSGI server with its handler and its application."""

    RequestHandlerClass = wsgiref.simple_server.WSGIRequestHandler

    def get_app(self):
        return application


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['SERVER_NAME']} {environ['SERVER_PORT']} {environ['REMOTE_ADDR']}\n".encode()]


class SlowAcceptServer(socketserver.TCPServer):
    """Takes so long from its wake-up to its accept that a sibling was there first."""

    RequestHandlerClass = LineHandler

    def get_request(self):
        time.sleep(0.005)  # the race, lost
        return super().get_request()


class _RaisesThrice:
    """Counts per process."""

    left = 3

    def fall(self):
        if type(self).left:
            type(self).left -= 1
            raise KeyError("of the user's")


class VerifyRaises(_RaisesThrice, socketserver.TCPServer):
    RequestHandlerClass = LineHandler

    def verify_request(self, request, client_address):
        self.fall()
        return True


class GetRequestRaises(_RaisesThrice, socketserver.TCPServer):
    RequestHandlerClass = LineHandler

    def get_request(self):
        self.fall()
        return super().get_request()


class GetRequestAlwaysRaises(socketserver.TCPServer):
    RequestHandlerClass = LineHandler

    def get_request(self):
        raise KeyError("of the user's")


class ServiceActionsRaises(socketserver.TCPServer):
    RequestHandlerClass = LineHandler

    def service_actions(self):
        raise KeyError("of the user's")


class OwnThreadingServer(socketserver.ThreadingTCPServer):
    RequestHandlerClass = IdleHandler


class OwnForkingServer(socketserver.ForkingTCPServer):
    RequestHandlerClass = IdleHandler


class DatagramEcho(socketserver.DatagramRequestHandler):
    """Sends it back after some work, in which others wait in the receive buffer."""

    def handle(self):
        time.sleep(0.004)  # the work
        self.wfile.write(self.packet[:16])


class ReusableUDPServer(socketserver.UDPServer):
    allow_reuse_address = True
    RequestHandlerClass = DatagramEcho


class ReusableUnixEcho(socketserver.DatagramRequestHandler):
    """What a stock handler does with a peer without a name: finish() answers it."""

    def handle(self):
        self.wfile.write(self.packet)


class TalkativeHandler(socketserver.StreamRequestHandler):
    """Sends one line back, and logs it first, in more than a pipe takes at once."""

    def handle(self):
        line = self.rfile.readline(65536)
        logging.getLogger("talkative").info("served %s %s", line.decode().strip(), "x" * 5000)
        self.wfile.write(line)


class VerboseHandler(socketserver.StreamRequestHandler):
    """Sends one line back, and logs twenty kilobytes first."""

    def handle(self):
        line = self.rfile.readline(65536)
        for number in range(20):
            logging.getLogger("verbose").info("%d: %s", number, "x" * 1000)
        self.wfile.write(line)


def stood_still():
    """Seconds in which this thread neither ran nor waited for a processor: it waited for something else."""
    ran, waited, _ = Path("/proc/thread-self/schedstat").read_text().split()
    return time.monotonic() - (int(ran) + int(waited)) / 1e9


class TimedHandler(socketserver.StreamRequestHandler):
    """Logs twenty kilobytes for each line, and sends back how long the call that waited longest did so, in seconds."""

    def handle(self):
        self.rfile.readline(65536)
        longest = 0.0
        for number in range(20):
            before = stood_still()
            logging.getLogger("verbose").info("%d: %s", number, "x" * 1000)
            longest = max(longest, stood_still() - before)
        self.wfile.write(b"%.6f\n" % longest)


class PrintingHandler(socketserver.StreamRequestHandler):
    """Sends one line back, and prints a kilobyte first, as careless handlers and http.server do; raises if told to."""

    def handle(self):
        line = self.rfile.readline(65536)
        print("x" * 500)
        print("x" * 500, file=sys.stderr)
        if line == b"raise\n":
            raise RuntimeError("ordered to raise")
        self.wfile.write(line)
