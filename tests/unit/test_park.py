"""One park, step by step: looks that never wait, edges that are never lost, limits, shares, and who is closed how."""

import dataclasses
import errno
import itertools
import math
import os
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
from park_world import LANES, LIMITS, MAX_HEAD, MAX_PARKED, Ends, Site, Talk, World, station

from poolserver.parked import READY, Limits, Parked, has_usual, look
from poolserver.rows import Outcome
from poolserver.station import Terms
from poolserver.transit import TRANSIT_PATIENCE
from poolserver.waits import Verdict, Wait


def add(site: Site, request: Any, **changes: Any) -> Parked:
    """Park a connection of the world's, in the name of its first lane."""
    parked = Parked(site.here, request, ("192.0.2.1", 0), time.monotonic(), **changes)
    assert site.park.add(parked, site.first_lane) == ([parked] if parked.ending is not None else [])
    return parked


def staged(site: Site) -> tuple[int, int, int]:
    return len(site.park.silent), len(site.park.speaking), len(site.park.between)


# -- looks


@pytest.mark.parametrize("timeout", [None, 0.0, 60.0])
def test_look_at_a_silent_connection_does_not_wait(ends: Ends, timeout: float | None) -> None:
    """A time-out of the socket's own would make recv wait for it, and tell of a reset then."""
    ends[1].settimeout(timeout)
    assert look(ends[1], Wait.DATA, MAX_HEAD) is Verdict.SILENT


@pytest.mark.parametrize(
    ("octets", "end", "expected"),
    [
        (b"one\ntwo\n", b"\n", True),
        (b"li", b"\n", False),
        (b"x", b"", True),
        (b"", b"", False),
        (b"l" * 99, b"\n", False),
    ],
)
def test_one_look_finds_what_is_usual(ends: Ends, octets: bytes, end: bytes, expected: bool) -> None:
    """It takes nothing, does not wait, and is not for sockets that would."""
    client, request = ends
    client.sendall(octets)
    assert has_usual(request, end, MAX_HEAD) is expected
    request.settimeout(10)
    assert not has_usual(request, end, MAX_HEAD)
    request.settimeout(None)
    assert octets == b"" or request.recv(100) == octets
    client.close()
    assert not has_usual(request, end, MAX_HEAD)
    request.close()
    assert not has_usual(request, end, MAX_HEAD)


def test_look_takes_nothing(ends: Ends) -> None:
    """What it saw is there for the handler."""
    ends[0].sendall(b"hello\n")
    assert [look(ends[1], wait, MAX_HEAD) for wait in (Wait.DATA, Wait.LINE, Wait.HTTP)] == [
        Verdict.COMPLETE,
        Verdict.COMPLETE,
        Verdict.COMPLETE,  # no request: http.server answers it by itself
    ]
    assert ends[1].recv(100) == b"hello\n"


def test_look_sees_an_end_after_what_is_unread(ends: Ends) -> None:
    """A part of a line and no more: all that will ever be there is there. Then the end."""
    ends[0].sendall(b"hel")
    assert look(ends[1], Wait.LINE, MAX_HEAD) is Verdict.PARTIAL
    ends[0].shutdown(socket.SHUT_WR)
    assert look(ends[1], Wait.LINE, MAX_HEAD) is Verdict.COMPLETE
    ends[1].recv(100)
    assert look(ends[1], Wait.LINE, MAX_HEAD) is Verdict.ENDED


def test_look_sees_a_reset_and_a_closed_socket(ends: Ends) -> None:
    """Neither is ever ready."""
    ends[1].sendall(b"unread")
    ends[0].close()
    assert look(ends[1], Wait.DATA, MAX_HEAD) is Verdict.RESET
    ends[1].close()
    assert look(ends[1], Wait.DATA, MAX_HEAD) is Verdict.RESET


@pytest.mark.parametrize("wait", [Wait.DATA, Wait.LINE, Wait.HTTP])
def test_look_at_tls_waits_for_any_byte(ends: Ends, wait: Wait) -> None:
    """What can be seen of it is encrypted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with context.wrap_socket(ends[1], server_side=True, do_handshake_on_connect=False) as request:
        assert look(request, wait, MAX_HEAD) is Verdict.SILENT
        ends[0].sendall(b"\x16")
        assert look(request, wait, MAX_HEAD) is Verdict.COMPLETE


# -- events


class Seen(Parked):
    """Does something while it is looked at, once."""

    on_look: Callable[[], object] | None = None

    def look(self, most: int) -> Verdict:
        verdict = super().look(most)
        if self.on_look is not None:
            act, self.on_look = self.on_look, None
            act()
        return verdict


def test_event_that_meets_a_connection_in_another_lanes_hands_is_not_lost(world: World, ends: Ends) -> None:
    """The rest of its line comes just after the look: another lane takes the edge, this one looks once more."""
    site, client = world.sites[0], ends[0]
    parked = Seen(site.here, ends[1], ("192.0.2.1", 0), time.monotonic())
    assert site.park.add(parked, 0) == []
    client.sendall(b"hel")
    told = site.wakeups.wait(0)

    def rest_comes() -> None:
        client.sendall(b"lo\n")
        assert site.park.take(site.wakeups.wait(0)) is None

    parked.on_look = rest_comes
    assert site.park.take(told) is parked
    assert staged(site) == (0, 0, 0)


def test_connection_in_a_lanes_hands_is_nobody_elses(world: World, ends: Ends) -> None:
    """Neither due, nor evicted, nor taken out."""
    site, client = world.sites[0], ends[0]
    parked = Seen(site.here, ends[1], ("192.0.2.1", 0), time.monotonic() - 1000)
    site.park.add(parked, 0)
    client.sendall(b"hel")
    others: list[object] = []

    def others_try() -> None:
        others.extend(site.park.due(time.monotonic(), LIMITS))
        others.extend(site.park.take_out())

    parked.on_look = others_try
    assert site.park.take(parked.fd) is None
    assert others == []
    assert staged(site) == (0, 1, 0)


def converse(site: Site, request: socket.socket) -> Parked:
    """Park a conversation between two requests."""
    return add(site, request, conversation=Talk(has_stock_finish=True), is_between=True)


def suspend(parked: Parked) -> None:
    """As a lane does after an exchange."""
    conversation: Any = Talk(has_stock_finish=True, connection=parked.request)
    parked.wait_again(conversation, 0, has_news=False)


def taken(site: Site) -> Parked | None:
    """What a lane is woken for now."""
    told = site.wakeups.wait(0)
    return site.park.take(told) if told is not None else None


def test_conversation_in_a_lane_wakes_nobody_and_is_told_of_whenever_it_is_parked(world: World, ends: Ends) -> None:
    """A body that comes bit by bit is its handler's; what is unread when it is parked again tells at once."""
    site, client = world.sites[0], ends[0]
    parked = converse(site, ends[1])
    for _ in range(3):
        assert site.wakeups.wait(0) is None
        client.sendall(b"line\n")
        assert taken(site) is parked
        client.sendall(b"and a body\n")
        assert site.wakeups.wait(0) is None
        ends[1].recv(100)
        suspend(parked)
        assert site.park.add(parked, site.first_lane) == []
    client.sendall(b"line\n")
    assert taken(site) is parked
    site.park.add(parked, site.first_lane)
    assert taken(site) is parked


def test_head_between_two_requests_that_trickles_is_told_of_bit_by_bit_and_never_spins(
    world: World, ends: Ends
) -> None:
    """A lane is woken once for each bit, and once more for the first."""
    site, client = world.sites[0], ends[0]
    parked = converse(site, ends[1])
    for bit in (b"l", b"i", b"n"):
        client.sendall(bit)
        assert taken(site) is None
        assert staged(site) == (0, 1, 0)
        taken(site)
        assert site.wakeups.wait(0) is None
    client.sendall(b"e\n")
    assert taken(site) is parked
    ends[1].recv(100)
    suspend(parked)
    site.park.add(parked, site.first_lane)
    client.sendall(b"line\n")
    assert taken(site) is parked


def test_conversation_that_a_lane_has_while_lanes_part_is_told_of_by_what_is_left(world: World, ends: Ends) -> None:
    """The epoll that knew it is waited on no more."""
    site = world.sites[0]
    parked = converse(site, ends[1])
    ends[0].sendall(b"line\n")
    assert taken(site) is parked
    site.park.part()
    site.park.add(parked, site.first_lane)
    assert site.park.take(site.wakeups.wait_parked(0)) is parked


# -- conversations that lanes borrow


@pytest.fixture
def regular(world: World, ends: Ends) -> Parked:
    """A conversation between two requests that counts for a source, and whose next line is there."""
    site = world.sites[0]
    source = world.source(1)
    site.claims.claim(site.first_lane, source)
    talk: Any = Talk(has_stock_finish=True)
    parked = Parked(site.here, ends[1], ("192.0.2.1", 1), time.monotonic() - 25, source.number, talk, is_between=True)
    assert site.park.add(parked, site.first_lane) == []
    ends[0].sendall(b"line\n")
    return parked


def borrowed(site: Site) -> Parked | None:
    """What a lane is woken for now."""
    told = site.wakeups.wait(0)
    assert isinstance(told, int)
    return site.borrow(told)


def test_borrowed_conversation_keeps_its_place_and_is_nobody_elses(world: World, ends: Ends, regular: Parked) -> None:
    """It is counted for its source once, and is not among those that wait."""
    site = world.sites[0]
    assert borrowed(site) is regular
    assert (len(site.park), site.park.has_waiting, staged(site)) == (1, False, (0, 0, 1))
    assert world.claims.active(world.source(1)) == 1
    later = time.monotonic() + 1000
    assert (site.park.due(later, LIMITS), site.park.take_out(), site.park.overdue(9)) == ([], [], [])
    assert site.park.oldest() == site.park.nearest(LIMITS) == float("inf")
    assert not site.park.make_room()
    assert site.borrow(regular.fd) is site.park.take(regular.fd) is None
    ends[1].recv(100)
    assert site.put_back(regular)
    assert (len(site.park), site.park.oldest()) == (1, regular.since)
    ends[0].sendall(b"line\n")
    assert borrowed(site) is regular


@pytest.mark.parametrize("octets", [b"", b"li", b"l" * MAX_HEAD])
def test_conversation_whose_request_is_not_whole_is_not_lent(world: World, ends: Ends, octets: bytes) -> None:
    """How far it is, or that it is over, the longer look says."""
    site = world.sites[0]
    parked = converse(site, ends[1])
    ends[0].sendall(octets) if octets else ends[0].close()
    told = site.wakeups.wait(0)
    assert site.borrow(told) is None
    assert site.park.take(told) is (None if octets == b"li" else parked)


def test_conversation_on_a_socket_with_a_time_out_is_not_lent(world: World, ends: Ends) -> None:
    """To look at it could wait."""
    ends[1].settimeout(10)
    parked = converse(world.sites[0], ends[1])
    ends[0].sendall(b"line\n")
    assert borrowed(world.sites[0]) is None
    assert world.sites[0].park.take(parked.fd) is parked


def test_released_conversation_is_the_lanes(world: World, regular: Parked) -> None:
    """Its claim is, too."""
    site = world.sites[0]
    assert borrowed(site) is regular
    site.park.release(regular, site.first_lane + 1)
    assert (len(site.park), staged(site)) == (0, (0, 0, 0))
    assert site.claims.claimed(site.first_lane + 1) == world.source(1).number
    assert world.claims.active(world.source(1)) == 1


def test_borrowed_conversation_goes_back_where_parted_lanes_look(world: World, regular: Parked) -> None:
    """The epoll that knew it is waited on no more."""
    site = world.sites[0]
    assert borrowed(site) is regular
    site.park.part()
    assert not site.put_back(regular)
    site.park.release(regular, site.first_lane)
    assert site.park.add(regular, site.first_lane) == []
    assert site.park.take(site.wakeups.wait_parked(0)) is regular


def test_part_of_a_request_that_a_lane_looks_at_while_others_part_is_told_of_once_whole(
    world: World, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where those look that are left: nothing else would find it before the stop's end."""
    site = world.sites[0]
    parked = converse(site, ends[1])
    ends[0].sendall(b"li")
    told = site.wakeups.wait(0)
    monkeypatch.setattr("park_world.has_usual", lambda *_: site.park.part())
    assert site.borrow(told) is site.park.take(told) is None
    ends[0].sendall(b"ne\n")
    told = site.wakeups.wait_parked(0)
    assert site.park.take(told) is parked


def test_borrowed_conversation_has_its_place_in_a_full_park(world: World, regular: Parked) -> None:
    """Whoever comes meanwhile goes for another."""
    site = world.sites[0]
    assert borrowed(site) is regular
    others = [socket.socketpair() for _ in range(MAX_PARKED)]
    for request, _ in others[1:]:
        add(site, request)
    newcomer = Parked(site.here, others[0][0], ("192.0.2.1", 1), time.monotonic())
    [victim] = site.park.add(newcomer, site.first_lane)
    assert victim.request is others[1][0]
    assert site.put_back(regular)
    assert len(site.park) == MAX_PARKED
    for each in itertools.chain(*others):
        each.close()


def test_borrowed_connection_that_its_handler_closes_takes_no_place_from_who_has_its_number(
    world: World, ends: Ends, regular: Parked
) -> None:
    site = world.sites[0]
    assert borrowed(site) is regular
    ends[1].close()
    client, request = socket.socketpair()
    lowest, _ = sorted((client, request), key=socket.socket.fileno)
    assert lowest.fileno() == regular.fd
    newcomer = add(site, lowest)
    assert not site.put_back(regular)
    site.park.release(regular, site.first_lane)
    assert site.park.by_fd == {lowest.fileno(): newcomer}
    client.sendall(b"line\n") if lowest is request else request.sendall(b"line\n")
    assert taken(site) is newcomer
    client.close()
    request.close()


def test_what_is_put_back_as_lanes_part_is_told_of_where_they_look(
    world: World, ends: Ends, regular: Parked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher has looked at it meanwhile, and leaves it to a lane: its next request is there."""
    site = world.sites[0]
    assert borrowed(site) is regular
    site.park.part()
    ends[1].recv(100)
    ends[0].sendall(b"line\n")
    tell_again = site.wakeups.tell_again

    def look(fd: int) -> None:
        assert site.park.due(time.monotonic(), dataclasses.replace(LIMITS, keep_alive=-math.inf)) == []
        tell_again(fd)

    monkeypatch.setattr(site.wakeups, "tell_again", look)
    assert site.put_back(regular)
    assert site.wakeups.wait_parked(0) == regular.fd
    assert site.park.take(regular.fd) is regular


def test_borrowed_connection_whose_number_is_another_regulars_goes_not_in_its_place(
    world: World, ends: Ends, regular: Parked
) -> None:
    """A thread of its handler closes it when its lane is just about to put it back."""
    site = world.sites[0]
    assert borrowed(site) is regular
    ends[1].close()
    client, request = socket.socketpair()
    lowest, _ = sorted((client, request), key=socket.socket.fileno)
    newcomer = converse(site, lowest)
    assert newcomer.fd == regular.fd
    assert not site.park.put_back(regular)
    site.park.release(regular, site.first_lane)
    assert site.park.regulars == {newcomer.fd: newcomer}
    client.sendall(b"line\n") if lowest is request else request.sendall(b"line\n")
    assert borrowed(site) is newcomer
    client.close()
    request.close()


@pytest.mark.parametrize("number", [0, 2])
def test_what_took_a_connection_from_its_handler_wakes_no_lane(world: World, ends: Ends, number: int) -> None:
    """Whatever is unread on it."""
    site = world.sites[number]
    parked = converse(site, ends[1])
    ends[0].sendall(b"line\n")
    assert borrowed(site) is parked
    fd = ends[1].detach()
    site.park.release(parked, site.first_lane)
    ends[0].sendall(b"more\n")
    assert site.wakeups.wait(0) is None
    os.close(fd)


def test_borrowed_connection_that_cannot_be_watched_stays_the_lanes(
    world: World, regular: Parked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's memory for watches is used up."""

    def fail(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "no")

    site = world.sites[0]
    assert borrowed(site) is regular
    monkeypatch.setattr(site.wakeups, "tell_again", fail)
    assert not site.put_back(regular)
    assert not site.park.has_waiting
    site.park.release(regular, site.first_lane)


def test_readers_see_a_borrowed_conversation_once(world: World, regular: Parked) -> None:
    """In its lane: neither among those that wait, nor in the crowd besides."""
    site, berth = world.sites[0], world.berths[0]
    row = world.board.quarters(berth).lanes[0]
    assert world.board.read_crew(berth).between == 1
    assert borrowed(site) is regular
    row.go_on(regular.peer)
    assert world.board.read_crew(berth).between == 0
    reading = world.board.read(berth)[0]
    assert (reading.peer, reading.is_in_crowd) == ("192.0.2.1:1", True)
    assert world.board.crowds.read(0) == {"192.0.2.1": 1}
    now = time.monotonic_ns()
    assert site.put_back(regular)
    row.pause(now)
    reading = world.board.read(berth)[0]
    assert (reading.peer, reading.is_in_crowd, round(reading.since - now / 1e9, 3)) == ("", False, 0)
    assert world.board.read_crew(berth).between == 1


def test_ended_conversation_is_forgotten_though_another_process_has_a_copy(world: World, ends: Ends) -> None:
    """Its number is another's then, who is told of."""
    site, client = world.sites[0], ends[0]
    request, copy = ends[1], ends[1].dup()
    parked = converse(site, request)
    client.sendall(b"line\n")
    assert taken(site) is parked
    site.park.drop(parked)
    theirs, mine = socket.socketpair()
    assert theirs.fileno() == parked.fd
    newcomer = converse(site, theirs)
    mine.sendall(b"line\n")
    assert taken(site) is newcomer
    for each in (copy, theirs, mine):
        each.close()


@pytest.mark.parametrize("told", [0, 999_999])
def test_event_of_a_connection_that_is_gone_means_nothing(world: World, told: int) -> None:
    """It was cut, or taken, since the epoll told."""
    assert world.sites[0].park.take(told) is None


# -- limits


def test_limits_cut_by_stage_and_count_as_what(world: World) -> None:
    """Silent, in the middle of its line, between two requests."""
    site = world.sites[0]
    pairs = [socket.socketpair() for _ in range(3)]
    pairs[1][0].sendall(b"hel")
    before = time.monotonic()
    for number, (_, request) in enumerate(pairs):
        add(site, request, conversation=Talk(has_stock_finish=True) if number == 2 else None, is_between=number == 2)
    while site.wake():
        pass
    assert staged(site) == (1, 1, 1)
    now = time.monotonic()
    assert before + 10 <= site.park.nearest(LIMITS) <= now + 10
    assert site.park.due(before + 9, LIMITS) == []
    cut = [(seconds, site.park.due(now + seconds, LIMITS)) for seconds in (10.5, 20.5, 30.5)]
    assert [[parked.ending for parked in due] for _, due in cut] == [
        [Outcome.TIMEOUT_FIRST_BYTE],
        [Outcome.TIMEOUT_HEAD],
        [Outcome.TIMEOUT_KEEP_ALIVE],
    ]
    assert site.park.nearest(LIMITS) == math.inf
    for mine, theirs in pairs:
        mine.close()
        theirs.close()


@pytest.mark.parametrize("is_between", [False, True])
def test_connection_that_waits_for_a_lane_is_not_cut(world: World, ends: Ends, is_between: bool) -> None:
    """It has sent all that was waited for, and no lane had time: that is not its client's silence."""
    site = world.sites[0]
    parked = add(site, ends[1], is_between=is_between)
    ends[0].sendall(b"line\n")
    assert site.park.due(time.monotonic() + 1000, LIMITS) == []
    assert site.park.take(site.wakeups.wait(0)) is parked


def test_connection_that_was_found_speaking_at_its_limit_has_the_limit_of_its_head(world: World, ends: Ends) -> None:
    """No lane had looked at it before."""
    site = world.sites[0]
    add(site, ends[1])
    ends[0].sendall(b"hel")
    assert site.park.due(time.monotonic() + 11, LIMITS) == []
    assert staged(site) == (0, 1, 0)
    assert [parked.ending for parked in site.park.due(time.monotonic() + 21, LIMITS)] == [Outcome.TIMEOUT_HEAD]


def test_head_between_two_requests_has_its_time_from_its_first_byte(world: World, ends: Ends) -> None:
    """However long the client was silent before."""
    site = world.sites[0]
    parked = Parked(site.here, ends[1], ("192.0.2.1", 0), time.monotonic() - 29, is_between=True)
    site.park.add(parked, 0)
    ends[0].sendall(b"hel")
    before = time.monotonic()
    site.wake()
    assert site.park.due(before + 19, LIMITS) == []
    assert site.park.due(time.monotonic() + 21, LIMITS) == [parked]


@pytest.mark.parametrize(
    ("terms", "shrink", "expected"),
    [
        ({}, 1.0, (30.0, Outcome.TIMEOUT_HEAD, 30.0, 75.0)),
        ({"first_byte_timeout": 10}, 1.0, (10.0, Outcome.TIMEOUT_FIRST_BYTE, 30.0, 75.0)),
        ({"first_byte_timeout": 40}, 1.0, (30.0, Outcome.TIMEOUT_HEAD, 30.0, 75.0)),
        ({"head_timeout": 0, "keep_alive": 0}, 1.0, (math.inf, Outcome.TIMEOUT_FIRST_BYTE, math.inf, math.inf)),
        ({"first_byte_timeout": 10}, 0.2, (2.0, Outcome.TIMEOUT_FIRST_BYTE, 6.0, 15.0)),
    ],
)
def test_limits_are_those_of_the_configuration(terms: dict, shrink: float, expected: tuple) -> None:
    """0 is off; under stress all shrink."""
    limits = Limits.of(Terms(**terms), shrink)
    assert (limits.silent, limits.silent_ending, limits.head, limits.keep_alive) == pytest.approx(expected)


# -- ends that others make


def test_connection_that_its_handler_has_closed_is_not_parked(world: World, ends: Ends) -> None:
    """And said nothing of an end: it is over, and its place is given back."""
    site = world.sites[0]
    source = world.source(1)
    site.claims.claim(site.first_lane, source)
    ends[1].close()
    parked = Parked(site.here, ends[1], ("192.0.2.1", 0), 0.0, source.number, is_between=True)
    assert site.park.add(parked, site.first_lane) == [parked]
    assert parked.ending is Outcome.SERVED
    site.park.drop(parked)
    assert world.claims.active(source) == 0


def test_connection_that_was_closed_while_parked_disturbs_nobody_and_is_found_at_its_limit(world: World) -> None:
    """By a thread of its handler; a newcomer has its number, and its events."""
    site = world.sites[0]
    first, client = socket.socketpair()
    old = add(site, first, conversation=Talk(has_stock_finish=True), is_between=True)
    first.close()
    second, newcomer = socket.socketpair()
    assert second.fileno() == old.fd
    new = add(site, second)
    assert site.park.due(time.monotonic() + 31, Limits(math.inf, Outcome.CUT, math.inf, 30)) == [old]
    newcomer.sendall(b"line\n")
    assert site.park.take(site.wakeups.wait(0)) is new
    for each in (client, second, newcomer):
        each.close()


def test_connection_that_cannot_be_watched_is_refused(world: World, tmp_path) -> None:
    """As when the system's memory for watches is used up: here, what no epoll takes."""
    site = world.sites[0]
    with (tmp_path / "file").open("w") as file:
        parked = Parked(site.here, file, ("192.0.2.1", 0), time.monotonic())
        assert site.park.add(parked, 0) == [parked]
    assert parked.ending is Outcome.REFUSED_MAX_PARKED
    assert staged(site) == (0, 0, 0)


def test_dropped_connection_is_closed_though_files_of_it_are_open(world: World, ends: Ends) -> None:
    """Of a handler that nobody has finished; and though another process may have a copy."""
    copy = ends[1].dup()
    rfile = ends[1].makefile("rb")
    parked = add(world.sites[0], ends[1])
    world.sites[0].park.take_out()
    world.sites[0].park.drop(parked)
    assert ends[0].recv(1) == b""
    assert ends[1].fileno() == -1
    rfile.close()
    copy.close()


# -- shares and transits


def test_workers_share_what_may_be_parked(world: World) -> None:
    """What one has the others have not: over the bound each keeps at least one."""
    pairs = [socket.socketpair() for _ in range(3 * MAX_PARKED)]
    for number, (_, request) in enumerate(pairs):
        site = world.sites[number % 3]
        for victim in site.park.add(Parked(site.here, request, ("192.0.2.1", 0), time.monotonic()), 0):
            site.park.drop(victim)
    parked = [len(site.park) for site in world.sites]
    assert sum(parked) <= MAX_PARKED + 2
    assert min(parked) >= 1
    for pair in pairs:
        for each in pair:
            each.close()


def test_place_of_one_that_never_arrives_is_given_back(world: World, ends: Ends) -> None:
    """Its receiver died with it in its hands."""
    site, source = world.sites[0], world.source(1)
    site.claims.claim(site.first_lane, source)
    parked = add(site, ends[1], claim=source.number)
    site.park.take_out()
    assert site.park.send(parked, lambda _parked, _place: True)
    site.park.settle(time.monotonic() + TRANSIT_PATIENCE - 1)
    assert world.claims.active(source) == 1
    site.park.settle(time.monotonic() + TRANSIT_PATIENCE + 1)
    assert world.claims.active(source) == 0
    assert not world.claims.standing()


def test_connection_that_cannot_be_sent_stays_and_counts(world: World, ends: Ends) -> None:
    """The pair is full."""
    site, source = world.sites[0], world.source(1)
    site.claims.claim(site.first_lane, source)
    parked = add(site, ends[1], claim=source.number)
    site.park.take_out()
    assert not site.park.send(parked, lambda _parked, _place: False)
    assert world.claims.active(source) == 1
    assert ends[1].fileno() >= 0
    site.park.drop(parked)
    assert world.claims.active(source) == 0


def test_one_that_was_lost_on_its_way_is_counted(world: World) -> None:
    """Its receiver had no descriptor for it."""
    site = world.sites[0]
    place = site.claims.send(1, world.source(1).number)
    site.park.arrived(place, is_lost=True)
    assert world.claims.active(world.source(1)) == 0
    assert world.board.all_totals()["cut"] == 1


def test_parted_lanes_are_woken_by_the_parked_alone(world: World, ends: Ends) -> None:
    """Not by what other workers send: that is for those who stay."""
    site, other = world.sites[0], world.sites[1]
    parked = add(site, ends[1])
    site.park.part()
    moved, client = socket.socketpair()
    add(other, moved)
    [each] = other.park.take_out()
    world.connect(other, 1, b"")
    other.move_out()
    assert site.wakeups.wait(0) is None
    ends[0].sendall(b"line\n")
    assert site.park.take(site.wakeups.wait_parked(0)) is parked
    site.park.pass_to_lane(parked)
    assert site.wakeups.wait_parked(0) is parked
    other.park.drop(each)
    client.close()


def test_sites_have_lanes_enough() -> None:
    """What the model rests on."""
    assert LANES > 1
    assert station().between is Wait.LINE
    assert READY == (Verdict.COMPLETE, Verdict.ENDED)
