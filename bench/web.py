"""The HTTP keep-alive handler; apart from `bench.handlers` so that memory is measured without http.server."""

from http.server import BaseHTTPRequestHandler

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
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: an access line for each request would be the larger part of its cost."""
