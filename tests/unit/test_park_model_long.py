"""Parks of three workers against a list of their clients: nobody is ever in two places or in none.

Arrivals, bytes, ends, resets, time, full parks, hand-overs and deaths at random, over real sockets and epolls.
"""

import itertools
import socket
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from park_world import LANES, MAX_HEAD, MAX_PARKED, SITES, Client, World

from poolserver.claims import _USED
from poolserver.parked import READY, Parked, look
from poolserver.waits import Wait

pytestmark = pytest.mark.timeout(300)  # of which a failure uses much, to find a short example

SOURCES = 3
sites = st.integers(0, SITES - 1)
who = st.integers(0, SOURCES - 1)
octets = st.sampled_from([b"", b"x", b"line\n", b"x" * (MAX_HEAD + 9), b"two\nlines\n"])


class Parks(RuleBasedStateMachine):
    """Each rule is one step of one worker, or of one client."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    # What clients do

    @rule(site=sites, who=who, first=octets)
    def comes(self, site: int, who: int, first: bytes) -> None:
        if self.world.sites[site].idle is not None:
            self.world.connect(self.world.sites[site], who, first)

    def living(self, number: int) -> Client | None:
        living = [client for client in self.world.clients if not client.is_over]
        return living[number % len(living)] if living else None

    @rule(number=st.integers(0, 99), text=octets)
    def speaks(self, number: int, text: bytes) -> None:
        if client := self.living(number):
            try:
                client.socket.send(text, socket.MSG_DONTWAIT)
            except OSError:
                pass  # it has ended its side

    @rule(number=st.integers(0, 99))
    def ends_its_side(self, number: int) -> None:
        if client := self.living(number):
            try:
                client.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # again

    @rule(number=st.integers(0, 99))
    def resets(self, number: int) -> None:
        """By leaving with something unread. Source: Linux, unix_release_sock."""
        if client := self.living(number):
            for parked in self.found(client):
                if parked.request.fileno() >= 0:
                    try:
                        parked.request.send(b"!")
                    except OSError:
                        pass  # gone before
            client.socket.close()

    @rule(number=st.integers(0, 99))
    def is_closed_by_a_thread_of_its_handler(self, number: int) -> None:
        """Its number is free for the next that comes."""
        client = self.living(number)
        for parked in self.found(client) if client else []:
            if parked.is_between:
                parked.request.close()
                client.is_left = True

    @rule(site=sites, who=who, count=st.integers(1, 3), has_stock_finish=st.booleans())
    def regulars_come(self, site: int, who: int, count: int, has_stock_finish: bool) -> None:
        """They ask, are answered, and stay."""
        here = self.world.sites[site]
        for _ in range(count):
            if (lane := here.idle) is not None:
                self.world.connect(here, who, b"line\n")
                here.exchange(lane, goes_on=True, has_stock_finish=has_stock_finish)

    @rule()
    def all_speak(self) -> None:
        for number in range(len(self.world.clients)):
            self.speaks(number, b"line\n")

    @rule(site=sites, who=who, place=st.integers(0, 9))
    def number_is_reused(self, site: int, who: int, place: int) -> None:
        """By a newcomer that is parked where another's handler has just closed its connection."""
        here = self.world.sites[site]
        if here.park.between and here.idle is not None:
            parked = list(here.park.between)[place % len(here.park.between)]
            parked.request.close()
            self.world.client_at(parked.address).is_left = True
            self.world.connect(here, who, b"")

    # What workers do

    @rule(site=sites)
    def wakes(self, site: int) -> None:
        self.world.sites[site].wake()

    @rule(site=sites, lane=st.integers(0, LANES - 1), goes_on=st.booleans(), has_stock_finish=st.booleans())
    def talks(self, site: int, lane: int, goes_on: bool, has_stock_finish: bool) -> None:
        lanes = self.world.sites[site].lanes
        if lane < len(lanes) and lanes[lane] is not None:
            self.world.sites[site].exchange(lane, goes_on=goes_on, has_stock_finish=has_stock_finish)

    @rule(site=sites, most=st.integers(1, 3))
    def relieves(self, site: int, most: int) -> None:
        self.world.sites[site].relieve(most)

    @rule(site=sites)
    def moves_out(self, site: int) -> None:
        self.world.sites[site].move_out()

    @rule(site=sites, seconds=st.sampled_from([1, 9, 25]))
    def waits(self, site: int, seconds: int) -> None:
        self.world.offset += seconds
        self.world.sites[site].cut_due()

    @rule(site=sites)
    def parts(self, site: int) -> None:
        """Its lanes are to leave, and come back: only the parked wake them."""
        here = self.world.sites[site]
        if here.wakeups._parking is here.wakeups._epoll:
            here.park.part()
            here.wakeups.wait = here.wakeups.wait_parked  # type: ignore[method-assign]

    @rule(site=sites)
    def is_out_of_descriptors(self, site: int) -> None:
        """Who has no handler and said nothing whole gives up the oldest."""
        park = self.world.sites[site].park
        unproven = [parked for parked in [*park.silent, *park.speaking] if parked.conversation is None]
        assert park.make_room() == bool(unproven)
        if unproven:
            self.world.end(unproven[0].address)

    @rule(site=sites)
    def dies(self, site: int) -> None:
        self.world.bury(self.world.sites[site])

    @precondition(lambda self: self.world.flights)
    @rule()
    def dies_with_one_in_its_hands(self) -> None:
        self.world.lose_in_flight()

    @rule(site=sites)
    def forgets_what_it_sent(self, site: int) -> None:
        self.world.forget_flights(self.world.sites[site])

    @rule(site=sites)
    def looks_at_all_that_is_told(self, site: int) -> None:
        """After it no connection that is ready waits unseen: no edge was lost, in nobody's hands."""
        here = self.world.sites[site]
        is_woken = True
        while is_woken:
            for lane, held in enumerate(here.lanes):
                if held is not None:
                    here.exchange(lane, goes_on=True, has_stock_finish=True)
            is_woken = here.wake()
        for parked in [*here.park.silent, *here.park.speaking, *here.park.between]:
            if parked.request.fileno() >= 0:
                assert look(parked.request, Wait.LINE, MAX_HEAD) not in READY
        assert not here.wakeups.has_passed_on

    # What holds

    def found(self, client: Client) -> list[Parked]:
        return [
            parked
            for site in self.world.sites
            for parked in site.held()
            if self.world.client_at(parked.address) is client
        ]

    @invariant()
    def nobody_is_in_two_places_or_in_none(self) -> None:
        places = Counter(parked.address for site in self.world.sites for parked in site.held())
        places.update(flight.client.address for flight in self.world.flights if flight.client is not None)
        assert places == Counter(client.address for client in self.world.clients if not client.is_over)

    @invariant()
    def what_is_over_is_closed_and_nothing_else(self) -> None:
        for client in self.world.clients:
            if client.socket.fileno() >= 0 and not client.is_left:
                assert is_closed(client.socket) == client.is_over

    @invariant()
    def claims_agree(self) -> None:
        for who in range(SOURCES):
            held = [
                parked
                for site in self.world.sites
                for parked in site.held()
                if self.world.client_at(parked.address).who == who
            ]
            flights = [flight for flight in self.world.flights if flight.who == who and flight.is_counted]
            assert self.world.claims.active(self.world.source(who)) == len(held) + len(flights)

    @invariant()
    def what_is_parked_is_known_by_its_descriptor(self) -> None:
        for site in self.world.sites:
            park = site.park
            staged = [*park.silent, *park.speaking, *park.between]
            waiting = set(filter(park.is_free, staged))
            assert len(staged) == len(set(staged)) == len(park)
            known = {**park.by_fd, **park.regulars}
            assert len(known) == len(park.by_fd) + len(park.regulars)
            assert sorted(known) == sorted(parked.fd for parked in known.values())
            assert {parked for parked in waiting if parked.is_regular} == {*park.regulars.values()}
            assert {*known.values()} <= waiting
            for parked in waiting - {*known.values()}:
                assert parked.request.fileno() < 0  # closed by its handler, and its number reused
            told = self.world.board.crowds.read(site.ordinal)
            assert told == Counter(parked.address[0] for parked in staged)
            words = park.row._words
            assert (words[0], words[1]) == (
                sum(not parked.is_between for parked in staged),
                sum(parked.is_between for parked in staged),
            )

    @invariant()
    def stages_are_in_order_and_bounded(self) -> None:
        parks = [site.park for site in self.world.sites]
        for park in parks:
            assert not any(parked.is_between or parked.has_begun for parked in park.silent)
            assert all(parked.has_begun for parked in park.speaking)
            assert all(parked.is_between and not parked.has_begun for parked in park.between)
            came = [parked for parked in park.silent if not self.world.client_at(parked.address).has_moved]
            since = [parked.since for parked in came]
            assert all(first <= second + 1e-3 for first, second in itertools.pairwise(since))
            assert len(park) <= MAX_PARKED

    def teardown(self) -> None:
        world = self.world
        for site in world.sites:
            for lane, held in enumerate(site.lanes):
                if held is not None:
                    site.exchange(lane, goes_on=False, has_stock_finish=True)
            for parked in [*site.park.take_out(), *site.park.take_back(), *site.unsent]:
                site.end(parked)
            site.unsent = []
            world.forget_flights(site)
        assert not world.claims.standing()
        assert not any(world.claims._words[_USED : _USED + SITES])
        world.close()


def is_closed(client: socket.socket) -> bool:
    """Whether the server's end is closed: an end of file, or a reset, after what is unread."""
    client.setblocking(False)
    try:
        while client.recv(100):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass  # reset
    return True


Parks.TestCase.settings = settings(max_examples=1500, stateful_step_count=60, deadline=None)
TestParks = Parks.TestCase
