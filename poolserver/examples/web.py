"""HTTP: a greeting, and the files below the current directory.

Serve them, and talk to them::

    poolserver run poolserver.examples.web:HelloHandler -b tcp://127.0.0.1:20000
    curl -i http://127.0.0.1:20000/

    poolserver run poolserver.examples.web:FilesHandler -b tcp://127.0.0.1:20000
    curl http://127.0.0.1:20000/README.md

``http.server`` bounds what it reads: 64 KiB for a line, 100 headers. What is left to do here is to bound the
requests on one connection and never to take a body for the next request.
"""

import logging
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler

BODY = b"Hello, world!\n"

MAX_REQUESTS = 10_000
"""Requests answered on one connection; then the client makes a new one, to a worker with less to do."""

logger = logging.getLogger(__name__)


class LogAtDebug(BaseHTTPRequestHandler):
    """Sends http.server's request log through ``logging``, at debug, instead of to standard error."""

    def log_message(self, format: str, *args: object) -> None:
        """Log one line. ``repr`` keeps a client's control characters out; a Unix peer's address may be ''."""
        logger.debug("%s %r", self.client_address, format % args)


class HelloHandler(LogAtDebug):
    """Greets, over HTTP/1.1 with keep-alive."""

    protocol_version = "HTTP/1.1"
    server_version = "poolserver-example"
    wbufsize = -1  # head and body leave in one write; http.server flushes after each request
    requests = 0

    def do_GET(self) -> None:
        """The greeting."""
        self.begin_reply()
        self.wfile.write(BODY)

    def do_HEAD(self) -> None:
        """The greeting's headers."""
        self.begin_reply()

    def begin_reply(self) -> None:
        """Status and headers, with the exact length that keep-alive needs."""
        self.requests += 1
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(BODY)))
        if self.close_connection or self.is_last():
            self.send_header("Connection", "close")  # http.server acts on it too
        elif self.request_version == "HTTP/1.0":
            self.send_header("Connection", "keep-alive")  # ab -k waits for the connection's end without it
        self.end_headers()

    def is_last(self) -> bool:
        """Whether the connection ends with this request.

        It does when a body came with it, which nobody reads and which would be taken for the next request;
        when the connection has had its share; and when poolserver says that the worker is about to leave.
        """
        has_body = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        return has_body or self.requests >= MAX_REQUESTS or getattr(self.server, "draining", False)


class FilesHandler(LogAtDebug, SimpleHTTPRequestHandler):
    """The standard library's file server as it is, one request for each connection."""
