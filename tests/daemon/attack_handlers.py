"""Handlers that clients attack, and that say what they saw of it."""

import socket
import socketserver
import time

ANSWER_BYTES = 20_000_000
ANSWER = b"x" * ANSWER_BYTES

_OPTIONS = {
    "keepalive": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "idle": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    "interval": (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    "probes": (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    "user_timeout": (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
    "nodelay": (socket.IPPROTO_TCP, socket.TCP_NODELAY),
}


class SocketOptions(socketserver.StreamRequestHandler):
    """Says what is set on its connection."""

    def handle(self):
        values = {name: self.connection.getsockopt(*where) for name, where in _OPTIONS.items()}
        self.wfile.write(" ".join(f"{name}={value}" for name, value in values.items()).encode() + b"\n")


class LongAnswer(socketserver.StreamRequestHandler):
    """Sends ``ANSWER``, whoever reads it."""

    def handle(self):
        self.wfile.write(ANSWER)


class SlowWork(socketserver.StreamRequestHandler):
    """Reads a line of seconds, works for so long, answers, and closes first."""

    def handle(self):
        time.sleep(min(float(self.rfile.readline(100)), 10))  # the work
        self.wfile.write(b"done\n")


class ReadsRaw(socketserver.BaseRequestHandler):
    """Reads from the socket itself, which tells a time-out by an exception."""

    def handle(self):
        self.request.recv(100)


class OwnTimeout(socketserver.StreamRequestHandler):
    """Has a time-out of its own, and says how its wait ended."""

    timeout = 0.8

    def handle(self):
        try:
            self.rfile.readline(100)
        except TimeoutError:
            self.wfile.write(b"TimeoutError\n")
        else:
            self.wfile.write(b"end of file\n")


class RaisesOwnTimeout(socketserver.StreamRequestHandler):
    """Likewise, and lets it go up."""

    timeout = 0.2

    def handle(self):
        self.rfile.readline(100)


class Quotes(socketserver.BaseRequestHandler):
    """Raises what its client sent, as many parsers do."""

    def handle(self):
        data = self.request[0] if isinstance(self.request, tuple) else self.request.recv(1000)
        raise ValueError(data.decode("latin-1"))
