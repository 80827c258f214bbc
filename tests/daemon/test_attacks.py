"""Attacks of RELIABILITY.md's section 3 that cost the daemon no more than this; floods by source are elsewhere."""

import socket
import struct
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import measures
import pytest
from clients import Storm, ask, connect, read_line, wait_for
from test_deadlines import totals
from test_hostile import COMMAND, PASS_LISTENER

from poolserver.repeats import FIRST_BYTES

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    client.close()


def order(client: socket.socket, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return read_line(client)


def memory_kb(pid: int, name: str) -> int:
    """``VmRSS`` or ``VmHWM``, the most it ever was. Source: proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def send_all_that_is_taken(client: socket.socket, piece: bytes, times: int) -> None:
    """Send ``piece`` so many times, unless the server has had enough before, and end."""
    try:
        for _ in range(times):
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
    except (ConnectionResetError, BrokenPipeError):
        pass  # it had enough


def read_to_end(client: socket.socket) -> None:
    try:
        while client.recv(1 << 20):
            continue
    except ConnectionResetError:
        pass  # an end, too


# -- peers that are gone


def test_peers_that_reset_before_their_turn_cost_no_handler_call(daemon):
    """S29: 100 clients that ask and reset while the only lane is busy: no handler runs, and one line says so."""
    served = daemon("handlers:OrderHandler", workers=1, threads=1)
    with connect(served) as busy:
        assert order(busy, b"hold") == b"holding\n"
        for _ in range(100):
            gone = connect(served)
            gone.sendall(b"echo x\n")
            reset(gone)
        assert order(busy, b"go") == b"released\n"
    assert ask(served, b"echo hi\n") == b"hi\n"
    assert served.stop() == 0
    counted = totals(served.log())
    assert counted["refused_reset"] == 100
    assert (counted["served"], counted["errors"]) == (2, 0)
    assert sum("reset by the client before a handler was called" in line for line in served.log().splitlines()) <= 5
    assert len(served.log()) < 4000


def test_peer_that_has_only_ended_its_side_is_served(daemon):
    """S29: a request whose client has shut down its sending side before it was accepted gets its answer."""
    served = daemon("handlers:OrderHandler", workers=1, threads=1)
    with connect(served) as busy, connect(served) as half:
        assert order(busy, b"hold") == b"holding\n"
        half.sendall(b"echo still here\n")
        half.shutdown(socket.SHUT_WR)
        assert order(busy, b"go") == b"released\n"
        busy.close()
        assert read_line(half) == b"still here\n"
    assert served.stop() == 0
    assert totals(served.log())["served"] == 2


def test_storm_of_resets_loses_no_good_client_and_floods_no_log(daemon):
    """A05, R33: connect and reset, as fast as four clients can, before and in the handler; each is counted once."""
    served = daemon("handlers:OrderHandler", workers=2, threads=4)

    def resets(client: socket.socket, _line: bytes) -> bool:
        client.sendall(b"echo x\n")
        reset(client)
        return True

    def asks(client: socket.socket, _line: bytes) -> bool:
        return order(client, b"echo hi") == b"hi\n"

    start = time.monotonic()
    with Storm(served, clients=4, exchange=resets) as attack, Storm(served, clients=1, exchange=asks) as good:
        attack.wait_for_more(2000)
        good.wait_for_more(100)
    assert good.counts.is_lossless, good.counts
    assert served.stop() == 0
    assert len(served.log()) <= 10_000 * (time.monotonic() - start) + FIRST_BYTES
    counted = totals(served.log())
    assert counted["refused_reset"] > 0
    ended = ("served", "errors", "cut", "refused_reset")
    assert sum(counted.get(name, 0) for name in ended) == counted["accepted"]
    assert "Traceback" not in served.log()


# -- peers that are silent


def test_silent_peers_are_kept_from_the_lanes_by_defer_accept(daemon):
    """A02: with socket.defer_accept 20 clients that say nothing do not reach the two lanes; one that speaks does."""
    served = daemon("handlers:LineHandler", "--set", "socket.defer_accept=30", workers=1, threads=2)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(served))
        assert ask(served, b"hello\n") == b"hello\n"


def test_vanished_peers_are_found_out_while_receiving_and_while_sending(daemon):
    """A03: keep-alive covers the one, TCP_USER_TIMEOUT the other, and accepted connections have both unasked."""
    served = daemon("attack_handlers:SocketOptions", workers=1, threads=1)
    reply = ask(served, b"").decode().split()
    assert reply == ["keepalive=1", "idle=60", "interval=10", "probes=6", "user_timeout=60000", "nodelay=1"]


def test_vanished_peers_are_found_out_on_a_passed_listener(daemon):
    """A03: what a socket unit or a supervisor made has no such options; the accepted connections do."""
    program = (sys.executable, "-c", PASS_LISTENER, *COMMAND)
    served = daemon("attack_handlers:SocketOptions", program=program, bind="fd://9", workers=1, threads=1)
    assert b"keepalive=1 idle=60 interval=10 probes=6 user_timeout=60000" in ask(served, b"")


def test_idle_clients_cost_no_thread_and_no_memory(daemon):
    """A06: 500 of them wait in the accept queue: the worker stays as it was. (22 kB each with ThreadingMixIn.)"""
    served = daemon("trap_handlers:IdleHandler", workers=1, threads=4)
    [pid] = served.workers()
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(connect(served))
        wait_for(lambda: served.status()["pool"]["busy"] == 4, 10, "the lanes to have theirs")
        assert measures.threads(pid) == 5
        before = memory_kb(pid, "VmRSS")
        for _ in range(500):
            stack.enter_context(connect(served))
        assert measures.threads(pid) == 5
        assert memory_kb(pid, "VmRSS") - before < 2000
        assert served.workers() == [pid]


# -- peers that never end


EXAMPLES = ["keyvalue:KeyValueHandler", "smtp:SMTPHandler", "web:HelloHandler", "echo:EchoHandler"]


@pytest.mark.parametrize("handler", EXAMPLES)
def test_endless_line_costs_the_examples_no_memory(daemon, handler):
    """S16: 40 MB without a newline; the examples show the bounded way. (200 MB: 217 MB, with readline() unbounded.)"""
    served = daemon(f"poolserver.examples.{handler}", workers=1, threads=1)
    [pid] = served.workers()
    with connect(served) as client:
        send_all_that_is_taken(client, b"x\r\n\r\n", 1)
        read_to_end(client)
    before = memory_kb(pid, "VmHWM")
    with connect(served) as client:
        reader = threading.Thread(target=read_to_end, args=(client,), daemon=True)
        reader.start()
        send_all_that_is_taken(client, b"x" * 1_000_000, 40)
        reader.join(30)
    assert not reader.is_alive()
    assert memory_kb(pid, "VmHWM") - before < 4000


def test_body_without_bound_is_refused_unread(daemon):
    """S16: XML-RPC with a body of 200 MB announced: 413, and no memory."""
    served = daemon("poolserver.examples.rpc:RPCServer", workers=1, threads=1)
    [pid] = served.workers()
    head = b"POST /RPC2 HTTP/1.1\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n"
    with connect(served) as client:
        send_all_that_is_taken(client, head % 10 + b"not a call", 1)
        read_to_end(client)
    before = memory_kb(pid, "VmHWM")
    with connect(served) as client:
        client.sendall(head % 200_000_000)
        send_all_that_is_taken(client, b"x" * 1_000_000, 6)
        assert client.recv(20).split()[1] == b"413"
    assert memory_kb(pid, "VmHWM") - before < 4000
