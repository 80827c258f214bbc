"""The attendant: what it does with the parked while lanes are busy, under stress, on the way out. Time is passed in."""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from park_world import LANES, Ends, Site, Talk, World

from poolserver.attendant import (
    BRISK,
    CLOSE_LOOK,
    DRAIN_PATIENCE,
    FARTHEST_LOOK,
    FULL_LOOKS,
    HELD_AFTER,
    QUIET_LOOKS,
    SAMPLED,
    SATURATED_LOOK,
    STEP_BACK,
    STILL_LOOKS,
    Attendant,
)
from poolserver.handover import Pairs
from poolserver.parked import Parked
from poolserver.rows import BETWEEN, EXCESS, HELD_NS, SINCE, Outcome
from poolserver.shortage import Attention
from poolserver.station import Terms


@dataclass
class Lane:
    """As much as the attendant sees of one."""

    request: object = None
    turns: int = 0
    thread_id: int = 0


@dataclass
class Crew:
    """A site of the world's with an attendant and lanes."""

    site: Site
    lanes: list[Lane]
    attendant: Attendant
    now: float = 0.0
    listening: list[str] = field(default_factory=list)
    has_processor: bool = True
    has_waited: float = 0.0
    asked: int = 0

    def waited(self) -> float:
        self.asked += 1
        return self.has_waited

    def look(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.attendant.look(self.now)

    def be_busy(self, count: int) -> None:
        for number, lane in enumerate(self.lanes):
            lane.request = "a connection" if number < count else None

    def park(self, request: socket.socket, *, has_stock_finish: bool | None = None) -> Parked:
        """One that is new, or a conversation between two requests."""
        talk: Any = Talk(has_stock_finish=has_stock_finish) if has_stock_finish is not None else None
        is_between = talk is not None
        parked = Parked(self.site.here, request, ("192.0.2.1", 0), self.now, 0, talk, is_between=is_between)
        assert self.site.park.add(parked, self.site.first_lane) == []
        return parked

    def passed_on(self) -> list[Parked]:
        return self.site.park.take_back()


@pytest.fixture
def world() -> Iterator[World]:
    made = World(max_parked=1000)
    yield made
    made.close()


MakeCrew = Callable[..., Crew]


@pytest.fixture
def make_crew(world: World) -> MakeCrew:
    def make(lanes: int = 2, ordinal: int = 0, pairs: Pairs | None = world.pairs, **terms: Any) -> Crew:
        here = [Lane() for _ in range(lanes)]
        site = world.sites[ordinal]
        terms = {"head_timeout": 0, "keep_alive": 0} | terms
        listening: list[str] = []
        attention = Attention(lambda: listening.append("turns"), lambda: listening.append("back"))
        given = Terms(**terms), site.claims, pairs, attention, lambda: crew.has_processor, lambda _: crew.waited()
        attendant = Attendant(site.park, here, *given)  # type: ignore[arg-type]
        crew = Crew(site, here, attendant, time.monotonic(), listening)
        return crew

    return make


def idle_lanes(world: World, ordinal: int, count: int) -> None:
    """Say on the scoreboard that lanes of that worker have time."""
    for row in world.board.quarters(world.berths[ordinal]).lanes[:count]:
        row.idle()


def relievable(crew: Crew, world: World, ends: Ends, *, has_processor: bool = True) -> Crew:
    """Every lane of it is busy, what is parked there is ready, and another worker has a lane."""
    crew.has_processor = has_processor
    crew.park(ends[1])
    ends[0].sendall(b"line\n")
    crew.be_busy(2)
    idle_lanes(world, 1, 1)
    crew.attendant.is_close = True
    return crew


def say_busy(world: World, busy: int, idle: int) -> None:
    """Say on the scoreboard that so many lanes of all workers are busy, and so many have time."""
    rows = [row for berth in world.berths for row in world.board.quarters(berth).lanes]
    for number, row in enumerate(rows[: busy + idle]):
        row.resume("192.0.2.1:4711") if number < busy else row.idle()


def arrivals(world: World, *, is_ready: bool) -> list[Parked]:
    """What another worker would be given."""
    [intake] = [each for each in world.sites[2].wakeups._posts.values() if each.is_ready is is_ready]
    found = []
    while (arrival := intake.receive()) is not None:
        assert arrival.parked is not None
        found.append(arrival.parked)
        arrival.parked.request.close()
    return found


# -- how often it looks


def test_looks_closely_only_while_every_lane_is_busy(make_crew: MakeCrew, ends: Ends) -> None:
    """A lane that takes a connection asks for it; three looks that find a free lane end it."""
    crew = make_crew()
    crew.park(ends[1])
    crew.be_busy(1)
    crew.attendant.is_close = True
    for _ in range(QUIET_LOOKS):
        assert crew.attendant.deadline() <= crew.now + FARTHEST_LOOK
        crew.look(CLOSE_LOOK)
    assert not crew.attendant.is_close
    assert crew.attendant.deadline() > crew.now + CLOSE_LOOK


def test_goes_on_looking_closely_while_all_are_busy(make_crew: MakeCrew, ends: Ends) -> None:
    """However long."""
    crew = make_crew()
    crew.park(ends[1])
    crew.be_busy(2)
    crew.attendant.is_close = True
    for _ in range(100):
        crew.look(CLOSE_LOOK)
    assert crew.attendant.is_close


def test_does_not_look_closely_for_nobody(make_crew: MakeCrew) -> None:
    """All lanes are busy for long, and nothing is parked: there is nothing to do, and no processor to burn."""
    crew = make_crew()
    crew.be_busy(2)
    crew.attendant.is_close = True
    for _ in range(QUIET_LOOKS):
        crew.look(CLOSE_LOOK)
    assert not crew.attendant.is_close
    assert crew.attendant.deadline() == float("inf")


# -- to workers that have time


def test_ready_connection_goes_to_a_worker_that_has_time(world: World, make_crew: MakeCrew, ends: Ends) -> None:
    """While every lane here is busy."""
    crew = relievable(make_crew(), world, ends)
    for _ in range(FULL_LOOKS):
        crew.look()
    assert len(arrivals(world, is_ready=True)) == 1
    assert len(crew.site.park) == 0


def test_without_a_processor_only_what_held_lanes_keep_waiting_goes(
    world: World, make_crew: MakeCrew, ends: Ends
) -> None:
    """While lanes get on they have it sooner than a worker that no processor is left for."""
    crew = relievable(make_crew(), world, ends, has_processor=False)
    for _ in range(10):
        crew.lanes[0].turns += 1
        crew.look(FARTHEST_LOOK)
    assert arrivals(world, is_ready=True) == []
    for _ in range(STILL_LOOKS):
        crew.look(CLOSE_LOOK)
    assert len(arrivals(world, is_ready=True)) == 1


def test_nothing_goes_where_nobody_has_time(world: World, make_crew: MakeCrew, ends: Ends) -> None:
    """It is in the epoll for the first lane here that has."""
    crew = make_crew()
    parked = crew.park(ends[1])
    ends[0].sendall(b"line\n")
    crew.be_busy(2)
    crew.attendant.is_close = True
    for _ in range(FULL_LOOKS):
        crew.look()
    assert arrivals(world, is_ready=True) == []
    assert crew.site.park.take(crew.site.wakeups.wait(0)) is parked


def test_silent_connection_stays(world: World, make_crew: MakeCrew, ends: Ends) -> None:
    """There is nothing to do for it."""
    crew = make_crew()
    crew.park(ends[1])
    crew.be_busy(2)
    idle_lanes(world, 1, 2)
    crew.attendant.is_close = True
    for _ in range(FULL_LOOKS):
        crew.look()
    assert len(crew.site.park) == 1


@pytest.mark.parametrize(("has_stock_finish", "moves"), [(True, True), (False, False)])
def test_conversation_goes_if_no_finish_of_the_users_is_to_run(
    world: World, make_crew: MakeCrew, ends: Ends, has_stock_finish: bool, moves: bool
) -> None:
    """Else it is for a lane here."""
    crew = make_crew()
    parked = crew.park(ends[1], has_stock_finish=has_stock_finish)
    ends[0].sendall(b"line\n")
    crew.be_busy(2)
    idle_lanes(world, 1, 1)
    crew.attendant.is_close = True
    for _ in range(FULL_LOOKS):
        crew.look()
    assert len(arrivals(world, is_ready=True)) == moves
    assert crew.passed_on() == ([] if moves else [parked])


# -- stress


def test_waits_shrink_while_four_lanes_of_the_pool_in_five_are_busy_for_a_second(
    world: World, make_crew: MakeCrew
) -> None:
    """To a fifth, whoever's the lanes are; and are as before when it has passed."""
    crew = make_crew(first_byte_timeout=10)
    pairs = [socket.socketpair() for _ in range(2)]
    crew.park(pairs[0][1])
    say_busy(world, 4, 1)
    crew.look(0.5)
    crew.look(2)
    assert crew.attendant.is_stressed
    crew.look(0.6)
    assert len(crew.site.park) == 0
    say_busy(world, 3, 2)
    crew.look(0.1)
    assert not crew.attendant.is_stressed
    crew.park(pairs[1][1])
    crew.look(9)
    assert len(crew.site.park) == 1
    for pair in pairs:
        for each in pair:
            each.close()


def test_busy_worker_beside_idle_ones_is_no_stress(world: World, make_crew: MakeCrew) -> None:
    """The pool has lanes for whom it has parked."""
    crew = make_crew()
    crew.be_busy(2)
    say_busy(world, 2, 4)
    crew.look(0.5)
    crew.look(2)
    assert not crew.attendant.is_stressed


def test_busy_lanes_of_a_worker_that_leaves_are_no_stress(world: World, make_crew: MakeCrew) -> None:
    """Those of its successors count."""
    crew = make_crew()
    say_busy(world, 4, 1)
    for ordinal in (0, 1):
        make_crew(ordinal=ordinal).attendant.drain(crew.now, hand_over=True)
    crew = make_crew(ordinal=2)
    crew.look(0.5)
    crew.look(2)
    assert not crew.attendant.is_stressed


def test_busy_lanes_now_and_then_are_no_stress(world: World, make_crew: MakeCrew) -> None:
    """A second without a break."""
    crew = make_crew()
    for _ in range(10):
        say_busy(world, 5, 0)
        crew.look(0.9)
        say_busy(world, 3, 2)
        crew.look(0.1)
        assert not crew.attendant.is_stressed


def test_looks_seldom_while_lanes_get_on(make_crew: MakeCrew, ends: Ends) -> None:
    """With one connection after another; at once often again when one is stuck."""
    crew = make_crew()
    crew.park(ends[1])
    crew.be_busy(2)
    crew.attendant.is_close = True
    for _ in range(20):
        crew.lanes[0].turns += BRISK
        crew.look(FARTHEST_LOOK)
    assert crew.attendant.deadline() == crew.now + FARTHEST_LOOK
    crew.look(FARTHEST_LOOK)
    assert crew.attendant.deadline() == crew.now + CLOSE_LOOK


def test_lanes_that_wait_for_a_processor_are_not_held(world: World, make_crew: MakeCrew, ends: Ends) -> None:
    """They get on as soon as they have one; what is ready stays with them, and looks become rare."""
    crew = relievable(make_crew(), world, ends, has_processor=False)
    for _ in range(10):
        crew.has_waited += FARTHEST_LOOK / 2
        crew.look(FARTHEST_LOOK)
    assert arrivals(world, is_ready=True) == []
    for _ in range(STILL_LOOKS):
        crew.look(FARTHEST_LOOK)
    assert len(arrivals(world, is_ready=True)) == 1


def test_lanes_that_want_a_processor_for_long_are_held(world: World, make_crew: MakeCrew, ends: Ends) -> None:
    """By long work, with which others that have time compete; what is ready need not wait for its end."""
    crew = relievable(make_crew(), world, ends, has_processor=False)
    for _ in range(int(HELD_AFTER / FARTHEST_LOOK) + STILL_LOOKS + 1):
        crew.has_waited += FARTHEST_LOOK
        crew.look(FARTHEST_LOOK)
    assert len(arrivals(world, is_ready=True)) == 1


def test_look_asks_few_lanes_what_they_wait_for_and_those_that_are_held_no_more(
    make_crew: MakeCrew, ends: Ends
) -> None:
    """Each answer takes the interpreter from them."""
    crew = make_crew(lanes=4 * SAMPLED)
    crew.park(ends[1])
    crew.be_busy(4 * SAMPLED)
    crew.attendant.is_close = True
    crew.look(CLOSE_LOOK)
    assert 0 < crew.asked <= SAMPLED
    crew.look(HELD_AFTER)
    crew.asked = 0
    for _ in range(10):
        crew.look(CLOSE_LOOK)
    assert crew.asked == 0
    assert crew.attendant.is_close


@pytest.mark.parametrize(("has_processor", "farthest"), [(True, FARTHEST_LOOK), (False, SATURATED_LOOK)])
def test_looks_become_rare_while_lanes_get_on_fast(
    make_crew: MakeCrew, ends: Ends, has_processor: bool, farthest: float
) -> None:
    """Most where no processor is left: nobody else would serve what is ready any sooner. And close again, once one is
    slow."""
    crew = make_crew()
    crew.has_processor = has_processor
    crew.park(ends[1])
    crew.be_busy(2)
    crew.attendant.is_close = True
    for _ in range(30):
        crew.lanes[0].turns += BRISK
        crew.look(CLOSE_LOOK)
    assert crew.attendant.deadline() == crew.now + farthest
    crew.look(farthest)
    assert crew.attendant.deadline() == crew.now + CLOSE_LOOK


def test_looks_stay_close_while_lanes_get_on_slowly(make_crew: MakeCrew, ends: Ends) -> None:
    """Any of them may be the one that is held next, and a look costs little beside what they do."""
    crew = make_crew()
    crew.park(ends[1])
    crew.be_busy(2)
    crew.attendant.is_close = True
    for _ in range(20):
        crew.lanes[0].turns += 1
        crew.look(CLOSE_LOOK)
    assert crew.attendant.deadline() == crew.now + CLOSE_LOOK


# -- on the way out


def test_leaving_worker_hands_over_what_waits(world: World, make_crew: MakeCrew) -> None:
    """New ones at once; a conversation once a lane has finished its handler."""
    crew = make_crew()
    pairs = [socket.socketpair() for _ in range(2)]
    crew.park(pairs[0][1])
    talking = crew.park(pairs[1][1], has_stock_finish=False)
    crew.attendant.drain(crew.now, hand_over=True)
    assert len(arrivals(world, is_ready=False)) == 1
    assert crew.passed_on() == [talking]
    assert talking.is_leaving
    assert talking.ending is None
    for pair in pairs:
        for each in pair:
            each.close()


def test_leaving_worker_ends_what_is_parked_later(make_crew: MakeCrew, ends: Ends) -> None:
    """At once, where it is handed over to nobody: a lane had it when the others left."""
    crew = make_crew()
    crew.attendant.drain(crew.now, hand_over=False)
    parked = crew.park(ends[1], has_stock_finish=True)
    crew.attendant.is_close = True
    crew.look(CLOSE_LOOK)
    assert crew.passed_on() == [parked]


def test_leaving_worker_hands_over_what_is_parked_later(world: World, make_crew: MakeCrew, ends: Ends) -> None:
    """By a lane that was in the middle of an exchange, or of an accept."""
    crew = make_crew()
    crew.attendant.drain(crew.now, hand_over=True)
    crew.park(ends[1])
    crew.attendant.is_close = True
    for _ in range(FULL_LOOKS):
        crew.look()
    assert len(arrivals(world, is_ready=False)) == 1
    assert not crew.attendant.is_close


def test_leaving_worker_keeps_what_it_would_hand_over_once_the_service_stops(world: World, make_crew: MakeCrew) -> None:
    """Nobody is left to go on: it ends here, and is counted."""
    crew = make_crew()
    pairs = [socket.socketpair() for _ in range(600)]
    for _, request in pairs:
        crew.park(request)
    crew.attendant.drain(crew.now, hand_over=True)
    sent = 600 - len(crew.attendant.unsent)
    crew.attendant.drain(crew.now, hand_over=False)
    assert not crew.attendant.unsent
    assert len(arrivals(world, is_ready=False)) == sent
    assert world.board.all_totals()["cut"] == 600 - sent
    for pair in pairs:
        for each in pair:
            each.close()


def test_what_finds_no_room_on_the_way_is_sent_as_soon_as_there_is(world: World, make_crew: MakeCrew) -> None:
    """Hundreds fit at once: the rest stays ours until then."""
    crew = make_crew()
    pairs = [socket.socketpair() for _ in range(600)]
    for _, request in pairs:
        crew.park(request)
    crew.attendant.drain(crew.now, hand_over=True)
    assert 0 < len(crew.attendant.unsent) < 600
    assert crew.attendant.deadline() <= crew.now + CLOSE_LOOK
    count = len(arrivals(world, is_ready=False))
    while crew.attendant.unsent:
        crew.look(CLOSE_LOOK)
        count += len(arrivals(world, is_ready=False))
    assert count == 600
    for pair in pairs:
        for each in pair:
            each.close()


@pytest.mark.parametrize("pairs", [True, False])
def test_service_that_stops_ends_conversations_and_waits_a_little_for_the_silent(
    world: World, make_crew: MakeCrew, pairs: bool
) -> None:
    """Nobody goes on with them. One that has asked already is answered first."""
    crew = make_crew(pairs=world.pairs if pairs else None)
    sockets = [socket.socketpair() for _ in range(3)]
    talking, asking = (crew.park(each[1], has_stock_finish=True) for each in sockets[:2])
    crew.park(sockets[2][1])
    sockets[1][0].sendall(b"line\n")
    crew.attendant.drain(crew.now, hand_over=False)
    assert crew.passed_on() == [talking]
    assert talking.ending is Outcome.SERVED
    assert crew.site.park.take(crew.site.wakeups.wait_parked(0)) is asking
    assert len(crew.site.park) == 1
    crew.look(DRAIN_PATIENCE + 0.2)
    assert len(crew.site.park) == 0
    for pair in sockets:
        for each in pair:
            each.close()


@pytest.mark.parametrize("drains_before", [False, True])
def test_cut_leaves_nobody(world: World, make_crew: MakeCrew, drains_before: bool) -> None:
    """New ones are closed; conversations are for the lanes to finish, and closed when there is no lane any more."""
    crew = make_crew(head_timeout=0)
    sockets = [socket.socketpair() for _ in range(3)]
    crew.park(sockets[0][1])
    if drains_before:
        crew.attendant.drain(crew.now, hand_over=False)
    talking = crew.park(sockets[1][1], has_stock_finish=True)
    crew.attendant.cut()
    [passed] = crew.passed_on()
    assert (passed, passed.ending) == (talking, Outcome.CUT)
    assert sockets[0][0].recv(1) == b""
    crew.site.park.pass_to_lane(talking)
    late = crew.park(sockets[2][1], has_stock_finish=True)
    crew.attendant.close()
    assert sockets[1][0].recv(1) == sockets[2][0].recv(1) == b""
    assert late.ending is Outcome.CUT
    assert world.board.all_totals()["cut"] == 3
    for pair in sockets:
        for each in pair:
            each.close()


def test_stress_is_no_matter_for_one_that_leaves(make_crew: MakeCrew, ends: Ends) -> None:
    """Its limits are those of the drain."""
    crew = make_crew(lanes=1, first_byte_timeout=100)
    crew.park(ends[1])
    crew.be_busy(1)
    crew.look(0.1)
    crew.attendant.drain(crew.now, hand_over=False)
    crew.look(0.5)
    assert len(crew.site.park) == 1
    crew.look(0.6)
    assert len(crew.site.park) == 0


# -- newcomers that others shall have


def test_worker_that_steps_back_turns_to_newcomers_again_soon(make_crew: MakeCrew) -> None:
    """Though nothing else makes it look."""
    crew = make_crew()
    crew.site.park.has_too_many = True
    crew.attendant.step_back(crew.now)
    assert (crew.listening, crew.site.park.has_too_many) == (["turns"], False)
    assert crew.attendant.deadline() == crew.now + STEP_BACK
    crew.look(STEP_BACK / 2)
    assert crew.listening == ["turns"]
    crew.look(STEP_BACK / 2)
    assert crew.listening == ["turns", "back"]
    assert crew.attendant.deadline() == float("inf")


def test_worker_that_leaves_turns_to_no_newcomers(make_crew: MakeCrew) -> None:
    crew = make_crew()
    crew.attendant.step_back(crew.now)
    crew.attendant.drain(crew.now, hand_over=False)
    crew.look(STEP_BACK)
    crew.attendant.step_back(crew.now)
    crew.look(STEP_BACK)
    assert crew.listening == ["turns"]


def test_lanes_turn_from_newcomers_while_there_is_any_reason() -> None:
    listening: list[str] = []
    attention = Attention(lambda: listening.append("turns"), lambda: listening.append("back"))
    attention.turn_back("never")
    attention.turn_from("one")
    attention.turn_from("one")
    attention.turn_from("other")
    attention.turn_back("one")
    attention.turn_back("one")
    assert listening == ["turns"]
    attention.turn_back("other")
    assert listening == ["turns", "back"]


@pytest.mark.parametrize(
    ("own", "others", "able", "expected"),
    [
        (EXCESS, 0, True, False),
        (4 * EXCESS, 0, True, True),
        (4 * EXCESS, 0, False, False),
        (4 * EXCESS, 4 * EXCESS, True, False),
        (100, 100, True, False),
        (130, 50, True, True),
    ],
)
def test_worker_with_far_more_than_its_share_has_too_many_while_others_are_not_held(
    world: World, own: int, others: int, able: bool, expected: bool
) -> None:
    """Of three workers. Those that have had their connections for long may have them for long."""
    quarters = [world.board.quarters(berth) for berth in world.berths]
    for each, between in zip(quarters, (own, others, others), strict=True):
        each.crew.parked(BETWEEN, between)
        for row in each.lanes:
            row.begin("192.0.2.1:1")
            row._words[SINCE] -= 0 if able else 2 * HELD_NS
    assert quarters[0].crew.has_too_many(len(quarters) * LANES, LANES) is expected


def test_park_looks_whether_it_has_too_many_as_it_fills(world: World, make_crew: MakeCrew) -> None:
    crew = make_crew()
    for ordinal in range(3):
        idle_lanes(world, ordinal, 2)
    pairs = [socket.socketpair() for _ in range(3 * EXCESS + 1)]
    for _, theirs in pairs:
        crew.park(theirs)
    assert crew.site.park.has_too_many
    for mine, theirs in pairs:
        mine.close()
        theirs.close()
