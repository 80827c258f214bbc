"""Claims of connections that are parked or on their way: exact, given back by every death. Lanes: ``test_sources``."""

import contextlib
import copy
import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from test_sources import random_source, source

from poolserver.claims import _BUCKETS, _USED, TRACKED, TRANSITS, Claims
from poolserver.networks import Source
from poolserver.scoreboard import MAX_WORKERS

WORKERS = 3
LANES = 4
"""Of each worker."""


@functools.cache
def neighbours(count: int) -> list[Source]:
    """Sources of one bucket."""
    first = source(0)
    found = (Source.of_key(number.to_bytes(16, "big")) for number in range(2**24, 2**25))
    near = (each for each in found if (each.number - first.number) % _BUCKETS == 0)
    return [first, *itertools.islice(near, count - 1)]


def make() -> Claims:
    claims = Claims.create()
    claims.use(WORKERS * LANES, WORKERS)
    return claims


def test_parked_connections_count_with_those_in_lanes() -> None:
    """Of all workers together, and each until it is taken back."""
    claims, one = make(), source(1)
    claims.claim(0, one)
    assert [claims.park(worker, one.number) for worker in (0, 0, 2)] == [True] * 3
    assert claims.park(1, source(2).number)
    assert (claims.active(one), claims.active(source(2)), claims.active(source(3))) == (4, 1, 0)
    assert claims.standing() == {one.number: 4, source(2).number: 1}
    claims.unpark(0, one.number)
    assert claims.active(one) == 3


def test_connection_on_its_way_counts_until_it_is_received() -> None:
    """The sender's word stands for it; what it sees as arrived it forgets."""
    claims, one = make(), source(1)
    places = [claims.send(1, one.number) for _ in range(2)]
    assert (claims.active(one), claims.settle(1, places)) == (2, places)
    claims.received(places[0])
    assert claims.active(one) == 1
    assert claims.settle(1, places) == places[1:]
    assert claims.standing() == {one.number: 1}


def test_so_many_are_on_their_way_at_once_and_no_more() -> None:
    """Each worker has words of its own."""
    claims = make()
    assert len({claims.send(0, source(1).number) for _ in range(TRANSITS)}) == TRANSITS
    assert claims.send(0, source(1).number) == -1
    assert claims.send(1, source(1).number) == TRANSITS
    claims.received(7)
    assert claims.send(0, source(2).number) == 7


@pytest.mark.parametrize("place", [-1, -5, TRANSITS * MAX_WORKERS, 10**9])
def test_strange_place_means_nothing(place: int) -> None:
    """Whatever a message from another version may say."""
    claims = make()
    claims.claim(0, source(1))
    claims.park(0, source(1).number)
    claims.received(place)
    assert claims.active(source(1)) == 2


def test_full_bucket_lets_more_sources_go_uncounted() -> None:
    """Permissive, and those that are counted stay so."""
    claims, sources = make(), neighbours(10)
    parked = [claims.park(0, each.number) for each in sources]
    assert parked == [True] * 8 + [False] * 2
    assert [claims.active(each) for each in sources] == [1] * 8 + [0] * 2
    assert claims.park(0, sources[0].number)
    claims.unpark(0, sources[1].number)
    assert claims.park(0, sources[9].number)


def test_table_holds_thousands_of_sources() -> None:
    """As many as half its entries, of which hardly one finds no place."""
    rng, claims = random.Random(1), make()
    sources = [random_source(rng) for _ in range(TRACKED // 2)]
    counted = sum(claims.park(0, each.number) for each in sources)
    assert counted > 0.97 * len(sources)
    assert sum(claims.active(each) for each in sources) == counted


def test_clearing_gives_back_parked_and_sent_of_the_dead_alone() -> None:
    """The master's, for one worker."""
    claims, one = make(), source(1)
    for worker in range(WORKERS):
        claims.park(worker, one.number)
        claims.send(worker, one.number)
        claims.claim(worker * LANES, one)
    claims.clear(LANES, LANES, 1)
    assert claims.active(one) == 6
    assert claims.standing() == {one.number: 6}


class KilledError(Exception):
    """SIGKILL, between two stores."""


class Mortal:
    """The words of a worker that is killed when it has stored so many."""

    def __init__(self, words: memoryview, stores: int) -> None:
        self.words, self.stores = words, stores

    def __getitem__(self, place: int) -> int:
        return self.words[place]

    def __setitem__(self, place: int, value: int) -> None:
        if not self.stores:
            raise KilledError
        self.stores -= 1
        self.words[place] = value


@pytest.mark.parametrize("stores", range(4))
@pytest.mark.parametrize("act", [Claims.park, Claims.unpark, Claims.send])
def test_worker_killed_between_two_stores_leaves_nothing(act: Callable[..., object], stores: int) -> None:
    """However far it came: the next worker in its place begins with nothing."""
    claims, one = make(), source(1)
    if act is Claims.unpark:
        claims.park(0, one.number)
    dying = copy.copy(claims)
    dying._words = Mortal(claims._words, stores)  # type: ignore[assignment]
    with contextlib.suppress(KilledError):
        act(dying, 0, one.number)
    claims.clear(0, LANES, 0)
    claims.park(0, source(2).number)
    assert claims.standing() == {source(2).number: 1}
    assert claims.active(one) == 0


@dataclass(eq=False)
class Connection:
    """``worker`` has it, or has sent it; ``lane`` or ``place`` say where, neither: parked."""

    who: int
    worker: int
    lane: int | None = None
    place: int | None = None
    is_counted: bool = True


class Pool(RuleBasedStateMachine):
    """Workers that park, send, receive and die at random, against a list of their connections.

    Documented: a source without an entry goes uncounted; so does a connection whose sender died while it was on its
    way, and one whose word was given free by such a latecomer.
    """

    connections = Bundle("connections")

    def __init__(self) -> None:
        super().__init__()
        self.claims = make()
        self.sources = [*neighbours(10), source(1), source(2)]
        self.alive: list[Connection] = []
        self.sent: dict[int, list[int]] = {worker: [] for worker in range(WORKERS)}

    def free_lane(self, worker: int) -> int | None:
        taken = {each.lane for each in self.alive}
        lanes = range(worker * LANES, (worker + 1) * LANES)
        return next((lane for lane in lanes if lane not in taken), None)

    def number(self, connection: Connection) -> int:
        return self.sources[connection.who].number

    @rule(target=connections, worker=st.integers(0, WORKERS - 1), who=st.integers(0, 11))
    def comes(self, worker: int, who: int) -> object:
        lane = self.free_lane(worker)
        if lane is None:
            return multiple()
        self.claims.claim(lane, self.sources[who])
        self.alive.append(Connection(who, worker, lane=lane))
        return self.alive[-1]

    @rule(connection=connections)
    def is_parked(self, connection: Connection) -> None:
        if connection in self.alive and connection.lane is not None:
            self.claims.give_back(connection.lane)
            connection.lane = None
            counted = [each for each in self.alive if self.is_in_table(each) and each.worker == connection.worker]
            others = {each.who for each in counted if each.who < 10}
            has_room = connection.who >= 10 or connection.who in others or len(others) < 8
            connection.is_counted = self.claims.park(connection.worker, self.number(connection))
            assert connection.is_counted == has_room

    @staticmethod
    def is_in_table(connection: Connection) -> bool:
        return connection.lane is None and connection.place is None and connection.is_counted

    @rule(connection=connections)
    def is_taken_up(self, connection: Connection) -> None:
        is_here = connection in self.alive and connection.lane is None and connection.place is None
        lane = self.free_lane(connection.worker)
        if is_here and lane is not None:
            if connection.is_counted:
                self.claims.unpark(connection.worker, self.number(connection))
            self.claims.hold(lane, self.number(connection))
            connection.lane, connection.is_counted = lane, True

    @rule(connection=connections)
    def is_sent(self, connection: Connection) -> None:
        """One that is not counted is sent all the same, at no place."""
        if connection not in self.alive or not self.is_in_table(connection):
            return
        self.claims.unpark(connection.worker, self.number(connection))
        connection.place = self.claims.send(connection.worker, self.number(connection))
        assert connection.place >= 0  # of 32 words: there are fewer connections
        self.sent[connection.worker].append(connection.place)

    @rule(connection=connections, worker=st.integers(0, WORKERS - 1))
    def is_received(self, connection: Connection, worker: int) -> None:
        lane = self.free_lane(worker)
        if connection not in self.alive or connection.place is None or lane is None:
            return
        self.claims.received(connection.place)
        for other in self.alive:
            if other is not connection and other.place == connection.place:
                other.is_counted = False
        self.claims.hold(lane, self.number(connection))
        connection.worker, connection.lane, connection.place, connection.is_counted = worker, lane, None, True

    @rule(worker=st.integers(0, WORKERS - 1))
    def settles(self, worker: int) -> None:
        self.sent[worker] = self.claims.settle(worker, self.sent[worker])

    @rule(connection=consumes(connections))
    def ends(self, connection: Connection) -> None:
        if connection in self.alive and connection.place is None:
            if connection.lane is not None:
                self.claims.give_back(connection.lane)
            elif connection.is_counted:
                self.claims.unpark(connection.worker, self.number(connection))
            self.alive.remove(connection)

    @rule(worker=st.integers(0, WORKERS - 1))
    def dies(self, worker: int) -> None:
        """What it had is gone; what it has sent is on its way still."""
        self.claims.clear(worker * LANES, LANES, worker)
        self.sent[worker] = []
        self.alive = [each for each in self.alive if each.worker != worker or each.place is not None]
        for connection in self.alive:
            if connection.worker == worker:
                connection.is_counted = False

    @invariant()
    def counts_agree(self) -> None:
        for who, each in enumerate(self.sources):
            counted = [connection for connection in self.alive if connection.who == who and connection.is_counted]
            assert self.claims.active(each) == len(counted)

    def teardown(self) -> None:
        """When all have ended nothing is left, not even of the words that say where to look."""
        for connection in list(self.alive):
            if connection.place is not None:
                self.claims.received(connection.place)
                self.alive.remove(connection)
            else:
                self.ends(connection)
        for worker in range(WORKERS):
            self.settles(worker)
        assert not self.claims.standing()
        assert not any(self.claims._words[_USED : _USED + WORKERS])


Pool.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestPool = Pool.TestCase
