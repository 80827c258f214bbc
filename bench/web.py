"""The HTTP keep-alive handler; apart from `bench.handlers` so that memory is measured without http.server."""

import functools
import mmap
import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path

BODY = b"ok\n"


class Page(BaseHTTPRequestHandler):
    """Three bytes for every GET over a kept connection: by default poolserver parks it between requests."""

    protocol_version = "HTTP/1.1"
    # Head and body leave in one segment for every contestant: without it a server that sets no TCP_NODELAY
    # waits 40 ms for the client's delayed ACK between the two writes.
    wbufsize = -1

    def do_GET(self) -> None:
        """Send the fixed body."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        if self.close_connection:  # as every WSGI server says: a client that is not told sends its next request
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: an access line for each request would be the larger part of its cost."""


@functools.cache
def _counts() -> memoryview:
    """Mapped at the first request. Not kept in a class: threads that set its attribute at the same time crash CPython
    3.11, whose type cache has the value before for as long as that one's munmap lets others run."""
    with Path(os.environ["COUNTS"]).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")


class CountedPage(Page):
    """Counts each connection's requests, by the client's port, in the file that $COUNTS names.

    Written as a user would, unlike ``Page``: head and body leave by a send each, as by default.
    """

    wbufsize = 0
    disable_nagle_algorithm = True  # else the standard library's server waits for delayed ACKs

    def do_GET(self) -> None:
        """Count, and send the body. A connection is in one lane at a time, of whichever process."""
        _counts()[self.client_address[1]] += 1
        super().do_GET()


class CountedOwnLoop(CountedPage):
    """In a loop that poolserver does not know: it has its lane from the first request to the last."""

    def handle(self) -> None:
        """As ever."""
        super().handle()


class Held(CountedPage):
    """A POST holds its lane until its body is there; it and every page say in which process that is."""

    def do_GET(self) -> None:
        """The pid, a line, and a dot."""
        body = b"%d\n.\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """The pid, before it reads."""
        self.wfile.write(b"%d\n" % os.getpid())
        self.rfile.read(int(self.headers["Content-Length"]))
        self.close_connection = True
