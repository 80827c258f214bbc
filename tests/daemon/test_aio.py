"""Coroutines and asyncio's protocols, served: limits, deadlines, failures, what blocks the loop, how it drains."""

import contextlib
import re
import socket
from signal import SIGHUP, SIGINT, SIGTERM, SIGTTOU

import measures
import pytest
from clients import Storm, ask, connect, read_line, storm, wait_for
from test_proxy import ON, has_ended, v1, v2

ORDERS = "aio_handlers:orders"
LINES = "aio_handlers:Lines"


def told(served, *orders: str) -> list[str]:
    """The answers to some orders on one connection, up to its end or a reset."""
    answer = b""
    with connect(served) as client, contextlib.suppress(OSError):
        client.sendall("".join(f"{order}\n" for order in orders).encode())
        client.shutdown(socket.SHUT_WR)
        while chunk := client.recv(65536):
            answer += chunk
    return answer.decode().splitlines()


def setting(**keys: object) -> list[str]:
    return [word for key, value in keys.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


def spoken(**keys: object) -> list[str]:
    """Likewise, where handlers, and so their time-outs, begin once their clients have said something."""
    return setting(timeouts__first_byte=30, **keys)


@pytest.fixture
def daemon(daemon):
    """As ever, on asyncio's own loop unless another is said."""

    def start(handler: str, *options: str, loop: str = "asyncio", **others):
        return daemon(handler, "--set", f"pool.event_loop={loop}", *options, **others)

    return start


# -- what is served


@pytest.mark.parametrize(("workers", "loop"), [(0, "asyncio"), (2, "asyncio"), (2, "uvloop")])
@pytest.mark.parametrize("handler", ["line", "Lines", "Buffered"])
def test_each_kind_answers_a_storm_on_each_kind_of_listener(daemon, tmp_path, handler, workers, loop):
    """TCP and Unix; every connection is in the counts, and none is open at the end."""
    bind = ["tcp://127.0.0.1:0", f"unix:@{tmp_path}"]
    served = daemon(f"aio_handlers:{handler}", bind=bind, workers=workers, threads=8, loop=loop)
    for index in range(2):
        counts = storm(served, clients=6, requests=10, index=index)
        assert counts.is_lossless, counts
    found = served.counted(accepted=120, served=120)
    assert found["errors"] == 0
    wait_for(lambda: sum(served.status()["durations"]["counts"]) == 120, 10, "each to have its duration")
    wait_for(lambda: is_at_rest(served.status()["pool"]), 10, "none to be open")
    assert served.stop() == 0
    lines = [line for line in served.log().splitlines() if "the event loop" not in line]  # a machine may stand still
    assert not re.search("ERROR|WARNING|Traceback", "\n".join(lines))


def is_at_rest(pool: dict) -> bool:
    return (pool["busy"], pool["idle"]) == (0, pool["lanes"])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_loop_is_the_configured_one(daemon, loop):
    """Whichever is installed."""
    assert told(daemon(ORDERS, loop=loop), "loop") == [loop]


@pytest.mark.parametrize(("loop", "most"), [("asyncio", 5.0), ("uvloop", 14.0)])
def test_connection_wakes_no_herd(daemon, loop, most):
    """Eight workers: on asyncio's loop one is woken for a connection, its bytes, its end; on uvloop all are, once."""
    served = daemon("aio_handlers:line", workers=8, threads=4, loop=loop)
    workers = served.workers()
    before = measures.voluntary_switches(workers)
    counts = storm(served, clients=1, requests=300)
    assert counts.is_lossless, counts
    switches = measures.voluntary_switches(workers) - before
    assert switches <= most * 300, f"{switches / 300:.1f} for each connection"


def test_open_connections_are_spread_over_the_workers(daemon):
    """The kernel would wake the same worker each time: those who have taken some queue up again."""
    served = daemon(ORDERS, workers=2, threads=100)
    with contextlib.ExitStack() as stack:
        pids = []
        for _ in range(80):
            client = stack.enter_context(connect(served))
            client.sendall(b"pid\n")
            pids.append(read_line(client))
        assert sorted(pids.count(pid) >= 16 for pid in set(pids)) == [True, True], pids


def test_open_connections_are_in_the_status_and_bounded(daemon):
    """As many rows as connections that may be open; who comes beyond waits in the accept queue, and is served then."""
    served = daemon(ORDERS, workers=1, threads=2)
    with connect(served) as first, connect(served) as second:
        for client in (first, second):
            client.sendall(b"peer\n")
            assert read_line(client) == b"127.0.0.1\n"
        status = served.status()
        rows = status["workers"][0]["lanes"]
        peers = {f"127.0.0.1:{client.getsockname()[1]}" for client in (first, second)}
        assert ({row["peer"] for row in rows}, status["pool"]["busy"]) == (peers, 2)
        with connect(served) as third:
            third.sendall(b"peer\n")
            wait_for(lambda: served.status()["listeners"][0]["queued"] == 1, 10, "the third in the queue")
            first.close()
            assert read_line(third) == b"127.0.0.1\n"
    served.counted(served=3)


def test_failures_are_named_and_counted_and_nobody_else_notices(daemon):
    """What a coroutine or a callback raises, SystemExit included, ends its connection alone."""
    for handler, orders in ((ORDERS, ("raise", "exit", "exactly 5")), (LINES, ("raise", "exit"))):
        served = daemon(handler, workers=1, threads=4)
        with connect(served) as witness:
            for order in orders:
                assert told(served, order) == []
            witness.sendall(b"peer\n")
            assert read_line(witness) == b"127.0.0.1\n"
        served.counted(errors=len(orders), served=1)
        log = served.log()
        assert re.search(r"handler failed for 127\.0\.0\.1:\d+\n(.*\n)+RuntimeError: ordered to raise", log)
        assert "SystemExit: ordered to exit" in log
        assert ("ended by IncompleteReadError" in log) == (handler == ORDERS)
        assert served.stop() == 0


def test_protocol_that_refuses_its_connection_is_closed(daemon):
    """``connection_made`` that raises leaves nothing open."""
    served = daemon("aio_handlers:Refusing", workers=1, threads=1)
    for _ in range(3):
        assert told(served, "anything") == []
    served.counted(errors=3)
    wait_for(lambda: served.status()["pool"]["busy"] == 0, 10, "nothing to be open")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_reply_is_not_destroyed_by_what_the_client_still_sends(daemon, loop):
    """Its handler has heard enough; the client sends all of it, and reads the reply then."""
    served = daemon("aio_handlers:curt", workers=1, loop=loop)
    with connect(served) as client:
        client.sendall(b"enough\n" + b"x" * 2_000_000)
        assert read_line(client) == b"enough\n"
        assert client.recv(1) == b""
    served.counted(served=1)


def test_handler_stops_the_service(daemon):
    """``writer.server`` is the server object, as ``self.server`` is elsewhere."""
    served = daemon(ORDERS)
    assert told(served, "draining", "stop") == ["False", "stopping"]
    assert served.wait() == 0


def test_block_of_the_loop_is_detected_and_named(daemon):
    """The log says whose handler it is and where; then serving goes on."""
    served = daemon(ORDERS, workers=1)
    with connect(served) as blocking:
        blocking.sendall(b"block 5\n")
        whose = f" s by the handler of 127.0.0.1:{blocking.getsockname()[1]}; nobody else is served"
        wait_for(lambda: whose in served.log() and "time.sleep(min(" in served.log(), 10, "the lines in the log")
        assert read_line(blocking) == b"unblocked\n"
        wait_for(lambda: "the event loop goes on" in served.log(), 10, "the end of it")
    assert told(served, "peer") == ["127.0.0.1"]


def test_worker_whose_loop_stays_blocked_is_replaced(daemon):
    """Its connections are lost in any case; newcomers are served by its replacement."""
    served = daemon(ORDERS, *setting(timeouts__worker=2), workers=1)
    (pid,) = served.workers()
    with connect(served) as blocking:
        blocking.sendall(b"block 60\n")
        wait_for(lambda: pid not in served.workers() and served.workers(), 20, "another worker")
        assert told(served, "peer") == ["127.0.0.1"]
    assert "gives no signs of life" in served.log()


# -- limits and deadlines


def test_limits_by_source_hold_as_for_lanes(daemon):
    """At once, at a rate, and by network; what ends is given back."""
    limits = setting(limits__per_source=2, limits__deny="127.0.0.66", limits__refuse_with="no")
    served = daemon(ORDERS, *limits, workers=1, threads=8)

    def come_from(address: str) -> socket.socket:
        return socket.create_connection(("127.0.0.1", served.port), 10, source_address=(address, 0))

    def is_served(client: socket.socket) -> bool:
        try:
            client.sendall(b"peer\n")
            return read_line(client).startswith(b"127.0.0.")
        except ConnectionError:
            return False  # refused after it had spoken: with something unread, by a reset

    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(come_from("127.0.0.2")) for _ in range(4)]
        assert [is_served(client) for client in held] == [True, True, False, False]
        with come_from("127.0.0.66") as denied:
            assert read_line(denied) == b"no"
        with come_from("127.0.0.3") as other:
            assert is_served(other)
    served.counted(per_source=2, denied=1)

    def comes_in() -> bool:
        with come_from("127.0.0.2") as client:
            return is_served(client)

    wait_for(comes_in, 10, "the places to be given back")


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_proxy_header_tells_the_real_client(daemon, loop):
    """asyncio has it as the peer's name, and limits and status know it; what a header does not begin is refused."""
    for handler in (ORDERS, LINES):
        served = daemon(handler, *ON, *setting(limits__per_source=1), workers=1, loop=loop)
        for header in (v1("192.0.2.7"), v2("2001:db8::7")):
            with connect(served) as client:
                client.sendall(header)
                client.sendall(b"peer\n")
                assert read_line(client).strip() in (b"192.0.2.7", b"2001:db8::7")
                with connect(served) as second, contextlib.suppress(ConnectionError):
                    second.sendall(header + b"peer\n")
                    assert not second.recv(10)
        with connect(served) as wrong, contextlib.suppress(ConnectionError):
            wrong.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert not wrong.recv(10)
        assert served.counted(proxy=1)["per_source"] == 2


def test_silent_clients_are_cut(daemon, tmp_path):
    """first_byte, before a handler; idle, in one: a coroutine sees the end of its input."""
    served = daemon(ORDERS, *setting(timeouts__first_byte=0.3), workers=1, threads=4)
    with connect(served) as silent:
        assert silent.recv(1) == b""
    served.counted(first_byte=1)
    for handler in (ORDERS, LINES):
        served = daemon(
            handler, *spoken(timeouts__idle=1), bind=["tcp://127.0.0.1:0", f"unix:@{tmp_path}/{handler}"], workers=1
        )
        with connect(served) as client:
            client.sendall(b"peer\n")
            assert read_line(client) == b"127.0.0.1\n"
            assert client.recv(1) == b""
        served.counted(idle=1)
        if handler == ORDERS:  # of a protocol on a Unix socket nothing tells when it last heard anything
            with connect(served, 1) as client:
                client.sendall(b"peer")
                assert client.recv(1) == b""
            served.counted(idle=2)


def test_busy_handler_is_not_idle(daemon):
    """One that does not wait for its client is not cut, however long it takes."""
    served = daemon(ORDERS, *spoken(timeouts__idle=1), workers=1)
    assert told(served, "sleep 2.5") == ["slept"]
    with connect(served) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"flood 20000000\n")
        served.counted(idle=1)  # a client that does not take what is sent is


@pytest.mark.parametrize("index", [0, 1], ids=["tcp", "unix"])
def test_client_that_is_told_things_is_not_idle(daemon, tmp_path, index):
    """It says nothing for longer than timeouts.idle, and its handler waits for that; but what it hears counts."""
    bind = ["tcp://127.0.0.1:0", f"unix:@{tmp_path}"]
    served = daemon(ORDERS, *setting(timeouts__idle=2), bind=bind, workers=1)
    with connect(served, index) as client:
        client.sendall(b"ticks 11\n")
        with client.makefile("rwb", buffering=0) as lines:
            assert [lines.readline() for _ in range(11)] == [b"tick\n"] * 11
            lines.write(b"\n")
            assert lines.readline() == b"ticked\n"


def test_handler_is_cancelled_at_its_deadline(daemon):
    """It may say goodbye; one that does not hear of it counts as hung, and its worker is replaced."""
    served = daemon(ORDERS, *spoken(timeouts__handler=1), workers=1)
    with connect(served) as client:
        client.sendall(b"extend 0.1\ngoodbye\n")
        assert read_line(client) == b"extended\n"
        assert read_line(client) == b"goodbye\n"
        assert client.recv(1) == b""
    served.counted(handler=1)
    with connect(served) as client:
        client.sendall(b"deaf\n")
        wait_for(lambda: "hangs: it has not come back 5 s after it was cancelled" in served.log(), 20, "the line")
        assert client.recv(1) == b""
    wait_for(lambda: "has a lane that hangs" in served.log(), 10, "the replacement")
    assert told(served, "peer") == ["127.0.0.1"]
    served.signal(SIGINT)


# -- coming and going


@pytest.mark.parametrize("workers", [0, 2])
def test_stop_waits_for_the_open_and_serves_the_queue(daemon, workers):
    """The open see that it drains, and finish; who waits in the accept queue is served; newcomers are refused."""
    served = daemon(ORDERS, workers=workers, threads=1)
    lanes = max(1, workers)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(served)) for _ in range(lanes)]
        for client in held:
            client.sendall(b"draining\n")
            assert read_line(client) == b"False\n"
        queued = stack.enter_context(connect(served))
        queued.sendall(b"draining\n")
        served.signal(SIGTERM)
        wait_for(lambda: served.status()["state"] == "draining", 10, "the drain")
        for client in held:
            wait_for(lambda client=client: is_draining(client), 10, "its worker to drain")
            client.close()
        assert read_line(queued) == b"True\n"
        queued.close()
        assert served.wait() == 0
    assert "0 cut" in served.log()


def is_draining(client: socket.socket) -> bool:
    client.sendall(b"draining\n")
    return read_line(client) == b"True\n"


def test_drain_that_takes_too_long_is_cut_with_a_goodbye(daemon):
    """At ``graceful`` handlers are cancelled; who does not hear of it is left."""
    for handler in (ORDERS, LINES):
        served = daemon(handler, *setting(timeouts__graceful=0.5), workers=1)
        with connect(served) as client, connect(served) as deaf:
            for each, order in ((client, b"goodbye\n"), (deaf, b"deaf\n")):
                each.sendall(b"peer\n" + order * (handler == ORDERS))  # what comes with it is heard with it
                assert read_line(each) == b"127.0.0.1\n"
            served.signal(SIGTERM)
            if handler == ORDERS:
                assert read_line(client) == b"goodbye\n"
            assert served.wait() == 0
        assert re.search(r"cut 2 open: 127\.0\.0\.1:\d+, 127\.0\.0\.1:\d+", served.log())
        assert ("left 1 handler(s) that did not come back" in served.log()) == (handler == ORDERS)


def test_stop_does_not_wait_for_a_blocked_loop(daemon):
    """Whoever blocks it is left at the end of ``graceful``."""
    served = daemon(ORDERS, *setting(timeouts__graceful=0.5), workers=1)
    with connect(served) as client:
        client.sendall(b"peer\n")
        assert read_line(client)
        client.sendall(b"block 60\n")
        assert served.stop() == 0
    assert "did not come back" in served.log()


@pytest.mark.parametrize("handler", ["line", "Lines"])
def test_reloads_and_scaling_lose_nobody(daemon, handler):
    """Open connections finish with their workers."""
    served = daemon(f"aio_handlers:{handler}", workers=2, threads=8)
    with Storm(served, clients=8) as clients:
        for number in range(5):
            served.signal(SIGHUP)
            wait_for(lambda done=number + 1: served.status()["totals"]["reloads"] == done, 20, "the reload")
            clients.wait_for_more(20)
        served.signal(SIGTTOU)
        wait_for(lambda: len(served.workers()) == 1, 20, "one worker less")
        clients.wait_for_more(20)
    assert clients.counts.is_lossless, clients.counts
    assert served.stop() == 0
    assert "Traceback" not in served.log()


def test_parked_connections_go_to_other_workers_at_a_reload(daemon):
    """Who has not spoken yet is no reason for a worker to stay, and is served by another."""
    served = daemon(ORDERS, *setting(timeouts__first_byte=30), workers=2)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(served)) for _ in range(6)]
        wait_for(lambda: served.status()["parked"]["new"] == 6, 10, "them to be parked")
        served.signal(SIGHUP)
        wait_for(lambda: served.status()["totals"]["reloads"] == 1, 20, "the reload")
        wait_for(lambda: len(served.workers()) == 2, 20, "the end of the old workers")
        assert not any(has_ended(client) for client in silent)
        for client in silent:
            client.sendall(b"peer\n")
            assert read_line(client) == b"127.0.0.1\n"


def test_configured_backlog_is_kept(daemon):
    """asyncio.start_server would make it 100."""
    served = daemon(ORDERS, *setting(socket__backlog=300))
    assert ask(served, b"peer\n") == b"127.0.0.1\n"
    backlog = served.status()["listeners"][0]["backlog"]
    assert backlog == 300


def test_chat_example_says_goodbye(daemon):
    """At a stop its members are told, and it ends though they stay."""
    served = daemon("poolserver.examples.chat:chat", workers=1, threads=50)
    with connect(served) as ann, connect(served) as bob:
        for client, name in ((ann, b"ann"), (bob, b"bob")):
            assert client.recv(100) == b"your name? "
            client.sendall(name + b"\n")
            assert name in read_line(client)
        assert read_line(ann) == b"* bob is here; we are 2\n"
        bob.sendall(b"hello\n")
        assert read_line(ann) == b"bob: hello\n"
        assert served.stop() == 0
        assert read_line(ann).startswith(b"* this server is about to leave; goodbye\n")
    assert "0 cut" in served.log()
