"""What a lane does with a conversation that it took out of the park, as others see it meanwhile."""

import itertools
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from park_world import MAX_HEAD, Ends, Site, Talk, World

from poolserver import deadlines
from poolserver.exchanges import Exchanges
from poolserver.parked import Parked
from poolserver.rows import Outcome
from poolserver.station import Terms
from poolserver.wakeups import NOTHING

TIMEOUT = 5.0


class Asking(Talk):
    """A conversation that goes on; it sees whether somebody has cut it."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(has_stock_finish=True, connection=connection)
        self.lane: Any = None
        self.was_cut: list[bool] = []

    def goes_on_as_before(self) -> bool:
        self.connection.recv(100)
        self.go_on()
        return True

    def go_on(self, **_: bool) -> None:
        self.was_cut.append(self.lane.is_ended_from_outside)

    def has_input(self) -> bool:
        return False


class Crew:
    """As much as a lane asks of it."""

    is_leaving = False

    def __init__(self, site: Site) -> None:
        self.park, self.wakeups = site.park, site.wakeups
        self.terms = Terms(handler_timeout=TIMEOUT)
        self.door = SimpleNamespace(is_open=True)
        self.attendant = SimpleNamespace(is_close=False, hands_over=False)
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
    made.lane = Exchanges(0, made, world.board.quarters(world.berths[0]).lanes[0])
    return made


def parked(world: World, crew: Crew, request: socket.socket) -> Parked:
    """A conversation between two requests."""
    site, talk = world.sites[0], Asking(request)
    talk.lane = crew.lane
    made = Parked(site.here, request, ("192.0.2.1", 1), time.monotonic(), 0, talk, is_between=True)  # type: ignore[arg-type]
    assert crew.park.add(made, site.first_lane) == []
    return made


def borrowed(world: World, crew: Crew, ends: Ends) -> Parked:
    """The same, whose next line is there, in its lane's hands."""
    made = parked(world, crew, ends[1])
    ends[0].sendall(b"line\n")
    told = world.sites[0].wakeups.wait(0)
    assert isinstance(told, int)
    assert crew.park.regulars.pop(told) is made
    return made


@pytest.mark.parametrize("is_borrowed", [True, False])
def test_connection_is_not_cut_for_the_deadline_of_the_one_before(
    world: World, crew: Crew, ends: Ends, is_borrowed: bool
) -> None:
    """Which its lane had long ago: the watcher may look as soon as it has the next."""
    crew.lane.deadline = time.monotonic() - 1
    if is_borrowed:
        conversation = borrowed(world, crew, ends)
        assert crew.lane._exchange(conversation)
    else:
        client, other = socket.socketpair()
        parked(world, crew, other)  # who watches is woken where there are any
        conversation = Parked(world.sites[0].here, ends[1], ("192.0.2.1", 1), 0.0, 0, Asking(ends[1]))  # type: ignore[arg-type]
        conversation.conversation.lane = crew.lane  # type: ignore[union-attr]
        crew.lane._row.resume("192.0.2.1:1")
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
    assert crew.lane._exchange(conversation)
    assert seen == [True, False]


def test_conversation_is_put_back_and_told_of_again(world: World, crew: Crew, ends: Ends) -> None:
    """Its lane is idle then, since it was."""
    conversation = borrowed(world, crew, ends)
    before = time.monotonic()
    assert crew.lane._exchange(conversation)
    assert crew.park.regulars == {conversation.fd: conversation}
    assert before <= conversation.since <= time.monotonic()
    assert (crew.lane.request, crew.lane.turns) == (None, 1)
    assert world.board.read(world.berths[0])[0].peer == ""
    ends[0].sendall(b"line\n")
    assert world.sites[0].wakeups.wait(0) == conversation.fd


def test_conversation_that_was_cut_meanwhile_is_not_put_back(world: World, crew: Crew, ends: Ends) -> None:
    """It ends as whoever cut it says."""
    conversation = borrowed(world, crew, ends)
    talk: Any = conversation.conversation

    def go_on(**_: bool) -> None:
        crew.lane.end_as(ends[1], Outcome.TIMEOUT_HANDLER)

    talk.go_on, talk.has_input = go_on, lambda: False
    assert crew.lane._exchange(conversation)
    assert len(crew.park) == 0
    assert ends[1].fileno() < 0
    assert world.board.read(world.berths[0])[0].counters["timeout_handler"] == 1


@pytest.mark.parametrize(("octets", "is_over"), [(b"li", False), (b"x" * MAX_HEAD, True), (b"", True)])
def test_conversation_whose_request_is_not_whole_is_parked_as_any_other(
    world: World, crew: Crew, ends: Ends, octets: bytes, is_over: bool
) -> None:
    conversation = parked(world, crew, ends[1])
    ends[0].sendall(octets) if octets else ends[0].close()
    assert crew.park.regulars.pop(conversation.fd) is conversation
    assert not crew.lane._exchange(conversation)
    assert crew.lane.turns == 0
    assert crew.park.by_fd == {conversation.fd: conversation}
    assert crew.park.take(conversation.fd) is (conversation if is_over else None)


def test_conversation_that_only_seems_ready_waits_on(world: World, crew: Crew, ends: Ends) -> None:
    """Its handler has read already what was told of."""
    conversation = parked(world, crew, ends[1])
    assert crew.park.regulars.pop(conversation.fd) is conversation
    assert not crew.lane._exchange(conversation)
    assert crew.park.take(conversation.fd) is None
    ends[0].sendall(b"line\n")
    assert world.sites[0].wakeups.wait(0) == conversation.fd
    assert crew.park.take(conversation.fd) is conversation


@pytest.mark.parametrize("site", [0, 2])
def test_urgent_byte_does_not_wake_a_lane_again_and_again(world: World, ends: Ends, site: int) -> None:
    """The epoll tells of it, though no read gets it: for as long as it is there, if asked again each time."""
    wakeups, park = world.sites[site].wakeups, world.sites[site].park
    lane = Exchanges(0, Crew(world.sites[site]), world.board.quarters(world.berths[site]).lanes[0])  # type: ignore[arg-type]
    conversation = Parked(world.sites[site].here, ends[1], ("192.0.2.1", 1), 0.0, 0, Asking(ends[1]), is_between=True)  # type: ignore[arg-type]
    assert park.add(conversation, world.sites[site].first_lane) == []
    try:
        ends[0].send(b"!", socket.MSG_OOB)
    except OSError:
        pytest.skip("urgent bytes on Unix sockets: Linux 5.15, CONFIG_AF_UNIX_OOB")
    wakes = 0
    while (told := wakeups.ready(0)) != NOTHING and wakes < 10:
        wakes += 1
        if (regular := park.regulars.pop(told, None)) is None or not lane._exchange(regular):
            assert park.take(told) is None
    assert wakes < 10


@pytest.mark.parametrize("is_put_back", [True, False])
def test_what_the_watcher_was_told_of_a_conversation_in_the_only_lane_is_not_lost(
    world: World, ends: Ends, is_put_back: bool
) -> None:
    """The lane asks for nothing anew; what came while it was busy is told of all the same, once it looks."""
    site = world.sites[2]
    site.claims.claim(site.first_lane, world.source(1))
    talk: Any = Talk(has_stock_finish=True, connection=ends[1])
    regular = Parked(site.here, ends[1], ("192.0.2.1", 1), time.monotonic(), 0, talk, is_between=True)
    assert site.park.add(regular, site.first_lane) == []
    ends[0].sendall(b"line\n")
    assert site.wake()
    assert site.lanes == [regular]
    ends[1].recv(100)
    ends[0].sendall(b"line\n")
    if is_put_back:
        assert site.put_back(regular)
        assert site.park.overdue(9) == [regular]
        return
    assert site.park.overdue(9) == []
    assert site.put_back(regular)
    assert site.wakeups.wait(0) == regular.fd


def test_watcher_takes_what_the_only_lane_was_told_of_and_has_not_come_to(world: World) -> None:
    """Its handler takes long; others have time."""
    site = world.sites[2]
    pairs = [socket.socketpair() for _ in range(3)]
    for mine, theirs in pairs:
        made = Parked(site.here, theirs, ("192.0.2.1", 1), time.monotonic())
        assert site.park.add(made, site.first_lane) == []
        mine.sendall(b"line\n")
    assert site.wake()
    assert [each.request for each in site.park.overdue(9)] == [theirs for _, theirs in pairs[1:]]
    assert site.wakeups.wait(0) is None
    for each in itertools.chain(*pairs):
        each.close()


def test_only_lane_shakes_off_what_it_is_told_of_for_ever(world: World, ends: Ends) -> None:
    """A thread of its handler has closed it, and another process has a copy, which it does not read."""
    site = world.sites[2]
    client, request = ends
    talk: Any = Talk(has_stock_finish=True, connection=request)
    assert (
        site.park.add(Parked(site.here, request, ("192.0.2.1", 1), time.monotonic(), 0, talk, is_between=True), 0) == []
    )
    other, theirs = socket.socketpair()
    talk = Talk(has_stock_finish=True, connection=theirs)
    stays = Parked(site.here, theirs, ("192.0.2.1", 2), time.monotonic(), 0, talk, is_between=True)
    assert site.park.add(stays, 0) == []
    copy, stranger = request.dup(), request.fileno()
    request.close()
    client.sendall(b"line\n")
    assert site.wake()
    assert [site.wakeups.wait(0) for _ in range(3)] == [stranger] * 3
    assert site.park.take(stranger) is None
    site.park.shake_off()
    assert site.wakeups.wait(0) is None
    other.sendall(b"line\n")
    assert site.park.take(site.wakeups.wait(0)) is stays
    for each in (copy, other, theirs):
        each.close()


def test_lane_that_shakes_off_listens_to_what_it_had_not_turned_from(world: World) -> None:
    site = world.sites[2]
    listening = {*site.wakeups._posts}
    turned = min(listening)
    site.wakeups.turn_from([turned])
    site.park.shake_off()
    for fd in listening - {turned}:
        with pytest.raises(FileExistsError):
            site.wakeups.listen_to([fd])
    site.wakeups.listen_to([turned])
