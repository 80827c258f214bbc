"""Plain functions as handlers: ``f(sock, address)``, the simplest service there is.

The function owns the conversation from its first byte to its last; the connection is closed when it returns, as for
any handler.
"""

import inspect
import socketserver
from collections.abc import Callable
from typing import Any, ClassVar

from poolserver.errors import ConfigError

_ADDRESS_NAMES = ("address", "addr", "client_address")
"""A first parameter so named is given the address: the Python Cookbook's ``echo_handler(address, client_sock)``."""


class FunctionHandler(socketserver.BaseRequestHandler):
    """What calls a function; ``handler_around`` makes a subclass for each."""

    function: ClassVar[Callable[[Any, Any], object]]
    takes_address_first: ClassVar[bool]

    def handle(self) -> None:
        """The whole conversation. What the function returns means nothing."""
        pair = (self.request, self.client_address)
        type(self).function(*reversed(pair) if self.takes_address_first else pair)


def handler_around(function: Callable[..., object], named: str) -> type[FunctionHandler]:
    """The handler class that calls ``function``, which the configuration has ``named``.

    An attribute ``wait_for`` of the function is the class's, too.

    Raises:
        ConfigError: it is no plain function of two arguments.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"server.handler: {named} is a generator function, whose call runs nothing of it")
    names = {
        "function": staticmethod(function),
        "takes_address_first": _first_parameter(function, named) in _ADDRESS_NAMES,
        "wait_for": getattr(function, "wait_for", None),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
    }
    return type(function.__name__, (FunctionHandler,), names)


def _first_parameter(function: Callable[..., object], named: str) -> str:
    """Its name; empty for a function of C's that tells none.

    Raises:
        ConfigError: the function cannot be called with two arguments.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        return ""
    try:
        signature.bind(None, None)
    except TypeError as error:
        text = f"server.handler: {named}{signature} cannot be called as {function.__name__}(sock, address): {error}"
        raise ConfigError(text) from None
    return next(iter(signature.parameters))
