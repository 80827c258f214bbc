"""A WSGI application under the standard library's own ``wsgiref``: a server class that brings its application.

Serve it, and talk to it::

    poolserver run poolserver.examples.wsgi:WSGIService -b tcp://127.0.0.1:20000
    curl http://127.0.0.1:20000/?name=world
    curl --data 'some text' http://127.0.0.1:20000/count

For Flask, Django or any other framework, put its application where ``application`` stands. ``wsgiref`` speaks HTTP/1.0,
a connection for each request; put a proxy in front where browsers connect.

Source: PEP 3333.
"""

import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MAX_BODY_BYTES = 1024 * 1024
"""Longest body that is read into memory."""

MAX_NAME_CHARS = 100
"""Longest name that is greeted; the rest is left out."""

logger = logging.getLogger(__name__)


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Greet whoever says a name, and count the bytes of what is posted."""
    if environ["REQUEST_METHOD"] == "POST":
        status, text = counted(environ)
    elif environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        names = parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=10).get("name", ["stranger"])
        status, text = "200 OK", f"hello {names[0][:MAX_NAME_CHARS]}\n"
    else:
        status, text = "405 Method Not Allowed", "GET, HEAD or POST\n"
    body = text.encode()
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def counted(environ: dict[str, Any]) -> tuple[str, str]:
    """The answer to a body, which is read as far as it says to go, and no further than the limit."""
    announced = environ.get("CONTENT_LENGTH") or ""
    if not announced.isdecimal():
        return "411 Length Required", "how long is it?\n"
    if len(announced) > 8 or int(announced) > MAX_BODY_BYTES:
        return "413 Content Too Large", f"at most {MAX_BODY_BYTES} bytes\n"
    return "200 OK", f"{len(environ['wsgi.input'].read(int(announced)))} bytes\n"


class QuietHandler(WSGIRequestHandler):
    """Logs at debug what wsgiref would write to standard error."""

    def log_message(self, format: str, *args: object) -> None:
        """One line for each request."""
        logger.debug("%s %r", self.client_address, format % args)


class WSGIService(WSGIServer):
    """Serves ``application``; in a class of your own, put another there."""

    RequestHandlerClass = QuietHandler
    application = staticmethod(application)

    def get_app(self) -> Any:
        """Asked by the handler for each request."""
        return type(self).application
