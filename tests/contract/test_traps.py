"""The traps of socketserver (RELIABILITY.md, section 1) × {PreFork, PreThread, daemon}, over real sockets.

Each test names its trap. A worker is the process that serves: a forked one, or the caller's own.
"""

import math
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass

import measures
import pytest
from clients import Address, ask, connect, dial, read_line, wait_for

SPIN = 0.05
"""Share of one CPU above which a worker that has nothing to serve is spinning; a spin takes all of one."""

PAUSED = "accepting is paused"
TRAPS = "trap_handlers:TrapHandler"


def workers_of(served) -> list[int]:
    return served.workers() or [served.pid]


def order(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return read_line(client)


def assert_serves(served) -> None:
    """It answers, and not by chance."""
    for _ in range(4):
        assert ask(served, b"echo still here\n") == b"still here\n"


def assert_no_spin(served) -> None:
    pids = workers_of(served)

    def is_quiet() -> bool:
        return measures.rate(lambda: measures.cpu_seconds(pids), 0.5) < SPIN * len(pids)

    wait_for(is_quiet, 10, "what has been to be done with, and the processor to be left alone")


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# -- waiting


def test_idle_after_bursts_leaves_no_lane_in_accept(serve):
    """S01: after 30 bursts of 4 connections no thread sits in accept(2) on a blocking listener."""
    served = serve("trap_handlers:SlowAcceptServer", workers=2, threads=8)
    for number in range(30):
        with ExitStack() as stack:
            burst = [stack.enter_context(connect(served)) for _ in range(4)]
            for client in burst:
                assert order(client, b"%d" % number) == b"%d\n" % number
    pids = workers_of(served)
    wait_for(lambda: not measures.waiting_in_calls(pids), 10, "every lane to leave accept(2)")
    inode = measures.listening_inode(served.port)
    assert all(measures.is_nonblocking(pid, inode) for pid in pids)
    assert served.stop() == 0


def test_idle_worker_wakes_up_at_most_twice_a_second(serve):
    """S05: a worker with 8 idle lanes sleeps and wakes at most twice a second, its heartbeat included."""
    served = serve(TRAPS, workers=1, threads=8)
    pids = workers_of(served)
    descriptors = measures.descriptors(pids[0])
    with ExitStack() as stack:  # every lane has served, so that none is at its start
        for client in [stack.enter_context(connect(served)) for _ in range(8)]:
            assert order(client, b"echo x") == b"x\n"
    wait_for(lambda: measures.descriptors(pids[0]) <= descriptors, 10, "every lane to be idle")
    # half a wake-up of tolerance: at the window's edge one more may fall into it
    rates = [math.inf]
    while rates[-1] > 2.5:
        assert len(rates) < 4, rates  # what had been to do may have reached into the first
        rates.append(measures.rate(lambda: measures.voluntary_switches(pids), 3.0))


def test_sixty_clients_during_work_are_all_answered(serve):
    """S07: 60 clients that come while the only lane works for 0.3 s find room in the backlog, and are answered."""
    served = serve(TRAPS, workers=1, threads=1)
    with ExitStack() as stack:
        busy = stack.enter_context(connect(served))
        busy.sendall(b"sleep 0.3\n")
        # a full backlog drops the SYN, which is sent again after 1 s
        clients = [stack.enter_context(connect(served, timeout=0.9)) for _ in range(60)]
        busy.shutdown(socket.SHUT_WR)
        assert read_line(busy) == b"slept\n"
        for number, client in enumerate(clients):
            client.settimeout(10)
            assert order(client, b"echo %d" % number) == b"%d\n" % number
            client.close()


# -- stopping


def test_stop_asked_by_a_handler_ends_the_service(serve):
    """S03: shutdown() in a handler returns at once, its client is answered, and the service ends with 0."""
    served = serve(TRAPS, workers=2, threads=2)
    with connect(served) as client:
        assert order(client, b"shutdown") == b"asked\n"
        assert order(client, b"shutdown") == b"asked\n"
    assert served.wait() == 0


def test_stop_while_a_handler_hangs_ends_at_the_deadline(serve):
    """S03: a handler that sleeps for a minute is left behind at timeouts.graceful, not waited for."""
    served = serve(TRAPS, "--set", "timeouts.graceful=0.3", workers=1, threads=2)
    with connect(served) as client:
        client.sendall(b"echo in\nsleep 60\n")
        assert read_line(client) == b"in\n"
        assert served.stop() == 0


# -- handlers that raise


@pytest.mark.parametrize("redirect", ["2>/dev/full", "2>&-", "2> >(exec true)"], ids=["full", "closed", "pipe"])
def test_handler_raising_while_stderr_fails_costs_one_request(serve, tmp_path, redirect):
    """S08: with standard error full, closed, or a broken pipe, a handler's exception kills no worker and no lane."""
    path = f"{tmp_path}/s.sock"
    served = serve(TRAPS, bind=f"unix:{path}", workers=1, threads=2, ready=False, redirect=redirect)
    target = Silent([Address.parse(f"unix:{path}")])
    wait_for(lambda: is_up(target), 20, "its first answer")
    pids = workers_of(served)
    for _ in range(4):
        assert ask(target, b"raise\n") == b""
        assert ask(target, b"exit\n") == b""
    with connect(target) as one, connect(target) as other:  # both lanes are there
        assert order(one, b"hold") == order(other, b"hold") == b"holding\n"
    assert workers_of(served) == pids
    assert served.stop() == 0


def is_up(target) -> bool:
    """Whether it answers; a Unix socket's file is there a little before anybody listens."""
    try:
        return ask(target, b"echo up\n") == b"up\n"
    except OSError:
        return False


@dataclass
class Silent:
    """The target that a service without a standard error cannot name."""

    addresses: list[Address]


def test_handler_raising_anything_costs_one_request(serve):
    """S09: no exception that Python knows ends a lane; each is logged with its name."""
    served = serve(TRAPS, workers=1, threads=2)
    pids = workers_of(served)
    for name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException", "MemoryError", "RecursionError"):
        for _ in range(3):
            assert ask(served, b"throw %s\n" % name.encode()) == b""
        wait_for(lambda name=name: served.log().count(f"{name}: ordered to throw") == 3, 10, "three entries in the log")
    with connect(served) as one, connect(served) as other:  # both lanes are there
        assert order(one, b"hold") == order(other, b"hold") == b"holding\n"
    assert workers_of(served) == pids


@pytest.mark.parametrize("hook", ["VerifyRaises", "GetRequestRaises", "ServiceActionsRaises"])
def test_hook_raising_leaves_lanes_and_descriptors_as_they_were(serve, hook):
    """S11: verify_request, get_request and service_actions may raise: the connection is closed, the lane lives."""
    served = serve(f"trap_handlers:{hook}", workers=1, threads=2)
    [pid] = workers_of(served)
    ask(served, b"x\n")
    before = measures.descriptors(pid)
    answers = [ask(served, b"x\n") for _ in range(6)]
    assert answers[-2:] == [b"x\n", b"x\n"]
    assert set(answers) <= {b"x\n", b""}
    wait_for(lambda: measures.descriptors(pid) <= before, 10, "every connection to be closed")
    assert workers_of(served) == [pid]
    wait_for(lambda: "KeyError" in served.log(), 10, "the exception in the log")


def test_get_request_raising_for_ever_does_not_spin(serve):
    """S11: a get_request that always raises is paused for, not called as fast as the machine can."""
    served = serve("trap_handlers:GetRequestAlwaysRaises", workers=1, threads=2)
    with connect(served):
        wait_for(lambda: "KeyError" in served.log(), 10, "the exception in the log")
        entries = len(served.log())
        assert_no_spin(served)
        assert len(served.log()) - entries < 100_000
    assert served.stop() == 0


# -- descriptors


def test_descriptors_running_out_pause_the_worker_and_no_more(serve):
    """S10: out of descriptors a worker neither spins nor floods the log, and resumes by itself."""
    served = serve(TRAPS, workers=1, threads=4)
    with connect(served) as client:
        assert order(client, b"hog") == b"hogged\n"
        with connect(served) as waiting:
            waiting.sendall(b"echo at last\n")
            wait_for(lambda: PAUSED in served.log(), 10, "the worker to say so")
            assert_no_spin(served)
            assert order(client, b"free") == b"freed\n"
            assert read_line(waiting) == b"at last\n"
    assert_serves(served)
    assert served.log().count(PAUSED) == 1


@pytest.mark.parametrize("handler", ["SetupRaises", "BufferedToTheGone"])
def test_descriptors_stay_flat_without_the_collector(serve, handler):
    """S14, S32: a setup() that raises, or a reset below a buffered wfile, leaks no descriptor though gc is off."""
    served = serve(f"trap_handlers:{handler}", workers=1, threads=2)
    [pid] = workers_of(served)
    before = measures.descriptors(pid)
    for _ in range(10):
        clients = [connect(served) for _ in range(100)]
        for client in clients:
            if handler == "SetupRaises":
                assert client.recv(1) == b""
                client.close()
            else:
                client.sendall(b"x\n")
                reset(client)
    wait_for(lambda: measures.descriptors(pid) <= before, 20, "as many descriptors as before")


def test_reply_before_the_request_is_read_arrives(serve):
    """S13: clients that are still sending 8 MB get the early answer, where a plain close sends them a reset."""
    served = serve("trap_handlers:EarlyHandler", workers=1, threads=2)
    for _ in range(10):
        with connect(served) as client:
            client.sendall(b"x" * 8_000_000)
            assert read_line(client) == b"413 too large\n"


# -- stock mix-ins


@pytest.mark.parametrize("server", ["OwnThreadingServer", "OwnForkingServer"])
def test_hundred_idle_clients_of_a_stock_mixin_stay_in_the_lanes(serve, server):
    """S18: a Threading- or ForkingTCPServer subclass gets no thread and no process beyond its lanes."""
    served = serve(f"trap_handlers:{server}", workers=1, threads=4)
    [pid] = workers_of(served)
    assert ask(served, b"x") == b""
    threads, idle = measures.threads(pid), measures.descriptors(pid) - 1  # the last one may be about to be closed
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(served))
        wait_for(lambda: measures.descriptors(pid) >= idle + 4, 10, "connections in the lanes")
        assert measures.threads(pid) == threads
        assert measures.children(pid) == []
    mixin = server.removeprefix("Own").removesuffix("Server") + "MixIn"
    assert served.log().count(f"process_request of {mixin} is passed over") == 1


# -- addresses and what server_bind sets


def test_http_over_unix_socket_names_its_client(serve, tmp_path):
    """S21: http.server's logging, which wants a pair for an address, works with the peer of a Unix socket."""
    served = serve("trap_handlers:HelloHTTPHandler", bind=f"unix:{tmp_path}/http.sock", workers=1, threads=2)
    assert get(served).startswith(b"HTTP/1.0 200")
    wait_for(lambda: "unix:uid=" in served.log(), 10, "the access line of http.server")
    assert served.stop() == 0


def test_peer_of_unix_stream_is_its_uid_and_pid(serve, tmp_path):
    """S21: client_address of a Unix stream is a pair that says who connected, not ''."""
    served = serve(TRAPS, bind=f"unix:{tmp_path}/s.sock", workers=1, threads=2)
    assert ask(served, b"peer\n").startswith(b"('unix:uid=")


def test_unnamed_unix_datagram_peer_is_served(serve, tmp_path):
    """S21: a datagram from a socket without a name, which nothing can answer, is no error."""
    path = f"{tmp_path}/d.sock"
    served = serve("trap_handlers:ReusableUnixEcho", bind=f"unixgram:{path}", workers=1, threads=2)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed:
        for _ in range(5):
            unnamed.sendto(b"x", path)
    with dial(served.addresses[0], 10) as named:
        named.send(b"hello")
        assert named.recv(100) == b"hello"
    assert "TypeError" not in served.log()
    assert served.stop() == 0


def get(served) -> bytes:
    """A GET of /, to the end."""
    reply = b""
    with connect(served) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while chunk := client.recv(65536):
            reply += chunk
    return reply


def test_http_server_has_its_name_and_port(serve):
    """S23: what HTTPServer.server_bind sets is there on a listener that the server did not bind itself."""
    served = serve("trap_handlers:NamedHTTPHandler", workers=1, threads=2)
    assert get(served).splitlines()[-1] == b"127.0.0.1 %d" % served.port


def test_http_server_starts_without_a_resolver(serve):
    """S23, R25: no name is looked up on the way to serving HTTP, however slow the resolver."""
    served = serve("dead_resolver:NamedWithoutResolver", workers=1, threads=2)
    assert get(served).splitlines()[-1] == b"127.0.0.1 %d" % served.port


def test_wsgi_server_has_its_environ(serve):
    """S23: WSGIServer's base_environ, which its server_bind makes, is there."""
    served = serve("trap_handlers:WSGIServer", workers=1, threads=2)
    name, port, peer = get(served).splitlines()[-1].split()
    assert name
    assert (int(port), peer) == (served.port, b"127.0.0.1")


def test_ipv6_listener_serves(serve):
    """S24: the family comes from the address; the client's is a 4-tuple, which nothing trips over."""
    served = serve(TRAPS, bind="tcp://[::1]:0", workers=1, threads=2)
    assert ask(served, b"peer\n").startswith(b"('::1', ")
    assert ask(served, b"raise\n") == b""
    wait_for(lambda: "handler failed for [::1]:" in served.log(), 10, "the peer in the log")


# -- handlers that break the listener


@pytest.mark.parametrize(
    "ways",
    [
        ["socket.shutdown", "socket.setblocking", "socket.settimeout", "socket.close", "server_close"],
        ["raw_blocking"],
        ["raw_shutdown"],
        ["raw_close"],
        ["raw_close_and_reuse"],
    ],
    ids=lambda ways: ways[-1],
)
def test_handler_breaking_the_listener_harms_nobody(serve, ways):
    """S25, S31: whatever a handler does to the listener, nobody spins, the next client is served, and a stop works."""
    served = serve(TRAPS, workers=2, threads=2)
    for way in ways:
        assert ask(served, b"break %s\n" % way.encode()) == b"broken\n"
        wait_for(lambda: is_up(served), 20, "it to be mended")
        assert_serves(served)
    assert_no_spin(served)
    assert_serves(served)
    assert served.stop() == 0


# -- datagrams


def test_udp_losers_of_a_wakeup_do_not_block(serve):
    """S34: after datagrams that one of 8 lanes gets, no other sits in recvfrom(2)."""
    served = serve("trap_handlers:DatagramEcho", bind="udp://127.0.0.1:0", workers=2, threads=4)
    for _ in range(10):
        assert ask(served, b"hello\n") == b"hello\n"
    pids = workers_of(served)
    wait_for(lambda: not measures.waiting_in_calls(pids), 10, "every lane to leave recvfrom(2)")
    inode = measures.listening_inode(served.port, "udp")
    assert all(measures.is_nonblocking(pid, inode) for pid in pids)


def test_udp_port_cannot_be_taken_over(serve):
    """S33: SO_REUSEADDR is never set on UDP, though the class asks for it, so nobody else can bind the port."""
    served = serve("trap_handlers:ReusableUDPServer", bind="udp://127.0.0.1:0", workers=1, threads=2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            thief.bind(("127.0.0.1", served.port))
    assert ask(served, b"genuine\n") == b"genuine\n"
