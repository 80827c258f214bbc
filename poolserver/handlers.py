"""What is served: load the handler and the server class, and make the stations where lanes serve them.

Runs in a worker (so that a restart loads new code), in the one process of ``-w 0``, and in ``check``.
"""

import difflib
import importlib
import inspect
import logging
import socketserver
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any

from poolserver.adapter import LaneServer, passed_over
from poolserver.address import Address
from poolserver.aio import LoopHandler, kind_of, loop_handler
from poolserver.conversation import handler_class, is_conversational, is_movable
from poolserver.errors import ConfigError
from poolserver.functions import FunctionHandler, handler_around
from poolserver.listener import Listener
from poolserver.seating import server_for
from poolserver.station import Station, Terms
from poolserver.waits import Step, Wait

_log = logging.getLogger("poolserver")

DEFER_ACCEPT = 1
"""Seconds of TCP_DEFER_ACCEPT where a lane would have to wait for the client's first byte anyway: most connections then
come with it, and are served at once (88 of 100 had no data yet at accept(2) without it). It is no shield: after the
time, connections come all the same."""

_WANTED = (
    "want a subclass of socketserver.BaseRequestHandler, a plain function f(sock, address), a coroutine function"
    " f(reader, writer), an asyncio protocol, or a socketserver server class with a RequestHandlerClass of its own"
)

_STREAM_ONLY = socketserver.StreamRequestHandler
_DATAGRAM_ONLY = socketserver.DatagramRequestHandler
_STOCK_GET_REQUESTS = (socketserver.TCPServer.get_request, socketserver.UDPServer.get_request)


@dataclass(frozen=True)
class Service:
    """A handler class, and the server class of the user's that goes with it (None: socketserver's for each
    listener)."""

    handler: Any
    server_class: type[socketserver.BaseServer] | None


def load(handler: str, server_class: str, pythonpath: Sequence[Path] = ()) -> Service:
    """Import what the configuration names.

    Raises:
        ConfigError: it cannot be imported or is not something that can be served; ``details`` has the traceback.
    """
    for folder in reversed([str(path) for path in pythonpath]):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    if not handler:
        return _service_of(_server_class(server_class), server_class)
    return service_of(_import(handler, "server.handler"), handler, server_class)


def service_of(attribute: Any, handler: str, server_class: str) -> Service:
    """What ``attribute``, named ``handler``, can be served as.

    Raises:
        ConfigError: it is nothing that can be served.
    """
    chosen = _server_class(server_class) if server_class else None
    if isinstance(attribute, type) and issubclass(attribute, socketserver.BaseServer):
        if chosen is not None:
            raise ConfigError(
                f"server.handler: {handler} is a server class, and so is server.server_class: give one of them"
            )
        return _service_of(attribute, handler)
    if (on_loop := loop_handler(attribute, handler)) is not None:
        if chosen is not None:
            raise ConfigError(
                f"server.server_class: {handler} is {kind_of(on_loop)}, which no socketserver class serves"
            )
        return Service(on_loop, None)
    if inspect.isroutine(attribute):
        return Service(handler_around(attribute, handler), chosen)
    if not (isinstance(attribute, type) and issubclass(attribute, socketserver.BaseRequestHandler)):
        raise ConfigError(f"server.handler: {handler} is {_kind(attribute)}; {_WANTED}")
    return Service(attribute, chosen)


def call(spec: str, key: str) -> None:
    """Call the function that ``key`` names, if it names one.

    Raises:
        ConfigError: it cannot be imported or called, or raises.
    """
    if not spec:
        return
    function = _function(spec, key)
    try:
        function()
    except BaseException as error:
        raise ConfigError(f"{key}: {spec}: {type(error).__name__}: {error}", traceback.format_exc()) from error


def refuse_missing(spec: str, key: str) -> None:
    """Refuse what ``key`` names if ``call`` could not call it. Raises ConfigError."""
    if spec:
        _function(spec, key)


def _function(spec: str, key: str) -> Callable[[], object]:
    function: Callable[[], object] = _import(spec, key)
    if not callable(function):
        raise ConfigError(f"{key}: {spec} is no function")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(
            f"{key}: {spec} is a coroutine function, which no event loop would run: want a plain function"
        )
    return function


def fitting(service: Service, address: Address) -> None:
    """Refuse a handler on a kind of address that it cannot serve, and one that waits for what there is not.

    Raises:
        ConfigError: names the handler and the address.
    """
    handler = service.handler
    _own_wait(handler_class(handler))
    unfit = _DATAGRAM_ONLY if address.is_stream else _STREAM_ONLY
    if isinstance(handler, type) and issubclass(handler, unfit):
        raise ConfigError(f"server.handler: {handler.__name__} is a {unfit.__name__}, which cannot serve {address.url}")
    if isinstance(handler, type) and issubclass(handler, LoopHandler) and not _fits(handler, address):
        raise ConfigError(f"server.handler: {handler.__name__} is {kind_of(handler)}, which cannot serve {address.url}")
    if isinstance(handler, type) and issubclass(handler, FunctionHandler) and not address.is_stream:
        raise ConfigError(
            f"server.handler: {handler.__name__} is a plain function, which serves connections and cannot serve"
            f" {address.url}; want a socketserver.DatagramRequestHandler"
        )


def _fits(handler: type[LoopHandler], address: Address) -> bool:
    return handler.serves_streams if address.is_stream else handler.serves_datagrams


def stations(service: Service, listeners: Sequence[Listener], terms: Terms) -> list[Station]:
    """A server object for each listener, ready to be served by lanes.

    Raises:
        ConfigError: the server class does not take its listener; ``details`` has the traceback.
    """
    for listener in listeners:
        fitting(service, listener.address)
    return [
        station(server_for(service.handler, service.server_class, listener), listener, terms) for listener in listeners
    ]


def station(server: LaneServer, listener: Listener, terms: Terms) -> Station:
    """The place where lanes serve ``server``, whose socket is to be a ``SharedSocket`` over ``listener``."""
    for name in passed_over(type(server)):
        _log.info(
            "%s: process_request of %s is passed over: the lane handles the request itself",
            listener.url,
            name,
        )
    is_unix = listener.is_stream and listener.address.scheme == "unix"
    handler = handler_class(getattr(server, "RequestHandlerClass", None))
    wait = _wait(handler, terms) if listener.is_stream else Wait.NONE
    proxy_mode = terms.proxy_mode if listener.is_stream and terms.proxy_mode != "off" else ""
    tls = terms.tls if listener.address.scheme == "tls" else None
    first_step = Step.HEADER if proxy_mode else Step.HANDSHAKE if tls is not None else Step.REQUEST
    client_is_first = wait is not Wait.NONE or first_step is not Step.REQUEST
    defer = listener.options.defer_accept or (DEFER_ACCEPT if client_is_first else 0)
    return Station(
        server,
        listener.socket.fileno(),
        listener.is_stream,
        listener.is_stream and not is_unix,
        is_unix,
        listener.options.idle_timeout,
        listener.socket.getsockname(),
        url=listener.url,
        wait=wait,
        between=wait if wait is not Wait.NONE else Wait.DATA,
        defer_accept=defer,
        is_conversational=listener.is_stream and is_conversational(server),
        is_movable=is_movable(handler),
        may_block=type(server).get_request
        not in (socketserver.TCPServer.get_request, socketserver.UDPServer.get_request),
        may_be_tls=getattr(handler, "setup", None) is not socketserver.StreamRequestHandler.setup,
        first_step=first_step,
        proxy_mode=proxy_mode,
        tls=tls,
    )


def _wait(handler: Any, terms: Terms) -> Wait:
    """What ``parking.wait_for`` means for this handler; a time-out for the first byte waits for one at least."""
    wait = Wait(terms.wait_for) if terms.wait_for != "auto" else _own_wait(handler)
    return Wait.DATA if wait is Wait.NONE and terms.first_byte_timeout else wait


def _own_wait(handler: Any) -> Wait:
    own = getattr(handler, "wait_for", None)
    if not isinstance(own, str):  # a method of that name, say
        is_http = isinstance(handler, type) and issubclass(handler, BaseHTTPRequestHandler)
        return Wait.HTTP if is_http else Wait.NONE
    if own not in list(Wait):
        raise ConfigError(f"{handler.__name__}.wait_for is {own!r}; want one of {', '.join(Wait)}")
    return Wait(own)


def _service_of(server_class: type[socketserver.BaseServer], spec: str) -> Service:
    handler = getattr(server_class, "RequestHandlerClass", None)
    if handler is None:
        raise ConfigError(f"server.handler: {spec} has no RequestHandlerClass; give the handler as server.handler")
    return Service(handler, server_class)


def _server_class(spec: str) -> type[socketserver.BaseServer]:
    attribute = _import(spec, "server.server_class")
    if not (isinstance(attribute, type) and issubclass(attribute, socketserver.BaseServer)):
        raise ConfigError(
            f"server.server_class: {spec} is {_kind(attribute)}; want a subclass of socketserver.BaseServer"
        )
    return attribute


def _import(spec: str, key: str) -> Any:
    module_name, _, path = spec.partition(":")
    if not (_is_dotted(module_name) and _is_dotted(path)):
        raise ConfigError(f'{key}: {spec!r} is not of the form "package.module:attribute"{_meant(spec)}')
    try:
        found: Any = importlib.import_module(module_name)
    except BaseException as error:
        text = f"{key}: cannot import {module_name}: {type(error).__name__}: {error}"
        if _is_missing(module_name, error):
            raise ConfigError(text + _meant(spec)) from error
        raise ConfigError(text, _of_users(error)) from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), n=1, cutoff=0.75)
            hint = f' (did you mean "{near[0]}"?)' if near else ""
            raise ConfigError(f"{key}: module {module_name} has no {path!r}{hint}") from None
    return found


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _meant(spec: str) -> str:
    """A hint for who named a file, or put a dot for the colon."""
    name, colon, path = spec.removeprefix("./").replace("/", ".").partition(":")
    name = name.removesuffix(".py") if colon else name
    path = path or name.rpartition(".")[2]
    name = name if colon else name.rpartition(".")[0]
    meant = f"{name}:{path}"
    return f' (did you mean "{meant}"?)' if _is_dotted(name) and _is_dotted(path) and meant != spec else ""


def _of_users(error: BaseException) -> str:
    """The traceback from the first line of the user's on; empty where there is none."""
    ours, at = (__file__, importlib.__file__), error.__traceback__
    while at is not None and _file(at).startswith(("<frozen importlib", *ours)):
        at = at.tb_next
    if at is None and not isinstance(error, SyntaxError):
        return ""
    return "".join(traceback.format_exception(type(error), error, at))


def _file(at: TracebackType) -> str:
    return at.tb_frame.f_code.co_filename


def _is_missing(module_name: str, error: BaseException) -> bool:
    """Whether there is no such module, so that a traceback would show nothing of the user's."""
    return isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")


def _kind(attribute: Any) -> str:
    name = type(attribute).__name__
    article = "an" if name.startswith(tuple("aeiou")) else "a"
    return f"the class {attribute.__name__}" if isinstance(attribute, type) else f"{article} {name}"
