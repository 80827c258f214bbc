"""XML-RPC: a server class that brings its own handler class, where the handlers before are handler classes.

Serve it, and talk to it::

    poolserver run poolserver.examples.rpc:RPCServer -b tcp://127.0.0.1:20000
    python3 -c 'from xmlrpc.client import *; print(ServerProxy("http://127.0.0.1:20000").pow(2, 10))'

The standard library's server reads as many bytes as a client announces, and would compute ``9 ** 9 ** 9``; a
service open to others has to say how much of both is enough.
"""

import logging
from http import HTTPStatus
from typing import Any
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

MAX_BODY_BYTES = 1024 * 1024
"""Longest call that is read into memory. The standard library bounds what a gzipped one unpacks to."""

MAX_RESULT_BITS = 32
"""XML-RPC's integers have no more."""

logger = logging.getLogger(__name__)


class RPCHandler(SimpleXMLRPCRequestHandler):
    """Reads calls of a bounded length only."""

    def do_POST(self) -> None:
        """One call, if it says its length. With a negative one the standard library reads for ever."""
        announced = self.headers.get("Content-Length", "")
        if not announced.isdecimal():
            self.send_error(HTTPStatus.LENGTH_REQUIRED)
        elif len(announced) > 8 or int(announced) > MAX_BODY_BYTES:
            self.send_error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            super().do_POST()

    def log_message(self, format: str, *args: object) -> None:
        """Log what http.server has to say at debug, not to standard error."""
        logger.debug("%s %r", self.client_address, format % args)


class RPCServer(SimpleXMLRPCServer):
    """Two functions, and introspection. Constructed as any socketserver server: it opens nothing else."""

    RequestHandlerClass = RPCHandler

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[SimpleXMLRPCRequestHandler] = RPCHandler,
        bind_and_activate: bool = True,
    ) -> None:
        super().__init__(address, handler, logRequests=False, allow_none=True, bind_and_activate=bind_and_activate)
        self.register_introspection_functions()
        self.register_function(power, "pow")
        self.register_function(add)


def add(left: Any, right: Any) -> Any:
    """The sum. The client chooses the types; what does not add up is a Fault to it, as any exception here."""
    return left + right


def power(base: Any, exponent: Any) -> Any:
    """``base`` to the power of ``exponent``; refused before it is computed where it could not be sent."""
    if isinstance(base, int) and isinstance(exponent, int):
        bits = (abs(base).bit_length() - 1) * exponent  # the result has at least so many
        if bits >= MAX_RESULT_BITS:
            raise OverflowError(f"the result exceeds XML-RPC's {MAX_RESULT_BITS} bits")
    return base**exponent
