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


async def lonely_coroutine(reader: object) -> None:
    """Of asyncio, and takes less than there is."""


class Demanding(asyncio.Protocol):
    """Cannot be made without arguments."""

    def __init__(self, much: object) -> None:
        """Never."""


def generator(sock: object, address: object) -> Any:
    """Would not even begin."""
    yield


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        (lonely, "cannot be called as lonely(sock, address): too many positional arguments"),
        (greedy, "missing a required"),
        (lonely_coroutine, "cannot be called as lonely_coroutine(reader, writer): too many positional arguments"),
        (generator, "is a generator function"),
        (Demanding, "cannot be called as Demanding(): missing a required argument: 'much'"),
        (asyncio.SubprocessProtocol, "is the class SubprocessProtocol; want"),
        (socket.socket, "is the class socket; want a subclass of socketserver.BaseRequestHandler, a plain function"),
        (42, "is an int; want"),
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


@pytest.mark.parametrize(
    ("attribute", "fit", "unfit", "kind"),
    [
        (coroutine, "tcp://127.0.0.1:0", "udp://127.0.0.1:0", "a coroutine function f(reader, writer)"),
        (asyncio.Protocol, "unix:/tmp/s", "unixgram:/tmp/s", "an asyncio protocol of streams"),
        (asyncio.BufferedProtocol, "tcp://127.0.0.1:0", "udp://127.0.0.1:0", "an asyncio protocol of streams"),
        (asyncio.DatagramProtocol, "udp://127.0.0.1:0", "tcp://127.0.0.1:0", "an asyncio protocol of datagrams"),
    ],
)
def test_what_asyncio_serves_is_accepted_where_it_fits(attribute: Any, fit: str, unfit: str, kind: str) -> None:
    """A coroutine function or a protocol, by a crew of its own; no server class goes with it."""
    service = served(attribute)
    fitting(service, parse(fit)[0])
    with pytest.raises(ConfigError, match=r"is an? .*, which cannot serve") as refusal:
        fitting(service, parse(unfit)[0])
    assert kind in str(refusal.value)
    with pytest.raises(
        ConfigError, match=r"^server\.server_class: mine:it is an? .*, which no socketserver class serves"
    ):
        service_of(attribute, "mine:it", "socketserver:TCPServer")
