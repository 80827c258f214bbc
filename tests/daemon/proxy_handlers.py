"""Handlers that the tests of the PROXY protocol serve: they tell whom they take their client for."""

import http.server
import socketserver

MAX_LINE_BYTES = 64 * 1024


class Whoami(socketserver.StreamRequestHandler):
    """Says whom it talks to, before a word of the client's; then sends its lines back."""

    def handle(self):
        self.wfile.write(f"{self.client_address!r}\n".encode())
        while line := self.rfile.readline(MAX_LINE_BYTES):
            self.wfile.write(line)


class WaitingWhoami(Whoami):
    """The same once there is a line."""

    wait_for = "line"


class WebWhoami(http.server.BaseHTTPRequestHandler):
    """The same by HTTP, on connections that are kept alive."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{self.client_address!r}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
