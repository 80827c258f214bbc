"""Our selector under asyncio's loop, and what stands between transports and handlers."""

import asyncio
import os
import selectors
import socket
import time
from typing import Any

import pytest

from poolserver.aio_loop import READ, WRITE, LoopSelector
from poolserver.aio_protocols import Presented, feed

EMPTY: list[Any] = []


@pytest.fixture
def selector():
    with LoopSelector() as made:
        yield made


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    with left, right:
        yield left, right


def test_tells_what_is_ready_as_selectors_do(selector, pair):
    """The same answers as the standard library's, event by event."""
    stock = selectors.EpollSelector()
    left, right = pair
    for each in (selector, stock):
        each.register(left, READ | WRITE, "data")
        assert each.select(0) == [(each.get_key(left), WRITE)]
    right.send(b"x")
    for each in (selector, stock):
        assert each.select(0) == [(each.get_key(left), READ | WRITE)]
        assert each.modify(left, READ, "more").data == "more"
        assert each.select(0) == [(each.get_key(left), READ)]
    right.close()
    for each in (selector, stock):
        each.modify(left, WRITE, "end")
        assert each.select(0) == [(each.get_key(left), WRITE)]
        assert each.unregister(left).fd == left.fileno()
        assert each.select(0) == EMPTY
        assert not each.get_map()
        with pytest.raises(KeyError):
            each.get_key(left)
    stock.close()


def test_register_twice_and_strange_descriptors_are_errors(selector, pair):
    """As selectors have it."""
    selector.register(pair[0], READ)
    with pytest.raises(KeyError):
        selector.register(pair[0].fileno(), READ)
    with pytest.raises(ValueError, match="invalid descriptor"):
        selector.register(-1, READ)


def test_descriptor_that_was_closed_can_be_unregistered(selector):
    """asyncio's transports close first now and then."""
    reading, writing = os.pipe()
    selector.register(reading, READ)
    os.close(reading)
    os.close(writing)
    assert selector.unregister(reading).fd == reading


def test_exclusive_descriptor_wakes_one_waiter_and_can_change(selector, pair):
    """EPOLLEXCLUSIVE allows no change: it is registered anew, shared while there is something to write."""
    left, right = pair
    selector.exclusive.add(left.fileno())
    selector.register(left, READ)
    right.send(b"x")
    assert [events for _, events in selector.select(0)] == [READ]
    selector.modify(left, READ | WRITE)
    assert [events for _, events in selector.select(0)] == [READ | WRITE]
    selector.modify(left, READ)
    assert [events for _, events in selector.select(0)] == [READ]


def test_time_out_is_never_early(selector):
    """epoll counts milliseconds."""
    before = time.monotonic()
    assert selector.select(0.0101) == EMPTY
    assert time.monotonic() - before >= 0.0101
    assert selector.select(-1) == EMPTY


def test_loop_runs_on_it() -> None:
    """Connections, timers, and calls from threads."""

    async def conversation() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(await asyncio.to_thread(lambda: b"hello\n"))
            await asyncio.sleep(0.001)
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

    loop = asyncio.SelectorEventLoop(LoopSelector())
    try:
        assert loop.run_until_complete(conversation()) == b"hello\n"
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


class Small(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.buffer = bytearray(3)
        self.got = b""

    def get_buffer(self, _sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.buffer[:nbytes]


def test_early_bytes_are_fed_to_protocols_of_either_kind() -> None:
    """A buffered one takes them in as many pieces as it likes."""
    small = Small()
    feed(small, b"12345678")
    assert small.got == b"12345678"


def test_presented_transport_differs_in_its_peer_alone() -> None:
    """What uvloop's cannot be told."""

    class Transport:
        def get_extra_info(self, name: str, default: object = None) -> object:
            return {"peername": "the proxy", "sockname": "us"}.get(name, default)

        def write(self, data: bytes) -> bytes:
            return data

    presented = Presented(Transport(), "the client")
    assert [presented.get_extra_info(name, 7) for name in ("peername", "sockname", "cipher")] == ["the client", "us", 7]
    assert presented.write(b"x") == b"x"
