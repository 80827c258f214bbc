"""A listener as lanes have it accepts as the standard library's sockets do, with fewer questions."""

import socket
from collections.abc import Iterator

import pytest

from poolserver.shared_socket import SharedSocket


@pytest.fixture(params=["tcp", "tcp6", "unix"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """One of each family that lanes accept on."""
    if request.param == "unix":
        made = socket.socket(socket.AF_UNIX)
        made.bind(b"")  # an abstract address of the kernel's choice: unix(7), autobind
        made.listen()
    else:
        family, host = (socket.AF_INET, "127.0.0.1") if request.param == "tcp" else (socket.AF_INET6, "::1")
        if family == socket.AF_INET6 and not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        try:
            made = socket.create_server((host, 0), family=family)
        except OSError:
            pytest.skip(f"no address {host} here")
    made.setblocking(False)
    yield made
    made.close()


@pytest.fixture(params=[None, 7.0])
def default_timeout(request: pytest.FixtureRequest) -> Iterator[float | None]:
    """What a handler's module may have set for new sockets."""
    socket.setdefaulttimeout(request.param)
    yield request.param
    socket.setdefaulttimeout(None)


def test_accepts_what_the_standard_library_accepts(listener: socket.socket, default_timeout: float | None) -> None:
    """Class, family, type, protocol, blocking mode and addresses; nothing is inherited."""
    shared = SharedSocket.over(listener)
    with socket.socket(listener.family) as client:
        client.settimeout(10)
        client.connect(listener.getsockname())
        connection, address = shared.accept()
        with connection:
            assert type(connection) is socket.socket
            assert (connection.family, connection.type) == (listener.family, socket.SOCK_STREAM)
            assert connection.proto == listener.proto
            assert connection.gettimeout() == default_timeout
            assert not connection.get_inheritable()
            assert address == client.getsockname()
    with pytest.raises(BlockingIOError):
        shared.accept()
    shared.release()


def test_tells_of_itself_what_its_listener_is(listener: socket.socket) -> None:
    """As enum members, though it keeps them."""
    shared = SharedSocket.over(listener)
    assert shared.family is listener.family
    assert shared.type is listener.type
    assert (shared.proto, shared.getsockname()) == (listener.proto, listener.getsockname())
    shared.release()
