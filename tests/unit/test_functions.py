"""What can be served: plain functions, and what is refused by name."""

import asyncio
import socket
from typing import Any

import pytest

from poolserver.address import parse
from poolserver.errors import ConfigError
from poolserver.examples.function import greet
from poolserver.handlers import Service, fitting, service_of


def served(attribute: Any) -> Service:
    return service_of(attribute, "mine:it", "")


def called_with(function: Any) -> None:
    """Make the handler of ``function`` serve one connection."""
    served(function).handler("the socket", "the address", "the server")


@pytest.mark.parametrize("name", ["address", "addr", "client_address", "sock", "connection"])
def test_first_parameter_decides_the_order(name: str) -> None:
    """The Cookbook's echo_handler has the address first."""
    got: list[object] = []
    namespace: dict[str, Any] = {"got": got}
    exec(f"def f({name}, other): got.extend([{name}, other])", namespace)
    called_with(namespace["f"])
    assert got == (["the address", "the socket"] if "addr" in name else ["the socket", "the address"])


def test_bound_method_and_defaults_are_served() -> None:
    """What can be called with two arguments is."""

    class Application:
        def __init__(self) -> None:
            self.got: tuple[object, ...] = ()

        def serve(self, sock: object, address: object, greeting: str = "hello") -> None:
            self.got = (sock, address, greeting)

    application = Application()
    called_with(application.serve)
    assert application.got == ("the socket", "the address", "hello")


def test_handler_is_named_after_its_function_and_waits_as_it_says() -> None:
    """For error messages, and for parking.wait_for = auto."""

    def talk(sock: object, address: object) -> None:
        """Talks."""

    talk.wait_for = "line"  # type: ignore[attr-defined]
    handler = served(talk).handler
    assert (handler.__name__, handler.__doc__, handler.wait_for) == ("talk", "Talks.", "line")
    assert handler.__module__ == __name__


def lonely(sock: object) -> None:
    """Takes no address."""


def greedy(sock: object, address: object, *, colour: str) -> None:
    """Wants more than there is."""


async def coroutine(reader: object, writer: object) -> None:
    """Of asyncio."""


def generator(sock: object, address: object) -> Any:
    """Would not even begin."""
    yield


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        (lonely, "cannot be called as lonely(sock, address): too many positional arguments"),
        (greedy, "missing a required"),
        (coroutine, "is a coroutine function, which this version cannot serve"),
        (generator, "is a generator function"),
        (asyncio.Protocol, "is the class Protocol, an asyncio protocol, which this version cannot serve"),
        (asyncio.DatagramProtocol, "an asyncio protocol"),
        (socket.socket, "is the class socket; want a subclass of socketserver.BaseRequestHandler, a plain function"),
        (42, "is a int; want"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(attribute: Any, words: str) -> None:
    """The configuration's key, what it is, what would do."""
    with pytest.raises(ConfigError) as refusal:
        served(attribute)
    assert str(refusal.value).startswith("server.handler: mine:it")
    assert words in str(refusal.value)


@pytest.mark.parametrize("url", ["udp://127.0.0.1:0", "unixgram:/tmp/s"])
def test_function_is_refused_for_datagrams(url: str) -> None:
    """It is given a connection, and a datagram has none."""
    with pytest.raises(ConfigError, match="greet is a plain function, which serves connections and cannot serve"):
        fitting(served(greet), parse(url)[0])


def test_example_greets_until_the_end() -> None:
    """A line is answered, an empty one ends it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"ann\nbob\n\nignored\n")
        greet(ours, ("192.0.2.1", 7))
        assert theirs.recv(1000) == b"hello ann from 192.0.2.1\nhello bob from 192.0.2.1\n"
