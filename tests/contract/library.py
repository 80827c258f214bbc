"""A library service as a program: ``python library.py prefork|prethread HANDLER -b URL -w N -t N --set SECTION.KEY=V``.

Takes the options of ``poolserver run`` that a library call has an equal of, and prints the same ready line, so that
one set of behaviours is asked of all three. HANDLER is a handler class, or a server class with one of its own.
"""

import argparse
import contextlib
import importlib
import logging
import os
import socket
import socketserver
import sys
from http.server import BaseHTTPRequestHandler
from typing import Any

from clients import Address

import poolserver

MIXINS = {"prefork": poolserver.PreForkMixIn, "prethread": poolserver.PreThreadMixIn}

STOCK = {
    (socket.AF_INET, socket.SOCK_STREAM): "TCPServer",
    (socket.AF_INET6, socket.SOCK_STREAM): "TCPServer",
    (socket.AF_INET, socket.SOCK_DGRAM): "UDPServer",
    (socket.AF_UNIX, socket.SOCK_STREAM): "UnixStreamServer",
    (socket.AF_UNIX, socket.SOCK_DGRAM): "UnixDatagramServer",
}


class Announcer(logging.Handler):
    """Writes the ready line when the library logs that all workers accept."""

    def __init__(self, text: str) -> None:
        super().__init__(logging.DEBUG)
        self.text = text

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("ready on") and sys.stderr is not None:
            with contextlib.suppress(OSError):  # a full or broken standard error is what some tests are about
                print(f"\npoolserver: {self.text}", file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=MIXINS)
    parser.add_argument("handler")
    parser.add_argument("-b", dest="bind", required=True)
    parser.add_argument("-w", dest="workers", type=int)
    parser.add_argument("-t", dest="threads", type=int)
    parser.add_argument("--set", dest="settings", action="append", default=[])
    return parser.parse_args()


def server_class(kind: str, attribute: type, address: Address) -> type[socketserver.BaseServer]:
    """The class that a user would write for it."""
    prefix = {"prefork": "PreFork", "prethread": "PreThread"}[kind]
    if issubclass(attribute, socketserver.BaseServer):
        return type(attribute.__name__, (MIXINS[kind], attribute), {})
    name = STOCK[address.family, address.kind]
    if issubclass(attribute, BaseHTTPRequestHandler) and name == "TCPServer":
        name = "HTTPServer"
    return getattr(poolserver, prefix + name)


def main() -> None:
    given = parsed()
    logging.basicConfig(level=logging.INFO)
    address = Address.parse(given.bind)
    module, _, name = given.handler.partition(":")
    attribute = getattr(importlib.import_module(module), name)
    attributes: dict[str, Any] = {"threads": given.threads, "address_family": address.family}
    for each in given.settings:
        key, _, value = each.partition("=")
        section, _, name = key.partition(".")
        attributes.setdefault(section, {})[name] = int(value) if value.isdigit() else value
    if given.kind == "prefork":
        attributes["workers"] = given.workers
    cls = type("Service", (server_class(given.kind, attribute, address),), attributes)
    handler = attribute.RequestHandlerClass if issubclass(attribute, socketserver.BaseServer) else attribute
    with cls(address.where, handler) as server:
        url = given.bind
        if isinstance(address.where, tuple):
            url = f"{given.bind.rpartition(':')[0]}:{server.server_address[1]}"
        log = logging.getLogger("poolserver")
        log.setLevel(logging.DEBUG)
        workers = given.workers if given.kind == "prefork" else 1
        log.addHandler(Announcer(f"ready on {url} (pid {os.getpid()}, {workers} workers x {given.threads} lanes)"))
        server.serve_forever()


if __name__ == "__main__":
    main()
