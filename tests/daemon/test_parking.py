"""Parking through the real command line: who waits without a lane, for what, how long, and what of it is counted."""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from clients import connect, read_line, wait_for
from test_deadlines import totals
from test_limits import come_from

GET = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


def options(**settings: object) -> list[str]:
    """``parking__max_head=100`` and the like, as the command line has them."""
    return [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def order(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return read_line(client)


def get(client: socket.socket, path: str) -> bytes:
    """The body of the answer; b"" where the connection ends before it."""
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return answer(client)


def answer(client: socket.socket) -> bytes:
    """The next body, of an HTTP answer that tells its length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        octet = client.recv(1)
        if not octet:
            return b""
        head += octet
    length = int(head.partition(b"Content-Length: ")[2].split()[0])
    body = b""
    while len(body) < length:
        octets = client.recv(length - len(body))
        assert octets
        body += octets
    return body


def wait_parked(served, *, new: int | None = None, between: int | None = None) -> None:
    """Wait until so many are parked."""

    def is_so() -> bool:
        parked = served.status()["parked"]
        return new in (None, parked["new"]) and between in (None, parked["between"])

    wait_for(is_so, 20, f"parked {new=} {between=}; it is {served.status()['parked']}")


@contextlib.contextmanager
def connected(served, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(served)) for _ in range(count)]


def is_ended(client: socket.socket) -> bool:
    """Whether the connection ends, now or within the client's patience."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def stopped(served) -> dict[str, int]:
    """What was counted, once the service has ended; every connection has had exactly one end."""
    assert served.stop() == 0
    counted = totals(served.log())
    ends = ("served", "errors", "cut")
    ended = [count for name, count in counted.items() if name in ends or name.startswith(("refused_", "timeout_"))]
    assert sum(ended) == counted["accepted"]
    return counted


# -- what is waited for

SILENT_AND_PARTIAL = {"data": [b""], "line": [b"", b"echo "], "http": [b"", GET[:30], b"GET\xa0/\xa0HTTP/1.1\r\n"]}


@pytest.mark.parametrize("wait", SILENT_AND_PARTIAL)
@pytest.mark.parametrize("workers", [0, 1])
def test_who_has_not_sent_what_is_waited_for_holds_no_lane(daemon, wait: str, workers: int) -> None:
    """The only lane serves others; who comes to speak in the end is served, too."""
    handler = "parking_handlers:Page" if wait == "http" else "parking_handlers:WaitsForData"
    served = daemon(handler, *options(parking__wait_for=wait), workers=workers, threads=1)
    whole = GET if wait == "http" else b"echo hello\n"
    with contextlib.ExitStack() as stack:
        clients = []
        for first in SILENT_AND_PARTIAL[wait]:
            clients.append(stack.enter_context(connect(served)))
            clients[-1].sendall(first)
        wait_parked(served, new=len(clients))
        with connect(served) as good:
            good.sendall(whole)
            assert b"hello" in good.recv(1000)
        for client, first in list(zip(clients, SILENT_AND_PARTIAL[wait], strict=True))[:2]:
            client.sendall(whole[len(first) :])
            assert b"hello" in client.recv(1000)
            client.close()


def test_silent_client_holds_its_lane_where_the_server_may_speak_first(daemon) -> None:
    """By default a handler that says nothing of it is called at once."""
    served = daemon("handlers:OrderHandler", workers=1, threads=1)
    with connect(served):
        wait_for(lambda: served.status()["pool"]["busy"] == 1, 10, "the lane to be busy")
        assert served.status()["parked"] == {"new": 0, "between": 0, "oldest": None}


@pytest.mark.parametrize(
    ("handler", "settings", "is_parked"),
    [
        ("handlers:OrderHandler", {}, False),
        ("parking_handlers:WaitsForData", {}, True),
        ("parking_handlers:WaitsForData", {"parking__wait_for": "none"}, False),
        ("parking_handlers:HasMethodOfThatName", {}, False),
        ("parking_handlers:Orders", {}, True),
        ("parking_handlers:Page", {}, True),
        ("parking_handlers:OwnLoop", {}, True),
        ("poolserver.examples.rpc:RPCServer", {}, True),
    ],
)
def test_auto_is_http_for_http_and_what_the_handler_says(daemon, handler: str, settings: dict, is_parked: bool) -> None:
    """Else nothing; what the configuration says goes before."""
    served = daemon(handler, *options(**settings), workers=1, threads=1)
    with connect(served):
        if is_parked:
            wait_parked(served, new=1)
        else:
            wait_for(lambda: served.status()["pool"]["busy"] == 1, 10, "the lane to be busy")


def test_wait_for_that_there_is_not_is_refused_by_check_and_run(daemon, tmp_path) -> None:
    """With the class and the words that there are."""
    (tmp_path / "app.py").write_text("import handlers\nclass Odd(handlers.LineHandler): wait_for = 'lines'\n")
    served = daemon("app:Odd", ready=False)
    assert served.wait() == 78
    assert "Odd.wait_for is 'lines'; want one of none, data, line, http" in served.log()


# -- bounds


@pytest.mark.parametrize("wait", ["line", "http"])
def test_head_that_is_too_long_is_cut_and_counted(daemon, wait: str) -> None:
    """Without a lane; one within the bound is served, whatever is behind it."""
    served = daemon("parking_handlers:Page", *options(parking__wait_for=wait, parking__max_head=200), workers=1)
    with connect(served) as long, connect(served) as good:
        long.sendall(b"x" * 300)
        assert is_ended(long)
        good.sendall(b"POST / HTTP/1.1\r\nContent-Length: 500\r\n\r\n" + b"x" * 500)
        assert answer(good) == b"500"
    counted = stopped(served)
    assert (counted["refused_max_head"], counted["served"]) == (1, 1)
    assert "max_head" in served.log()


def test_head_that_is_late_is_cut_and_counted(daemon) -> None:
    """head: a trickle does not move it. So for the next request of a conversation."""
    served = daemon("parking_handlers:Page", *options(timeouts__head="500ms"), workers=1, threads=1)
    with connect(served) as slow, connect(served) as second:
        assert get(second, "/") == b"/"
        for client in (slow, second):
            trickle(client, GET[:-1])
            assert is_ended(client)
    counted = stopped(served)
    assert (counted["timeout_head"], counted["accepted"]) == (2, 2)
    assert "timeouts.head" in served.log()


def trickle(client: socket.socket, octets: bytes) -> None:
    """A byte now and then, until it is cut."""
    for octet in octets:
        try:
            client.sendall(bytes([octet]))
        except OSError:
            return
        if threading.Event().wait(0.05):  # this client is a slow one
            return


def test_silence_before_and_between_is_cut_each_at_its_limit(daemon, tmp_path) -> None:
    """first_byte and keep_alive; the handler of the second is finished, by a lane."""
    limits = options(timeouts__first_byte="2s", parking__keep_alive="2s")
    marks = tmp_path / "marks"
    served = daemon("parking_handlers:Orders", *limits, workers=1, threads=1, env={"MARKS": str(marks)})
    with connect(served) as regular:
        assert order(regular, b"echo hi") == b"hi\n"
        port = regular.getsockname()[1]
        with connect(served) as silent:
            assert is_ended(silent)
        assert is_ended(regular)
    counted = stopped(served)
    assert (counted["timeout_first_byte"], counted["timeout_keep_alive"], counted["accepted"]) == (1, 1, 2)
    assert marks.read_text() == f"finished {port}\n"


def test_request_that_waits_for_a_lane_is_not_cut_at_its_clients_limits(daemon) -> None:
    """The only lane is busy for longer than every limit, which stress has shrunk besides: who has asked meanwhile is
    answered."""
    limits = options(timeouts__first_byte="10s", timeouts__head="10s", parking__keep_alive="10s")
    served = daemon("parking_handlers:Page", *limits, workers=1, threads=1)
    with connect(served) as busy, connect(served) as new, connect(served) as regular:
        wait_parked(served, new=3)
        assert get(regular, "/before") == b"/before"
        busy.sendall(b"GET /hold/5 HTTP/1.1\r\n\r\n")  # in this order they are ready
        regular.sendall(GET)
        new.sendall(GET)
        assert answer(busy) == b"held"
        assert answer(regular) == b"/hello"
        assert answer(new) == b"/hello"


def test_oldest_that_has_sent_nothing_goes_first_when_the_park_is_full(daemon) -> None:
    """Then the oldest between two requests."""
    served = daemon("parking_handlers:Page", *options(parking__max_parked=4), workers=1, threads=1)
    with contextlib.ExitStack() as stack:

        def one(*, is_regular: bool) -> socket.socket:
            """One more, and it is parked."""
            accepted = served.status()["totals"]["accepted"]
            client = stack.enter_context(connect(served))
            if is_regular:
                assert get(client, "/") == b"/"
            wait_for(lambda: served.status()["totals"]["accepted"] > accepted, 10, "it to be accepted")
            return client

        regulars = [one(is_regular=True) for _ in range(2)]
        silent = [one(is_regular=False) for _ in range(3)]
        assert is_ended(silent[0])
        regulars += [one(is_regular=True) for _ in range(2)]
        assert is_ended(silent[1])
        assert is_ended(silent[2])
        wait_parked(served, new=0, between=4)
        one(is_regular=False)
        assert is_ended(regulars[0])
        for client in regulars[1:]:
            assert get(client, "/still") == b"/still"
        wait_parked(served, new=1, between=3)
    counted = stopped(served)
    assert counted["refused_max_parked"] == 4
    assert "max_parked" in served.log()


def test_bound_holds_over_all_workers(daemon) -> None:
    """Whoever has most, each keeps one at least."""
    served = daemon("parking_handlers:Page", *options(parking__max_parked=20), workers=3, threads=2)
    with connected(served, 60):
        wait_for(lambda: served.status()["totals"]["accepted"] >= 60, 20, "all to be accepted")

        def settled() -> int:
            """How many are parked, once the others have been cut."""
            status = served.status()
            parked = status["parked"]["new"]
            return parked if status["totals"]["refused"]["max_parked"] == 60 - parked else 0

        assert 15 <= wait_for(settled, 20, "60 that are parked or cut") <= 20 + 2


# -- limits by source


def parks_from(served, source: str, count: int) -> list[socket.socket]:
    """So many silent connections of a source; those that were refused are closed by the server."""
    clients = []
    for _ in range(count):
        with contextlib.suppress(ConnectionResetError):  # refused before connect(2) had returned
            clients.append(come_from(served, source))
    return clients


def refusals(served) -> int:
    return served.status()["totals"]["refused"]["per_source"]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_parked_connections_count_for_their_source_and_are_given_back(daemon, workers: int) -> None:
    """Exactly as many as allowed, then none; after they have gone, by whatever way, exactly as many again."""
    limits = options(limits__per_source=6, timeouts__first_byte="60s", parking__max_head=100)
    served = daemon("parking_handlers:MovableOrders", *limits, workers=workers, threads=2)
    for refused in (3, 6):
        clients = parks_from(served, "127.0.0.2", 6)
        wait_parked(served, new=6)
        extra = parks_from(served, "127.0.0.2", 3)
        wait_for(lambda count=refused: refusals(served) == count, 10, "the others to be refused")
        assert order(clients[0], b"echo regular") == b"regular\n"
        assert order(clients[1], b"bye") == b""
        clients[2].sendall(b"x" * 200)
        clients[3].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        clients[4].shutdown(socket.SHUT_WR)
        for client in [*clients, *extra]:
            client.close()
        served.wait_open(0)
    counted = stopped(served)
    assert counted["refused_per_source"] == 6
    assert counted["accepted"] == 18


# -- status


def test_status_counts_parked_peers_with_running_ones(daemon) -> None:
    """By source, without any limit, in all workers; by kind, the oldest; and no more once they have gone."""
    served = daemon("parking_handlers:Orders", workers=2, threads=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(come_from(served, f"127.0.0.{2 + number % 2}")) for number in range(8)]
        for client in clients[:4]:
            assert order(client, b"echo hi") == b"hi\n"
        assert order(clients[0], b"hold") == b"holding\n"
        for client in clients[4:]:
            client.sendall(b"half a li")
        wait_parked(served, new=4, between=3)

        def shown() -> tuple:
            """Who has just been parked may stand in its lane's row for a moment."""
            status = served.status()
            sources = {each["source"]: each["active"] for each in status["sources"]}
            return status["pool"]["parked"], status["pool"]["busy"], sources

        wait_for(lambda: shown() == (7, 1, {"127.0.0.2": 4, "127.0.0.3": 4}), 10, "all where they are")
        wait_for(lambda: served.status()["parked"]["oldest"], 10, "the oldest")
        assert re.search(r"parked +4 new, 3 between requests, the oldest for", served.cli("status").stdout)
        assert order(clients[0], b"go") == b"released\n"
    served.wait_open(0)
    wait_for(lambda: not served.status()["sources"], 10, "no sources")


# -- stress


def test_waits_shrink_while_the_lanes_of_the_pool_are_busy(daemon) -> None:
    """Four in five for a second: keep_alive and first_byte are a fifth, also in the worker that has time, until it
    passes; status says so."""
    limits = options(timeouts__first_byte="15s", parking__keep_alive="15s")  # longer than a client's patience
    served = daemon("parking_handlers:Orders", *limits, workers=5, threads=1)
    assert served.status()["stress"] is False
    with connected(served, 4) as busy, connect(served) as regular:
        for client in busy:
            assert order(client, b"hold") == b"holding\n"
        assert order(regular, b"echo hi") == b"hi\n"
        with connect(served) as silent:
            wait_for(lambda: served.status()["stress"], 10, "stress")
            assert is_ended(silent)
        assert is_ended(regular)
        for client in busy:
            assert order(client, b"go") == b"released\n"
        wait_for(lambda: not served.status()["stress"], 10, "the end of stress")
    counted = stopped(served)
    assert (counted["timeout_first_byte"], counted["timeout_keep_alive"]) == (1, 1)
