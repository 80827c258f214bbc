"""Keep-alive conversations in pieces: one exchange at a time, so that between two the connection needs no lane.

For handlers whose ``handle()`` is a loop of socketserver's own making: ``BaseHTTPRequestHandler`` and everything on
it, and ``ParkingMixIn``. The handler object stays the same from ``setup()`` to ``finish()``. Runs in a lane.
"""

import collections
import functools
import io
import socketserver
import ssl
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

_STOCK = (socketserver.BaseServer, socketserver.TCPServer, socketserver.ThreadingMixIn, socketserver.ForkingMixIn)
_OURS = ("poolserver.adapter", "poolserver.handlers", "poolserver.server")
"""Modules whose classes stand before the stock ones and call them, or pass over the mix-ins' hooks."""

_STOCK_HOOKS = {
    name: {vars(cls).get(name) for cls in _STOCK}
    for name in ("process_request", "finish_request", "shutdown_request", "close_request")
}


class ParkingMixIn:
    """For a handler that takes one exchange at a time: between exchanges the connection holds no lane.

    Define ``handle_one_request()``, which handles one and sets ``self.close_connection = True`` to end, at the end of
    input for one. ``wait_for`` says what must have come before the first exchange and between two: "data", "line" or
    "http". ``movable = True``: between exchanges the conversation may go on in another worker, with a new handler
    object. Under a stock server it is an ordinary handler.
    """

    wait_for = "data"
    close_connection = False

    def handle(self) -> None:
        """Take exchanges until one says that it was the last."""
        while not self.close_connection:
            self.handle_one_request()

    def handle_one_request(self) -> None:
        """Handle one exchange."""
        raise NotImplementedError(f"{type(self).__name__} must define handle_one_request()")


class Conversation:
    """A handler that is run an exchange at a time.

    Its ``handle`` and ``finish`` are shadowed in the instance, so that ``__init__``, whoever wrote it, runs ``setup()``
    and the first exchange, and comes back before the end.
    """

    def __init__(self, make: Any, request: Any, client_address: Any, server: Any) -> None:
        """Raises whatever the handler does; then it was finished already."""
        self.is_over = True
        self._request = request
        cls, arguments, keywords = _unfolded(make)
        self.handler = cls.__new__(cls)
        self.handler.handle = self._handle_first
        self.handler.finish = self._finish_if_over
        try:
            self.handler.__init__(*arguments, request, client_address, server, **keywords)
        except BaseException:
            vars(self.handler).pop("handle", None)  # setup() raised: nothing finishes the handler, which holds us
            vars(self.handler).pop("finish", None)
            raise

    def go_on(self, *, is_last: bool = False) -> None:
        """Take the next exchange. ``is_last``: its input is at its end. Raises what the handler does, finished."""
        self.is_over = True
        try:
            self.handler.handle_one_request()
            self.is_over = is_last or bool(self.handler.close_connection)
        finally:
            self._finish_if_over()

    def end(self) -> None:
        """No further exchange: ``finish()``, which may raise."""
        self.is_over = True
        self._finish_if_over()

    def has_input(self) -> bool:
        """Whether bytes of the next exchange were read already: no epoll would tell of them."""
        if not self.is_plain:
            connection = self.connection
            if not isinstance(connection, ssl.SSLSocket) or connection.pending():
                return True  # or some other layer of the handler's: nobody can tell
        return _has_buffered(getattr(self.handler, "rfile", None))

    def goes_on_as_before(self) -> bool:
        """Take the next exchange of one that is plain. Whether it then is so still: not over, on a socket that waits
        for ever, and nothing of its next exchange was read."""
        handler, request = self.handler, self._request
        self.is_over = True
        try:
            handler.handle_one_request()
            if not handler.close_connection:
                self.is_over = False
        finally:
            if self.is_over:
                self._finish_if_over()
        try:
            if self.is_over or handler.connection is not request or handler.request is not request:
                return False
            return not (request.gettimeout() or _has_buffered(handler.rfile))
        except AttributeError:
            return False  # a handler of the user's own making

    @property
    def connection(self) -> Any:
        """The socket that the client is on: the request, or what ``setup()`` made of it, which has its descriptor then.

        Source: SSLContext.wrap_socket detaches the socket that it is given.
        """
        if self.is_plain:
            return self._request
        return next((each for each in self._layers if isinstance(each, ssl.SSLSocket)), self._request)

    @property
    def has_stock_finish(self) -> bool:
        """Whether ``finish()`` runs no code of the user's, and sends nothing: the writer is socketserver's own."""
        own = type(self.handler).finish
        return own is socketserver.StreamRequestHandler.finish and not self.handler.wbufsize

    @property
    def is_plain(self) -> bool:
        """Whether what the client sends is what the handler reads: no TLS put on."""
        request, handler = self._request, self.handler
        return (
            getattr(handler, "connection", request) is request
            and handler.request is request
            and not isinstance(request, ssl.SSLSocket)
        )

    @property
    def _layers(self) -> tuple[Any, Any]:
        """Where the handler reads. Source: socketserver.StreamRequestHandler.setup."""
        return getattr(self.handler, "connection", self._request), self.handler.request

    def _handle_first(self) -> None:
        """As the loop that it stands for begins: http.server's with one request, ``ParkingMixIn``'s unless
        ``setup()`` has ended it."""
        if type(self.handler).handle is BaseHTTPRequestHandler.handle:
            self.handler.close_connection = True
        elif self.handler.close_connection:
            return
        self.handler.handle_one_request()
        self.is_over = bool(self.handler.close_connection)

    def _finish_if_over(self) -> None:
        if self.is_over:
            del self.handler.handle, self.handler.finish
            self.handler.finish()


def handler_class(handler: Any) -> Any:
    """The class of a handler; that of a ``functools.partial`` is what it makes."""
    return _unfolded(handler)[0]


def is_conversational(server: socketserver.BaseServer) -> bool:
    """Whether a server and its handler let a conversation be taken in pieces: the loop is a known one, and nobody's
    hook stands around it."""
    cls = handler_class(getattr(server, "RequestHandlerClass", None))
    if not (isinstance(cls, type) and type(cls).__call__ is type.__call__ and "__new__" not in _names(cls)):
        return False
    loops = (BaseHTTPRequestHandler.handle, ParkingMixIn.handle)
    return getattr(cls, "handle", None) in loops and all(
        name not in vars(server) and _stock_attribute(type(server), name) in stock
        for name, stock in _STOCK_HOOKS.items()
    )


def is_movable(cls: Any) -> bool:
    """Whether a new handler object, in another worker, can go on between two exchanges."""
    own = getattr(cls, "movable", None)
    return getattr(cls, "handle", None) is BaseHTTPRequestHandler.handle if own is None else bool(own)


def _unfolded(handler: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The class, and the arguments that a ``functools.partial`` adds, as it is usual with SimpleHTTPRequestHandler."""
    if isinstance(handler, functools.partial):
        return handler.func, handler.args, handler.keywords
    return handler, (), {}


def _names(cls: type) -> set[str]:
    """What a class and its bases define, ``object`` aside."""
    return {name for each in cls.__mro__[:-1] for name in vars(each)}


def _stock_attribute(cls: type, name: str) -> Any:
    """What a class has under ``name``, with what the adapter put before the stock ones passed over."""
    for each in cls.__mro__:
        if name in vars(each) and each.__module__ not in _OURS:
            return vars(each)[name]
    return None


_read_nothing: Callable[[Any], None] = collections.deque[Any](maxlen=0).append
"""Keeps nothing and gives None. Source: io.RawIOBase.readinto, where None means that nothing is there now."""


_Reader = io.BufferedReader


def _has_buffered(rfile: Any) -> bool:
    """Whether a reader holds bytes that it read ahead, without a read of its own; one that does not tell may."""
    if not isinstance(rfile, _Reader):
        return False
    raw: Any = rfile.raw
    try:
        raw.readinto = _read_nothing
    except AttributeError:
        return True  # no SocketIO: a file of the handler's own
    try:
        return rfile.peek(1) != b""
    finally:
        del raw.readinto
