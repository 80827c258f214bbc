"""Handlers and server classes that do what they should not."""

import os
import socketserver
import ssl
import stat
import sys
import time
from pathlib import Path
from typing import ClassVar


class Work(socketserver.BaseRequestHandler):
    """Works for a while, then answers."""

    def handle(self):
        time.sleep(0.06)  # the work
        self.request.sendall(b"done\n")


class ForksAndComesBack(socketserver.StreamRequestHandler):
    """Its child does not os._exit: it leaves the handler as the parent does."""

    def handle(self):
        how = self.rfile.readline().strip()
        pid = os.fork()
        if pid == 0:
            if how == b"exit":
                sys.exit(3)
            if how == b"raise":
                raise RuntimeError("in the child")
            return
        os.waitpid(pid, 0)
        self.wfile.write(b"parent\n")


class Echo(socketserver.StreamRequestHandler):
    """One line."""

    def handle(self):
        self.wfile.write(self.rfile.readline())


class BindsAnyway(socketserver.TCPServer):
    """Its constructor takes no bind_and_activate, and binds."""

    RequestHandlerClass = Echo

    def __init__(self, address, handler):
        super().__init__(address, handler)
        self.extra = "made"

    def server_bind(self):
        super().server_bind()
        self.bound_to = self.server_address


class WrapsItsListener(socketserver.TCPServer):
    """TLS by wrapping the listener."""

    RequestHandlerClass = Echo

    def __init__(self, address, handler, bind_and_activate=True):
        super().__init__(address, handler, bind_and_activate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.socket = context.wrap_socket(self.socket, server_side=True)


class Ponders(socketserver.TCPServer):
    """Its get_request waits for the client to speak, as a TLS handshake does."""

    RequestHandlerClass = Echo

    def get_request(self):
        request, address = super().get_request()
        request.recv(1, 2)  # MSG_PEEK
        return request, address


class KeepsConnections(socketserver.TCPServer):
    """Its shutdown_request leaves the connection to somebody else."""

    kept: ClassVar[list] = []

    class RequestHandlerClass(socketserver.StreamRequestHandler):
        def handle(self):
            self.server.kept.append(self.request)
            if len(self.server.kept) == 2:
                for request in self.server.kept:
                    request.sendall(b"both are here\n")

    def shutdown_request(self, request):
        pass


class Scribbles(socketserver.StreamRequestHandler):
    """Told to, it writes nonsense into all of shared memory that is its worker's own, and into every pipe it has."""

    def handle(self):
        line = self.rfile.readline()
        if line.startswith(b"scribble"):
            word = int(line.split()[1])
            quarters = self.server.crew.park.row, *self.server.crew._rows
            for row in quarters:
                for place in range(len(row._words)):
                    row._words[place] = word
            for row in self.server.crew._rows:
                row._peer[:] = b"\xff\x1b" * (len(row._peer) // 2)
            for path in Path("/proc/self/fd").iterdir():
                self.flood(int(path.name))
        self.wfile.write(b"%d\n" % os.getpid())

    def flood(self, fd):
        try:
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.set_blocking(fd, False)
                for _ in range(100):
                    os.write(fd, bytes(range(128, 256)) * 100)
        except OSError:
            pass  # full, or its reading end
