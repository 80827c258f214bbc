"""Handlers and servers that are parked with what they do to their sockets: TLS, time-outs, threads, forks, ends."""

import contextlib
import functools
import http.client
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import measures
import pytest
from clients import connect, read_line, wait_for
from pki import Pki
from test_parking import connected, get, is_ended, options, order, stopped, wait_parked

ONE_LANE = {"workers": 1, "threads": 1}


@contextlib.contextmanager
def secure(served, pki: Pki) -> Iterator[ssl.SSLSocket]:
    with connect(served) as plain:
        context = ssl.create_default_context(cafile=pki.ca)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            yield client


# -- TLS that handlers and servers put on themselves


@pytest.mark.parametrize("handler", ["parking_handlers:TLSPage", "parking_handlers:TLSServer"])
def test_tls_conversations_are_parked_between_requests(daemon, pki: Pki, handler: str) -> None:
    """Put on in setup() or in get_request(): five idle clients and one lane."""
    served = daemon(handler, env={"CERTIFICATE": pki.both}, **ONE_LANE)
    with ExitStack() as stack:
        clients: list[ssl.SSLSocket] = []
        for _ in range(5):
            clients.append(stack.enter_context(secure(served, pki)))
            assert get(clients[-1], "/first") == b"/first"  # before it has a lane, where setup() puts TLS on
        for _ in range(2):
            for client in clients:
                assert get(client, "/secret") == b"/secret"
        wait_parked(served, new=0, between=5)
    assert stopped(served)["served"] == 5


def test_what_a_tls_record_holds_is_answered_at_once(daemon, pki: Pki) -> None:
    """Several lines in one record: the kernel knows nothing of the later ones."""
    served = daemon("parking_handlers:TLSOrders", env={"CERTIFICATE": pki.both}, **ONE_LANE)
    with secure(served, pki) as client, client.makefile("rb") as replies:
        for _ in range(2):
            client.sendall(b"".join(b"echo %d\n" % number for number in range(40)))
            assert [replies.readline() for _ in range(40)] == [b"%d\n" % number for number in range(40)]
        wait_parked(served, new=0, between=1)


def test_tls_client_that_leaves_or_is_silent_is_let_go(daemon, pki: Pki) -> None:
    """Its end is seen, and its limit."""
    served = daemon("parking_handlers:TLSPage", *options(parking__keep_alive="2s"), env={"CERTIFICATE": pki.both})
    with secure(served, pki) as leaves:
        assert get(leaves, "/") == b"/"
    served.wait_open(0)
    with secure(served, pki) as silent:
        assert get(silent, "/") == b"/"
        assert is_ended(silent)
    counted = stopped(served)
    assert (counted["served"], counted["timeout_keep_alive"]) == (1, 1)


# -- what becomes of sockets


def test_http_handler_with_a_timeout_of_its_own_is_parked(daemon) -> None:
    """``timeout`` makes its descriptor non-blocking; a lane that looked at it by recv would wait for so long."""
    served = daemon("parking_handlers:OwnTimeout", *options(timeouts__head="1s"), **ONE_LANE)
    with connected(served, 3) as clients:
        for _ in range(3):
            for client in clients:
                assert get(client, "/") == b"/"
        clients[0].sendall(b"GET")
        assert is_ended(clients[0])
        for client in clients[1:]:
            assert get(client, "/") == b"/"
    assert stopped(served)["timeout_head"] == 1


def test_default_timeout_of_the_users_module_keeps_no_lane(daemon) -> None:
    """socket.setdefaulttimeout: accepted sockets have it."""
    served = daemon("parking_handlers:ImpatientServer", **ONE_LANE)
    with connected(served, 3) as silent:
        silent[0].sendall(b"echo h")
        wait_parked(served, new=3)
        with connect(served) as good:
            assert order(good, b"echo hi") == b"hi\n"
        assert order(silent[0], b"i") == b"hi\n"


def test_handler_that_gives_its_connection_away_is_over(daemon) -> None:
    """What took it goes on with it; the lane lives, and the next that comes has the number in peace."""
    served = daemon("parking_handlers:ClosesItself", *options(limits__per_source=3), **ONE_LANE)
    for _ in range(3):
        served.wait_open(0)
        with connected(served, 2) as clients:
            for client in clients:
                assert order(client, b"detach") == b"taken\n"
            with connect(served) as good:
                assert order(good, b"echo hi") == b"hi\n"
            for client in clients:
                client.sendall(b"bye")
                assert is_ended(client)
    counted = stopped(served)
    assert counted["served"] == counted["accepted"] == 9
    assert "internal error" not in served.log()


def test_thread_of_a_handler_uses_a_parked_connection(daemon) -> None:
    """It writes, and ends it: the conversation is finished then."""
    served = daemon("parking_handlers:Pushes", **ONE_LANE)
    with connect(served) as client, client.makefile("rb") as pushed:
        client.sendall(b"push 100\n")
        assert pushed.read().split() == [b"%d" % number for number in range(100)]
    wait_parked(served, new=0, between=0)
    assert stopped(served)["served"] == 1


@pytest.mark.parametrize("how", ["returns", "ends", "stays"])
def test_handler_that_forks_goes_on(daemon, how: str) -> None:
    """Its child, which has the connection and the epoll, takes part in nothing; the client sees the end."""
    served = daemon("parking_handlers:Forks", *options(parking__keep_alive="3s"), **ONE_LANE)
    with connected(served, 3) as others, connect(served) as client:
        for other in others:
            assert order(other, b"echo before") == b"before\n"
        assert order(client, b"fork " + how.encode()) == b"parent\n"
        for each in [client, *others]:
            assert order(each, b"echo after") == b"after\n"
        for each in [client, *others]:
            assert is_ended(each)
    assert "internal error" not in served.log()


def test_child_of_a_handler_gives_back_nothing_that_is_its_parents(daemon) -> None:
    """Its end of the conversation is nobody's: the parent's still counts, for its source and in the status."""
    served = daemon("parking_handlers:Forks", *options(limits__per_source=2), **ONE_LANE)
    with connected(served, 2) as clients:
        for client in clients:
            assert order(client, b"echo before") == b"before\n"
        assert order(clients[0], b"fork ends") == b"parent\n"
        wait_parked(served, new=0, between=2)
        assert order(clients[1], b"echo after") == b"after\n"
        with connect(served) as third:
            assert is_ended(third)
    served.wait_open(0)
    assert stopped(served)["refused_per_source"] == 1


def test_request_sent_together_with_another_counts_in_its_lane(daemon) -> None:
    """Where its conversation was parked before: status shows it once, beside those that are parked still."""
    served = daemon("parking_handlers:Orders", **ONE_LANE)
    with connected(served, 2) as (busy, parked), busy.makefile("rb") as replies:
        for client in (busy, parked):
            assert order(client, b"echo before") == b"before\n"
        busy.sendall(b"echo two\nhold\n")
        assert [replies.readline(), replies.readline()] == [b"two\n", b"holding\n"]
        status = served.status()
        assert status["parked"]["between"] == 1
        assert [each["active"] for each in status["sources"]] == [2]
        assert order(busy, b"go") == b"released\n"
    served.wait_open(0)


def test_finish_that_fails_is_logged_and_costs_nobody_else(daemon) -> None:
    """At its limit, in a lane; and by its own end."""
    served = daemon("parking_handlers:FailsAtTheEnd", *options(parking__keep_alive="1s"), **ONE_LANE)
    with connect(served) as silent, connect(served) as polite:
        assert order(silent, b"echo hi") == b"hi\n"
        assert order(polite, b"bye") == b""
        assert is_ended(silent)
    with connect(served) as good:
        assert order(good, b"echo hi") == b"hi\n"
    assert "LookupError: in finish" in served.log()
    counted = stopped(served)
    assert counted["accepted"] == 3


@pytest.mark.parametrize("exit_by", ["raise", "exit"])
def test_exchange_that_fails_ends_its_conversation_alone(daemon, exit_by: str) -> None:
    """In the first exchange or in a later one: finished, logged, counted as an error."""
    served = daemon("parking_handlers:Orders", **ONE_LANE)
    with connect(served) as first, connect(served) as later, connect(served) as good:
        assert order(first, exit_by.encode()) == b""
        assert order(later, b"echo hi") == b"hi\n"
        assert order(later, exit_by.encode()) == b""
        assert order(good, b"echo hi") == b"hi\n"
    counted = stopped(served)
    assert (counted["errors"], counted["served"]) == (2, 1)


# -- conversations at odd moments


def test_client_that_sends_all_at_once_has_its_turns_and_no_more(daemon) -> None:
    """200 orders in one write, one lane, which all wait for: all are answered, and another client's in between."""
    served = daemon("parking_handlers:Numbered", **ONE_LANE)
    with connect(served) as busy, connect(served) as greedy, connect(served) as other:
        assert order(busy, b"hold") == b"holding\n"
        greedy.sendall(b"number\n" * 200)
        other.sendall(b"number\n")
        assert order(busy, b"go") == b"released\n"
        assert 1 <= int(read_line(other)) <= 20
        with greedy.makefile("rb") as replies:
            numbers = [int(replies.readline()) for _ in range(200)]
        assert numbers == sorted(numbers)


def test_client_that_ends_its_side_is_answered_first(daemon) -> None:
    """Of what it has sent: whole requests, and half a one."""
    served = daemon("parking_handlers:Orders", **ONE_LANE)
    with connect(served) as client, connect(served) as silent:
        client.sendall(b"echo 1\necho 2\necho 3")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as replies:
            assert replies.read() == b"1\n2\n3\n"
        silent.shutdown(socket.SHUT_WR)
        assert is_ended(silent)
    assert stopped(served)["served"] == 2


def test_handler_deadline_cuts_an_exchange_and_not_the_pauses(daemon) -> None:
    """timeouts.handler is of the time in a lane; one that is cut while it ends is counted once."""
    served = daemon("parking_handlers:Orders", *options(timeouts__handler="2s"), workers=1, threads=2)
    with connect(served) as client, connect(served) as slow:
        assert order(slow, b"hold") == b"holding\n"
        for _ in range(5):
            assert order(client, b"sleep 0.5") == b"slept\n"
        assert is_ended(slow)
        assert order(client, b"echo still here") == b"still here\n"
    counted = stopped(served)
    assert (counted["timeout_handler"], counted["served"]) == (1, 1)


def test_reset_of_a_parked_connection_is_no_error(daemon) -> None:
    """Before it has spoken, and between two requests: the one is refused, the other was served."""
    served = daemon("parking_handlers:Page", *options(parking__wait_for="line"), **ONE_LANE)
    with connect(served) as new, connect(served) as regular:
        new.sendall(b"GET")
        assert get(regular, "/") == b"/"
        wait_parked(served, new=1, between=1)
        for client in (new, regular):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        wait_parked(served, new=0, between=0)
    counted = stopped(served)
    assert (counted["refused_reset"], counted["served"], counted["errors"]) == (1, 1, 0)
    assert "Traceback" not in served.log()


def test_trickle_wakes_a_lane_once_a_packet(daemon) -> None:
    """20 clients that send a head byte by byte: no spinning on what is there already."""
    served = daemon("parking_handlers:Page", **ONE_LANE)
    [pid] = served.workers()
    with connected(served, 20) as clients:
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
        wait_parked(served, new=20)
        assert measures.rate(functools.partial(measures.cpu_seconds, [pid]), 1.0) < 0.2
        before = measures.voluntary_switches([pid])
        for _ in range(10):
            for client in clients:
                client.sendall(b"x")
        for client in clients:
            assert get(client, "") == b"/"
        assert measures.voluntary_switches([pid]) - before < 3 * 10 * 20 + 300


def test_http_client_of_the_standard_library_keeps_its_connection(daemon) -> None:
    """Bodies both ways, in chunks of its choosing, over one connection."""
    served = daemon("parking_handlers:Page", **ONE_LANE)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    for size in (0, 1, 10_000, 300_000):
        connection.request("POST", "/", body=b"x" * size)
        assert connection.getresponse().read() == b"%d" % size
        assert connection.sock is not None
    connection.close()
    wait_for(lambda: served.status()["totals"]["accepted"] == 1, 5, "one connection in all")


def test_line_longer_than_a_segment_is_one_exchange(daemon) -> None:
    """Up to max_head."""
    served = daemon("parking_handlers:Orders", *options(parking__max_head="60K"), **ONE_LANE)
    with connect(served) as client:
        text = b"x" * 50_000
        assert order(client, b"echo " + text) == text + b"\n"
        assert order(client, b"echo " + text) == text + b"\n"
        client.sendall(b"bye\n")
        assert read_line(client) == b""


def test_connection_that_a_handler_leaves_to_another_keeps_no_lane_awake(daemon) -> None:
    """Its watch outlives its descriptor, whose number is the next client's; what nobody reads tells again and again."""
    served = daemon("parking_handlers:Leaves", **ONE_LANE)
    [worker] = served.workers()
    with connect(served) as client:
        for line in (b"echo 1", b"echo 2", b"leave"):
            assert order(client, line) == line.split()[-1].replace(b"leave", b"left") + b"\n"
        client.sendall(b"echo 3\n" * 3)
        with connect(served) as other:
            assert [order(other, b"echo %d" % number) for number in range(3)] == [b"0\n", b"1\n", b"2\n"]
            used = functools.partial(measures.cpu_seconds, [worker])
            wait_for(lambda: measures.rate(used, 0.5) < 0.2, 20, "the worker to sleep")
            assert order(other, b"echo 4") == b"4\n"
