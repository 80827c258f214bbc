"""The handlers every line contestant runs, unmodified: what is compared is the server around them.

Imported by name (`bench.handlers:OneLine`) in each contestant's processes, so it imports only socketserver.
"""

import socketserver


class OneLine(socketserver.StreamRequestHandler):
    """One line in, the same line out, then the server closes: the shortest conversation there is."""

    def handle(self) -> None:
        """Answer one line."""
        self.wfile.write(self.rfile.readline())


class Ping(socketserver.StreamRequestHandler):
    """The same in words that redis-benchmark speaks: a line in, `+PONG` out, then the server closes."""

    def handle(self) -> None:
        """Answer one line."""
        if self.rfile.readline():
            self.wfile.write(b"+PONG\r\n")


class Pings(socketserver.StreamRequestHandler):
    """The keep-alive form: lines are answered until the client closes."""

    def handle(self) -> None:
        """Answer each line as it comes."""
        for _ in self.rfile:
            self.wfile.write(b"+PONG\r\n")
