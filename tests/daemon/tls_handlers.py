"""Handlers that the tests of TLS serve."""

import http.server
import os
import socketserver
import ssl

MAX_LINE_BYTES = 64 * 1024
ANSWER_BYTES = 4_000_000


class Tell(socketserver.StreamRequestHandler):
    """Tells what it has for a connection, its process and its client, before a word of the client's; then echoes."""

    def handle(self):
        is_tls = isinstance(self.request, ssl.SSLSocket)
        version = self.request.version() if is_tls else "plain"
        self.wfile.write(f"{version} {os.getpid()} {self.client_address[0]}\n".encode())
        while line := self.rfile.readline(MAX_LINE_BYTES):
            self.wfile.write(line)


class TellALine(Tell):
    """The same once there is a line."""

    wait_for = "line"


class Long(socketserver.BaseRequestHandler):
    """A long answer in one write, whatever is asked."""

    def handle(self):
        self.request.recv(100)
        self.request.sendall(bytes(ANSWER_BYTES))


class Web(http.server.BaseHTTPRequestHandler):
    """Keeps connections alive."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{self.request.version()} {self.client_address[0]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
