"""Parks over real sockets and a real epoll, several that pass connections to each other, with the clock in hand.

A ``Site`` stands for a worker: its lanes do what ``lane.py``'s do, one step at a time.
"""

import ast
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from poolserver.claims import Claims
from poolserver.handover import Intake, Pair, Pairs, intakes, may_leave, may_move, send
from poolserver.networks import Source, source_of
from poolserver.park import Park
from poolserver.parked import READY, UNFIT, Limits, Parked, has_usual, look
from poolserver.rows import Outcome
from poolserver.scoreboard import Scoreboard
from poolserver.station import Station, Terms
from poolserver.transit import TRANSIT_PATIENCE
from poolserver.waits import Wait
from poolserver.wakeups import Wakeups

LANES = 2
SITES = 3
ALONE = {2}
"""Sites with one lane, which is told of several at once."""
MAX_PARKED = 6
MAX_HEAD = 64
LIMITS = Limits(10.0, Outcome.TIMEOUT_FIRST_BYTE, 20.0, 30.0)
URL = "tcp://127.0.0.1:1"

Ends = tuple[socket.socket, socket.socket]
"""A client's and the server's, of one connection."""


def station(wait: Wait = Wait.LINE) -> Station:
    """Where nobody listens."""
    server: Any = None
    return Station(
        server,
        -1,
        True,
        True,
        False,
        0.0,
        None,
        url=URL,
        wait=wait,
        between=Wait.LINE,
        is_movable=True,
        usual_end=b"\n",
    )


class Talk:
    """As much of a conversation as a park knows."""

    is_plain = True
    is_over = False

    def __init__(self, *, has_stock_finish: bool, connection: socket.socket | None = None) -> None:
        self.has_stock_finish = has_stock_finish
        self.connection = connection

    def end(self) -> None:
        """Once."""
        assert not self.is_over
        self.is_over = True


@dataclass(eq=False)
class Client:
    """One connection, from both ends. ``is_left``: a thread of its handler has closed it.
    ``has_moved``: it waited elsewhere before."""

    who: int
    address: tuple[str, int]
    socket: socket.socket
    is_over: bool = False
    is_left: bool = False
    has_moved: bool = False


@dataclass(eq=False)
class Flight:
    """A message on its way; without a client its receiver died with it. ``is_counted``: a word stands for it."""

    client: Client | None
    sender: int
    place: int
    who: int
    is_counted: bool


class Site:
    """One worker. Its lanes hold connections, or None."""

    def __init__(self, world: "World", ordinal: int) -> None:
        self.world = world
        self.ordinal = ordinal
        self.claims = Claims(world.claims._memory)  # the same words, a lock of its own
        self.here = station()
        lanes = 1 if ordinal in ALONE else LANES
        posts: dict[int, Any] = {**intakes(world.pairs, {0: self.here})}
        self.wakeups: Wakeups[Any] = Wakeups(posts, lanes=lanes)
        self.wakeups.open()
        quarters = world.board.quarters(world.berths[ordinal])
        self.park = Park(self.wakeups, quarters, self.claims, Terms(max_parked=world.max_parked, max_head=MAX_HEAD))
        self.first_lane = world.berths[ordinal].first
        self.lanes: list[Parked | None] = [None] * lanes
        self.unsent: list[Parked] = []

    @property
    def idle(self) -> int | None:
        """A lane that has time."""
        return next((lane for lane, held in enumerate(self.lanes) if held is None), None)

    def accept(self, client: Client, request: socket.socket) -> None:
        """As ``Lane.take`` and ``_has_spoken``."""
        lane = self.idle
        assert lane is not None
        row, source = self.first_lane + lane, self.world.source(client.who)
        self.claims.claim(row, source)
        parked = Parked(self.here, request, client.address, time.monotonic() + self.world.offset, source.number)
        verdict = look(request, self.here.wait, MAX_HEAD)
        if verdict in READY:
            self.lanes[lane] = parked
        elif verdict in UNFIT:
            self.end(parked)
            self.claims.give_back(row)
        else:
            self.add(parked, lane)

    def add(self, parked: Parked, lane: int) -> None:
        """Park what a lane has. Who goes for it: the oldest that has sent nothing, the oldest in the middle of a
        request, or between two, or itself; and only if the park is full."""
        park = self.park
        between = sorted(park.between, key=lambda each: each.since)
        candidates = [*filter(park.is_free, (*park.silent, *park.speaking, *between)), parked]
        for victim in self.park.add(parked, self.first_lane + lane):
            if victim.ending is Outcome.REFUSED_MAX_PARKED:
                assert victim is candidates[0]
                assert len(self.park) >= self.park.quota
            else:
                assert victim.request.fileno() < 0
            self.end(victim)

    def wake(self) -> bool:
        """One lane waits for no time, as in ``serve_forever``, and takes what it is given. False: it was woken for
        nothing."""
        lane = self.idle
        post = self.wakeups.wait(0) if lane is not None else None
        if post is None or lane is None:
            return False
        if isinstance(post, Intake):
            self.take_in(post, lane)
            return True
        if isinstance(post, int) and (regular := self.borrow(post)) is not None:
            self.lanes[lane] = regular
            return True
        parked = self.park.take(post) if isinstance(post, int) else cast(Parked, post)
        if parked is not None and parked.ending is not None:
            self.end(parked)
        elif parked is not None:
            self.park.give(parked, self.first_lane + lane)
            self.lanes[lane] = parked
        return True

    def borrow(self, told: int) -> Parked | None:
        """As ``Exchanges._exchange`` begins."""
        regular = self.park.regulars.pop(told, None)
        if regular is not None and not has_usual(regular.request, regular.station.usual_end, MAX_HEAD):
            self.park.demote(regular)
            return None
        return regular

    def put_back(self, parked: Parked) -> bool:
        """As it ends."""
        parked.since = time.monotonic() + self.world.offset
        return parked.request.fileno() == parked.fd and self.park.put_back(parked)

    def take_in(self, intake: Intake, lane: int) -> None:
        """As ``Lane._take_in``."""
        arrival = intake.receive()
        if arrival is None:
            return
        if intake.has_more():
            self.wakeups.look_again(intake)
        assert arrival.parked is not None
        self.park.arrived(arrival.place, is_lost=False)
        self.world.landed(arrival.parked.address)
        if intake.is_ready:
            self.park.give(arrival.parked, self.first_lane + lane)
            self.lanes[lane] = arrival.parked
        else:
            self.world.client_at(arrival.parked.address).has_moved = True
            self.add(arrival.parked, lane)

    def exchange(self, lane: int, *, goes_on: bool, has_stock_finish: bool) -> None:
        """A handler reads what is there, and ends or is suspended. At the end of its input it ends."""
        parked = self.lanes[lane]
        assert parked is not None
        self.lanes[lane] = None
        try:
            octets = parked.request.recv(4096, socket.MSG_DONTWAIT)
        except OSError:
            octets = b""
        if parked.is_regular:
            if octets and goes_on and self.put_back(parked):
                return
            self.park.release(parked, self.first_lane + lane)
        if not (octets and goes_on):
            self.close(parked)
            self.claims.give_back(self.first_lane + lane)
            return
        conversation: Any = Talk(has_stock_finish=has_stock_finish, connection=parked.request)
        parked.wait_again(conversation, self.claims.claimed(self.first_lane + lane), has_news=False)
        parked.since += self.world.offset
        self.add(parked, lane)

    def relieve(self, most: int) -> None:
        """As ``Attendant._relieve``."""
        for parked in self.park.overdue(most):
            if not (may_leave(parked) and self.send(parked, self.world.pairs.ready)):
                self.park.pass_to_lane(parked)

    def move_out(self) -> None:
        """As a worker does that leaves; lanes finish what handlers there are."""
        for parked in self.park.take_out(may_move):
            if parked.conversation is not None:
                parked.conversation.end()
                parked.conversation = None
            self.unsent.append(parked)
        while self.unsent and self.send(self.unsent[0], self.world.pairs.waiting):
            self.unsent.pop(0)

    def send(self, parked: Parked, pair: Pair) -> bool:
        """Note what is on its way."""
        places = []

        def sending(each: Parked, place: int) -> bool:
            places.append(place)
            return send(pair, each, place)

        is_sent = self.park.send(parked, sending)
        if is_sent:
            client = self.world.client_at(parked.address)
            place = places[0]
            self.world.flights.append(Flight(client, self.ordinal, place, client.who, place >= 0))
        return is_sent

    def cut_due(self) -> None:
        """As ``Attendant.look``."""
        for parked in self.park.due(time.monotonic() + self.world.offset, LIMITS):
            self.end(parked)

    def end(self, parked: Parked) -> None:
        """Over, and not by a handler."""
        if parked.conversation is not None:
            parked.conversation.end()
        self.park.drop(parked)
        self.world.end(parked.address)

    def close(self, parked: Parked) -> None:
        """Over, by its handler."""
        parked.request.close()
        self.world.end(parked.address)

    def held(self) -> Iterator[Parked]:
        """All that is here, each as often as it is found."""
        yield from (each for each in self.lanes if each is not None)
        yield from self.waiting()

    def waiting(self) -> Iterator[Parked]:
        """All that is in no lane."""
        for stage in (self.park.silent, self.park.speaking, self.park.between):
            yield from filter(self.park.is_free, stage)
        yield from (each for each in self.wakeups._again if isinstance(each, Parked))
        yield from self.unsent

    def die(self) -> None:
        """As by SIGKILL: the kernel closes what it had, the master gives back its claims."""
        for parked in self.held():
            self.close(parked)
        self.wakeups.close()
        self.world.claims.clear(self.first_lane, LANES, self.ordinal)
        self.world.board.release(self.world.berths[self.ordinal])
        self.world.berths[self.ordinal] = self.world.board.allot(LANES)


@dataclass
class World:
    """Sites, what they share, and their clients. ``offset``: how far their clock is before the real one."""

    board: Scoreboard = field(default_factory=Scoreboard.create)
    claims: Claims = field(default_factory=Claims.create)
    pairs: Pairs = field(default_factory=Pairs.open)
    clients: list[Client] = field(default_factory=list)
    flights: list[Flight] = field(default_factory=list)
    offset: float = 0.0
    max_parked: int = MAX_PARKED

    def __post_init__(self) -> None:
        self.berths = [self.board.allot(LANES) for _ in range(SITES)]
        self.claims.use(SITES * LANES, SITES)
        self.sites = [Site(self, ordinal) for ordinal in range(SITES)]

    @staticmethod
    def source(who: int) -> Source:
        """Whom a client counts for."""
        return source_of((f"192.0.2.{who}", 1), 32, 64)

    def client_at(self, address: tuple[str, int]) -> Client:
        """Each has an address of its own."""
        return self.clients[address[1]]

    def end(self, address: tuple[str, int]) -> None:
        """It is over, if it is a client of ours."""
        if address[1] < len(self.clients):
            self.client_at(address).is_over = True

    def connect(self, site: Site, who: int, first: bytes) -> None:
        """A client that may have spoken when it is accepted."""
        theirs, mine = socket.socketpair()  # in this order: the first has the lowest number that is free
        client = Client(who, (f"192.0.2.{who}", len(self.clients)), mine)
        self.clients.append(client)
        mine.sendall(first)
        site.accept(client, theirs)

    def landed(self, address: tuple[str, int]) -> None:
        """A flight is over, and with it what its word stands for, even where that is another's by now."""
        client = self.client_at(address)
        [flight] = [each for each in self.flights if each.client is client]
        self.flights.remove(flight)
        for other in self.flights:
            if other.place == flight.place:
                other.is_counted = False

    def lose_in_flight(self) -> None:
        """A worker receives one and dies with it in its hands."""
        for pair in (self.pairs.ready, self.pairs.waiting):
            try:
                text, fds, _, _ = socket.recv_fds(pair.reading, 4096, 1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            socket.close(fds[0])
            client = self.client_at(ast.literal_eval(json.loads(text)["peer"]))
            client.is_over = True
            [flight] = [each for each in self.flights if each.client is client]
            flight.client = None
            return

    def bury(self, site: Site) -> Site:
        """A site dies, and another takes its place."""
        site.die()
        for flight in self.flights:
            if flight.sender == site.ordinal:
                flight.is_counted = False
        self.flights = [each for each in self.flights if each.client is not None or each.sender != site.ordinal]
        self.sites[site.ordinal] = Site(self, site.ordinal)
        return self.sites[site.ordinal]

    def forget_flights(self, site: Site) -> None:
        """So much time passes that what was sent counts no longer."""
        site.park.settle(time.monotonic() + TRANSIT_PATIENCE + 1)
        for flight in self.flights:
            if flight.sender == site.ordinal:
                flight.is_counted = False

    def close(self) -> None:
        """Everything."""
        for site in self.sites:
            site.die()
        for client in self.clients:
            client.socket.close()
        for pair in (self.pairs.ready, self.pairs.waiting):
            while True:
                try:
                    _, fds, _, _ = socket.recv_fds(pair.reading, 4096, 1, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                socket.close(fds[0])
        self.pairs.close()
