"""What asyncio serves: coroutine functions ``async f(reader, writer)``, and subclasses of asyncio's protocols.

Here they become handler classes that stand for them, so that stations are made of them as of any. Called by
``handlers.py``; and by whoever makes a crew, to have the right one. It does not import asyncio, which would cost each
service that has no use for it 50 ms at the start.
"""

import importlib
import importlib.util
import inspect
import socketserver
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from poolserver.crew import Crew
from poolserver.errors import ConfigError
from poolserver.station import Station

_STREAM_PROTOCOLS = ("Protocol", "BufferedProtocol")
_DATAGRAM_PROTOCOLS = ("DatagramProtocol",)


class LoopHandler(socketserver.BaseRequestHandler):
    """Stands for what an event loop serves, and is never called itself."""

    target: ClassVar[Callable[..., Any]]
    """The coroutine function, or the protocol class."""
    is_coroutine: ClassVar[bool]
    serves_streams: ClassVar[bool]
    serves_datagrams: ClassVar[bool]


def loop_handler(attribute: Any, named: str) -> type[LoopHandler] | None:
    """The handler class for ``attribute``, which the configuration has ``named``; None where it is none of asyncio's.

    Its own ``wait_for`` is the class's, too.

    Raises:
        ConfigError: it cannot be called as it would be.
    """
    is_coroutine = inspect.iscoroutinefunction(attribute)
    names = _protocol_names(attribute)
    serves_streams = is_coroutine or any(name in names for name in _STREAM_PROTOCOLS)
    serves_datagrams = any(name in names for name in _DATAGRAM_PROTOCOLS)
    if not (serves_streams or serves_datagrams):
        return None
    _refuse_uncallable(attribute, named, 2 if is_coroutine else 0)
    members = {
        "target": staticmethod(attribute),
        "is_coroutine": is_coroutine,
        "serves_streams": serves_streams,
        "serves_datagrams": serves_datagrams,
        "wait_for": getattr(attribute, "wait_for", None),
        "__doc__": attribute.__doc__,
        "__module__": attribute.__module__,
    }
    return type(attribute.__name__, (LoopHandler,), members)


def refuse_missing(event_loop: str) -> None:
    """Refuse a loop that is not installed.

    Raises:
        ConfigError: says how to install it.
    """
    if event_loop == "uvloop" and importlib.util.find_spec("uvloop") is None:
        raise ConfigError("pool.event_loop: uvloop is not installed: pip install 'poolserver[uvloop]'")


def kind_of(handler: type[LoopHandler]) -> str:
    """What it is, in words."""
    if handler.is_coroutine:
        return "a coroutine function f(reader, writer)"
    return "an asyncio protocol of streams" if handler.serves_streams else "an asyncio protocol of datagrams"


def crew_for(stations: Sequence[Station]) -> type[Crew]:
    """The kind of crew that serves these stations."""
    handler = stations[0].server.RequestHandlerClass if stations else None
    if not (isinstance(handler, type) and issubclass(handler, LoopHandler)):
        return Crew
    crew: type[Crew] = importlib.import_module("poolserver.aio_crew").LoopCrew
    return crew


def _protocol_names(attribute: Any) -> list[str]:
    """Which of asyncio's protocols it derives from. Whoever defined it has imported asyncio."""
    bases = attribute.__mro__ if isinstance(attribute, type) else ()
    return [base.__name__ for base in bases if base.__module__ == "asyncio.protocols"]


def _refuse_uncallable(attribute: Any, named: str, arguments: int) -> None:
    how = f"{attribute.__name__}(reader, writer)" if arguments else f"{attribute.__name__}()"
    try:
        signature = inspect.signature(attribute)
    except ValueError:
        return  # one of C's that tells nothing
    try:
        signature.bind(*[None] * arguments)
    except TypeError as error:
        raise ConfigError(f"server.handler: {named}{signature} cannot be called as {how}: {error}") from None
