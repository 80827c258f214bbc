"""What a lane does with a conversation that it borrowed, as others see it meanwhile."""

import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from park_world import Ends, Site, Talk, World

from poolserver import deadlines
from poolserver.handling import Handling
from poolserver.parked import Parked
from poolserver.station import Terms

TIMEOUT = 5.0


class Exchanges(Talk):
    """A conversation that goes on; it sees whether somebody has cut it."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(has_stock_finish=True, connection=connection)
        self.lane: Any = None
        self.was_cut: list[bool] = []

    def goes_on_as_before(self) -> bool:
        self.go_on()
        return True

    def go_on(self, **_: bool) -> None:
        self.was_cut.append(self.lane.is_ended_from_outside)

    def has_input(self) -> bool:
        return False


class Crew:
    """As much as a lane asks of it."""

    is_leaving = hands_over = False

    def __init__(self, site: Site) -> None:
        self.park, self.wakeups = site.park, site.wakeups
        self.terms = Terms(handler_timeout=TIMEOUT)
        self.door = SimpleNamespace(is_open=True)
        self.lane: Any = None

    def watch_closely(self, **_: bool) -> None:
        """The watcher runs just now."""
        deadlines.enforce({self.lane: threading.current_thread()}, time.monotonic())


@pytest.fixture
def crew(world: World) -> Crew:
    site = world.sites[0]
    here: Any = site.here
    here.server = SimpleNamespace(shutdown_request=socket.socket.close)
    made: Any = Crew(site)
    made.lane = Handling(0, made, world.board.quarters(world.berths[0]).lanes[0])
    return made


def parked(world: World, crew: Crew, request: socket.socket) -> Parked:
    """A conversation between two requests."""
    site, talk = world.sites[0], Exchanges(request)
    talk.lane = crew.lane
    made = Parked(site.here, request, ("192.0.2.1", 1), time.monotonic(), 0, talk, is_between=True)  # type: ignore[arg-type]
    assert crew.park.add(made, site.first_lane) == []
    return made


def borrowed(world: World, crew: Crew, ends: Ends) -> Parked:
    """The same, which its lane has just been given."""
    made = parked(world, crew, ends[1])
    ends[0].sendall(b"line\n")
    told = world.sites[0].wakeups.wait(0)
    assert isinstance(told, int)
    assert crew.park.borrow(told) is made
    ends[1].recv(100)
    return made


@pytest.mark.parametrize("is_borrowed", [True, False])
def test_connection_is_not_cut_for_the_deadline_of_the_one_before(
    world: World, crew: Crew, ends: Ends, is_borrowed: bool
) -> None:
    """Which its lane had long ago: the watcher may look as soon as it has the next."""
    crew.lane.deadline = time.monotonic() - 1
    if is_borrowed:
        conversation = borrowed(world, crew, ends)
        crew.lane._exchange(conversation)
    else:
        client, other = socket.socketpair()
        parked(world, crew, other)  # who watches is woken where there are any
        conversation = Parked(world.sites[0].here, ends[1], ("192.0.2.1", 1), 0.0, 0, Exchanges(ends[1]))  # type: ignore[arg-type]
        conversation.conversation.lane = crew.lane  # type: ignore[union-attr]
        crew.lane._handle(world.sites[0].here, ends[1], conversation.address, conversation)
        client.close()
        other.close()
    talk: Any = conversation.conversation
    assert talk.was_cut == [False]
    assert crew.lane.deadline > time.monotonic()


def test_conversation_that_goes_another_way_is_no_regular_in_its_row(world: World, crew: Crew, ends: Ends) -> None:
    """It is its lane's alone: whoever reads the row must not take it for one of the parked."""
    conversation = borrowed(world, crew, ends)
    talk: Any = conversation.conversation
    seen = []

    def go_on() -> bool:
        seen.append(world.board.read(world.berths[0])[0].is_in_crowd)
        return False

    def has_input() -> bool:
        seen.append(world.board.read(world.berths[0])[0].is_in_crowd)
        return False

    talk.goes_on_as_before, talk.has_input = go_on, has_input
    crew.lane._exchange(conversation)
    assert seen == [True, False]
