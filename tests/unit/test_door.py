"""The door as lanes meet it, and its register: what all processes know of sources, in words."""

import socket
from typing import Any

import pytest

from poolserver.admission import Limits
from poolserver.door import Door, Register
from poolserver.networks import CACHED_HOSTS, source_of
from poolserver.rows import Row
from poolserver.scoreboard import Scoreboard
from poolserver.sources import _cold

NOW = 10**18


def test_worst_source_is_named_once_with_all_its_refusals() -> None:
    """Connections and datagrams together, and the entries of workers that raced for the first one."""
    register = Register.create()
    sources = [source_of((f"192.0.2.{number}", 1), 32, 64) for number in range(4)]
    for number, source in enumerate(sources):
        for _ in range(number + 1):
            register.connections.refuse(source, NOW)
    for _ in range(5):
        register.datagrams.refuse(sources[0], NOW)
    first = register.connections._find(sources[3])
    twin = first ^ 1  # another way of its bucket
    table = register.connections
    for field, place in ((table._words, first), (table._high, _cold(first)), (table._low, _cold(first))):
        field[place ^ 1] = field[place]
    table._refused[_cold(twin)] = 1
    assert register.worst(Limits(), 3)[:2] == [("192.0.2.0", 6), ("192.0.2.3", 5)]


def rows(count: int) -> tuple[Register, list[Row]]:
    board = Scoreboard.create()
    register = Register.create()
    register.claims.use(count, 1)
    return register, board.rows(board.allot(count))


def asks(door: Door, row: Row, address: Any) -> bool:
    """Whether one who comes from there is let in. Who is refused finds the connection closed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        is_in = door.lets_in(row, ours, address)
        assert (ours.fileno() >= 0) is is_in
    return is_in


@pytest.mark.parametrize("lanes", [1, 8])
def test_source_gets_its_places_back_with_and_without_a_lock(lanes: int) -> None:
    """Up to its limit, and again once one is given back; a lane that is alone in its process takes no lock."""
    register, lane_rows = rows(8)
    door = Door(Limits.parse(per_source=2, rate_per_source="1000000/s", ban_after=1000), register, lanes)
    comers = [asks(door, row, ("192.0.2.1", 1)) for row in lane_rows[:4]]
    assert comers == [True, True, False, False]
    assert asks(door, lane_rows[4], ("192.0.2.2", 1))
    door.closed(0)
    assert asks(door, lane_rows[5], ("::ffff:192.0.2.1", 1))  # the same one
    assert not register.claims.lock.locked()


@pytest.mark.parametrize(
    "address", [None, "", (), "192.0.2.1", b"\0name", ["192.0.2.9"], (None, 1), ("nobody", 1), ([], 1)]
)
def test_who_cannot_be_told_counts_as_one_source(address: object) -> None:
    """Whatever a ``get_request`` of the user's gave."""
    register, lane_rows = rows(4)
    door = Door(Limits.parse(per_source=1), register, 1)
    assert asks(door, lane_rows[0], ("unknown", 1))
    assert not asks(door, lane_rows[1], address)
    assert not asks(door, lane_rows[1], address)


def test_reload_forgets_what_networks_said() -> None:
    """A host that was denied is not for ever, and neither is one that was not."""
    register, lane_rows = rows(1)
    door = Door(Limits.parse(deny=["192.0.2.1"]), register, 1)
    assert not asks(door, lane_rows[0], ("192.0.2.1", 1))
    assert asks(door, lane_rows[0], ("192.0.2.2", 1))
    door.change(Limits.parse(deny=["192.0.2.2"]))
    assert asks(door, lane_rows[0], ("192.0.2.1", 1))
    assert not asks(door, lane_rows[0], ("192.0.2.2", 1))


def test_flood_of_hosts_takes_no_more_memory_than_so_many() -> None:
    """More hosts than are remembered are judged as ever."""
    register, (row,) = rows(1)
    door = Door(Limits.parse(per_source=1), register, 1)
    for number in range(CACHED_HOSTS + 10):
        assert door.lets_in(row, None, (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1))
        door.closed(0)
    assert len(door._known) <= CACHED_HOSTS
