"""Messages that carry connections between workers: what arrives is what was sent, and what cannot be is said."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from park_world import URL, Talk, station

from poolserver.handover import FAMILY, VERSION, Intake, Pair, may_leave, may_move, send
from poolserver.parked import Parked
from poolserver.rows import Outcome
from poolserver.waits import Step


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair.open()
    yield made
    made.close()


@pytest.fixture
def parked() -> Iterator[Parked]:
    client, request = socket.socketpair()
    with client, request:
        yield Parked(station(), request, ("192.0.2.1", 1), time.monotonic(), 4711)


def intake(pair: Pair) -> Intake:
    return Intake(pair, True, {0: station()})


ADDRESSES = [
    ("192.0.2.1", 4711),
    ("2001:db8::1", 4711, 0, 3),
    ("unix:uid=0,pid=1", 0),
    "/run/client.sock",
    b"\0client",
    "/run/\udcff",
]


@pytest.mark.parametrize("address", ADDRESSES, ids=ascii)
@pytest.mark.parametrize("is_between", [False, True])
def test_connection_arrives_as_it_was_sent(pair: Pair, parked: Parked, address: Any, is_between: bool) -> None:
    """With its peer as the handler knows it, its age, its claim and where that is counted."""
    parked.address, parked.is_between, parked.since = address, is_between, time.monotonic() - 100
    assert send(pair, parked, 17)
    assert intake(pair).has_more()
    arrival = intake(pair).receive()
    assert arrival is not None
    came = arrival.parked
    assert came is not None
    with came.request:
        assert (came.address, came.is_between, came.claim, arrival.place) == (address, is_between, 4711, 17)
        assert came.since == pytest.approx(parked.since, abs=1)
        assert came.station.url == URL
        assert came.request.family == parked.request.family
        assert not came.request.get_inheritable()
    assert intake(pair).receive() is None
    assert not intake(pair).has_more()


MESSAGE = {
    "version": VERSION,
    "family": FAMILY,
    "url": URL,
    "peer": "('192.0.2.1', 1)",
    "age": 0,
    "between": False,
    "step": Step.REQUEST,
    "claim": 1,
}


@pytest.mark.parametrize(
    ("message", "place", "said"),
    [
        (MESSAGE | {"version": 99, "place": 5}, -1, "its message has version 99, ours is 1"),
        (MESSAGE | {"url": "tcp://127.0.0.1:9", "place": 5}, 5, "nothing listens on tcp://127.0.0.1:9 here"),
        (MESSAGE | {"peer": "no literal", "place": 5}, 5, ""),
        (MESSAGE, -1, "place"),
        ({}, -1, "version"),
        (["a list"], -1, ""),
        ("no JSON", -1, ""),
    ],
)
def test_message_that_cannot_be_understood_is_closed_and_said(
    pair: Pair, parked: Parked, caplog: pytest.LogCaptureFixture, message: object, place: int, said: str
) -> None:
    """Its place is given back where it can be read; its descriptor does not leak."""
    text = json.dumps(message) if message != "no JSON" else "no JSON"
    mine, theirs = socket.socketpair()
    socket.send_fds(pair.writing, [text.encode()], [theirs.fileno()])
    theirs.close()
    arrival = intake(pair).receive()
    assert arrival is not None
    assert (arrival.parked, arrival.place) == (None, place)
    assert mine.recv(1) == b""
    mine.close()
    assert "a connection from another worker is lost" in caplog.text
    assert said in caplog.text


def test_connection_from_the_pool_before_claims_nothing(pair: Pair) -> None:
    """After an upgrade: its places and its sources' numbers are of another memory."""
    mine, theirs = socket.socketpair()
    text = json.dumps(MESSAGE | {"family": "another", "place": 5})
    socket.send_fds(pair.writing, [text.encode()], [theirs.fileno()])
    theirs.close()
    arrival = intake(pair).receive()
    assert arrival is not None
    assert arrival.parked is not None
    assert (arrival.parked.claim, arrival.place) == (0, -1)
    arrival.parked.request.close()
    mine.close()


def test_message_without_a_descriptor_is_said(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """Its receiver was out of descriptors: the kernel gives the text alone. Source: recvmsg(2) MSG_CTRUNC."""
    pair.writing.send(json.dumps(MESSAGE | {"place": 5}).encode())
    arrival = intake(pair).receive()
    assert arrival is not None
    assert (arrival.parked, arrival.place) == (None, 5)
    assert "out of descriptors" in caplog.text


def test_full_pair_leaves_the_connection_to_its_sender(pair: Pair, parked: Parked) -> None:
    """Hundreds fit; then it says no, and yes again once one is read."""
    count = 0
    while send(pair, parked, -1):
        count += 1
    assert count > 100
    assert parked.request.fileno() >= 0
    for _ in range(count):
        arrival = intake(pair).receive()
        assert arrival is not None
        assert arrival.parked is not None
        arrival.parked.request.close()
    assert send(pair, parked, -1)


class Sub(socket.socket):
    """What a get_request of the user's may give."""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"conversation": True}, True),
        ({"conversation": True, "is_movable": False}, False),
        ({"is_movable": False}, True),
        ({"may_block": True}, False),
        ({"is_plain": False, "conversation": True}, False),
        ({"kind": Sub}, False),
    ],
)
def test_moves_what_the_kernel_knows_all_of(parked: Parked, changes: dict[str, Any], expected: bool) -> None:
    """No TLS, no socket class of the user's, no handler with a state of its own."""
    parked.station.is_movable = changes.get("is_movable", True)
    parked.station.may_block = changes.get("may_block", False)
    if changes.get("conversation"):
        talk: Any = Talk(has_stock_finish=True)
        talk.is_plain = changes.get("is_plain", True)
        parked.conversation = talk
    if kind := changes.get("kind"):
        parked.request = kind(fileno=parked.request.detach())
    assert may_move(parked) == expected
    parked.request.close()


@pytest.mark.parametrize("has_stock_finish", [False, True])
def test_leaves_at_once_where_no_code_of_the_users_is_to_run(parked: Parked, has_stock_finish: bool) -> None:
    """The handler is finished then, and gone."""
    talk: Any = Talk(has_stock_finish=has_stock_finish)
    parked.conversation = talk
    assert may_leave(parked) == has_stock_finish == talk.is_over
    assert (parked.conversation is None) == has_stock_finish


def test_what_is_over_leaves_for_nowhere(parked: Parked) -> None:
    """It is for a lane here to finish."""
    parked.ending = Outcome.REFUSED_MAX_HEAD
    assert not may_leave(parked)
