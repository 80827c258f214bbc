"""Each server class of the standard library, with a handler that says what its server takes itself for."""

import http.server
import json
import logging
import pickle
import socketserver
import struct
import wsgiref.simple_server
import xmlrpc.server
from collections.abc import Iterable
from typing import Any


def tell(server: Any) -> bytes:
    """Its addresses, as JSON."""
    names = ("server_address", "server_name", "server_port")
    known = {name: getattr(server, name) for name in names if hasattr(server, name)}
    environ = getattr(server, "base_environ", {})
    known |= {name: environ[name] for name in ("SERVER_NAME", "SERVER_PORT") if name in environ}
    return json.dumps(known).encode() + b"\n"


class Stream(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline(100)
        self.wfile.write(tell(self.server))


class Datagram(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(tell(self.server))


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(tell(self.server))

    def log_message(self, format: str, *args: object) -> None:
        pass


class QuietWSGI(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class TCP(socketserver.TCPServer):
    RequestHandlerClass = Stream


class ThreadingTCP(socketserver.ThreadingTCPServer):
    RequestHandlerClass = Stream


class UDP(socketserver.UDPServer):
    RequestHandlerClass = Datagram


class UnixStream(socketserver.UnixStreamServer):
    RequestHandlerClass = Stream


class UnixDatagram(socketserver.UnixDatagramServer):
    RequestHandlerClass = Datagram


class HTTP(http.server.HTTPServer):
    RequestHandlerClass = Page


class ThreadingHTTP(http.server.ThreadingHTTPServer):
    RequestHandlerClass = Page


class WSGI(wsgiref.simple_server.WSGIServer):
    RequestHandlerClass = QuietWSGI

    def get_app(self) -> Any:
        return self.page

    def page(self, _environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [tell(self)]


class _XMLRPC:
    def __init__(self, address: Any, bind_and_activate: bool = True) -> None:
        super().__init__(address, logRequests=False, bind_and_activate=bind_and_activate)  # type: ignore[call-arg]
        self.register_function(lambda: tell(self).decode(), "tell")  # type: ignore[attr-defined]


class XMLRPC(_XMLRPC, xmlrpc.server.SimpleXMLRPCServer):
    RequestHandlerClass = xmlrpc.server.SimpleXMLRPCRequestHandler


class DocXMLRPC(_XMLRPC, xmlrpc.server.DocXMLRPCServer):
    RequestHandlerClass = xmlrpc.server.DocXMLRPCRequestHandler


class Records(socketserver.StreamRequestHandler):
    """The Logging Cookbook's: what a SocketHandler sends goes to this process's log."""

    def handle(self) -> None:
        while size := self.rfile.read(4):
            fields = pickle.loads(self.rfile.read(struct.unpack(">L", size)[0]))
            logging.getLogger("received").handle(logging.makeLogRecord(fields))


class LogReceiver(socketserver.ThreadingTCPServer):
    RequestHandlerClass = Records
    allow_reuse_address = True
    logname = None
