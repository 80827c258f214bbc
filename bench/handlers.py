"""The handlers every line contestant runs, unmodified: what is compared is the server around them.

Imported by name (`bench.handlers:OneLine`) in each contestant's processes, so it imports only socketserver.
"""

import socketserver


class OneLine(socketserver.StreamRequestHandler):
    """One line in, the same line out, then the server closes: the shortest conversation there is."""

    def handle(self) -> None:
        """Answer one line."""
        self.wfile.write(self.rfile.readline())


class EveryLine(socketserver.StreamRequestHandler):
    """The keep-alive form: lines are answered until the client closes."""

    def handle(self) -> None:
        """Answer each line as it comes."""
        for line in self.rfile:
            self.wfile.write(line)
