"""timeouts.idle and slow peers (S15, S17): what cuts, what does not, and what is counted as what."""

import contextlib
import socket
import threading
import time

import attack_handlers
import pytest
from clients import ask, connect, read_line, wait_for
from test_deadlines import options, totals

IDLE = options(idle=0.4)


def stopped(served) -> dict[str, int]:
    """What was counted, once the service has ended."""
    assert served.stop() == 0
    return totals(served.log())


def lines_about(served, text: str) -> list[str]:
    return [line for line in served.log().splitlines() if text in line]


def read_steadily(client: socket.socket, bytes_a_second: int) -> tuple[int, float]:
    """Read to the end, no faster than that. How much it was, and the longest time between two reads."""
    start = last = time.monotonic()
    count, longest = 0, 0.0
    while chunk := client.recv(1 << 17):
        count += len(chunk)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        threading.Event().wait(max(0.0, start + count / bytes_a_second - now))  # this reader is a slow one
    return count, longest


def test_answer_that_makes_progress_is_never_cut(daemon):
    """S17: 20 MB to a client that reads 5 MB/s take four times idle, in one write, and arrive whole."""
    served = daemon("attack_handlers:LongAnswer", *options(idle=1), workers=1, threads=1)
    for _ in range(3):
        with connect(served) as client:
            count, longest_gap = read_steadily(client, 5_000_000)
        if longest_gap < 0.5:
            assert count == attack_handlers.ANSWER_BYTES
            assert stopped(served)["served"] >= 1
            return
    pytest.skip("the machine kept the client from reading steadily, three times")


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "unix:{}/s.sock"], ids=["tcp", "unix"])
def test_client_that_reads_nothing_is_cut_counted_and_said_in_a_line(daemon, tmp_path, bind):
    """S17, R32: the write ends with an OSError, the lane comes back, and there is no traceback."""
    served = daemon("attack_handlers:LongAnswer", *IDLE, bind=bind.format(tmp_path), workers=1, threads=1)
    with connect(served), connect(served) as second:
        assert second.recv(1) == b"x"  # the only lane is back from the first
    assert stopped(served)["timeout_idle"] >= 1
    assert lines_about(served, "ended by BlockingIOError")
    assert "Traceback" not in served.log()


@pytest.mark.parametrize("handler", ["handlers:OrderHandler", "attack_handlers:ReadsRaw"])
def test_client_that_says_nothing_is_counted_as_timed_out(daemon, tmp_path, handler):
    """S15: over TCP and a Unix socket, whether the handler saw the end of its input or an OSError."""
    bind = ["tcp://127.0.0.1:0", f"unix:{tmp_path}/s.sock"]
    served = daemon(handler, *IDLE, bind=bind, workers=1, threads=4)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(served, index)) for index in (0, 0, 1, 1)]
        assert [client.recv(1) for client in clients] == [b""] * 4
    counted = stopped(served)
    assert counted["timeout_idle"] == counted["accepted"] == 4
    assert "Traceback" not in served.log()


def test_work_that_takes_longer_than_idle_is_served(daemon):
    """S17: a handler that was busy, answered and closed was not idle, though its client said nothing meanwhile."""
    served = daemon("attack_handlers:SlowWork", *options(idle=1, first_byte=30), workers=1, threads=1)
    assert ask(served, b"1.5\n") == b"done\n"
    counted = stopped(served)
    assert counted["served"] == counted["accepted"] == 1


@pytest.mark.parametrize("bind", ["tcp://127.0.0.1:0", "unix:{}/s.sock"], ids=["tcp", "unix"])
def test_conversation_longer_than_idle_that_its_client_ends_is_served(daemon, tmp_path, bind):
    """S17: idle is of each operation, not of the conversation."""
    limits = options(idle=0.4, first_byte=30)
    served = daemon("handlers:OrderHandler", *limits, bind=bind.format(tmp_path), workers=1, threads=1)
    with connect(served) as client:
        client.sendall(b"sleep 0.3\nsleep 0.3\n")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as replies:
            assert replies.read() == b"slept\nslept\n"
    counted = stopped(served)
    assert counted["served"] == counted["accepted"] == 1


def test_slow_readers_are_cut_at_the_handler_deadline(daemon):
    """R32: who takes a long answer bit by bit, and so is never idle, holds a lane and the kernel's memory no longer."""
    served = daemon("attack_handlers:LongAnswer", *options(handler=1), workers=1, threads=4)
    slow = [connect(served) for _ in range(4)]
    start = time.monotonic()
    while alive := [client for client in slow if is_read_on(client)]:
        assert time.monotonic() < start + 30, f"{len(alive)} are still being served"
    for client in slow:
        client.close()
    served.counted(handler=4)
    with connect(served) as client:
        assert client.recv(1) == b"x"
    assert stopped(served)["served"] == 0
    assert "reached timeouts.handler" in served.log()


def is_read_on(client: socket.socket) -> bool:
    """Read a little; whether there may be more. A connection that was cut ends, or is reset."""
    threading.Event().wait(0.01)  # this reader is a slow one
    try:
        return bool(client.recv(5000))
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("idle", [0.2, 60])
def test_own_timeout_of_a_handler_wins(daemon, idle):
    """S15: shorter or longer than idle, it is what ends the wait, with a TimeoutError as ever."""
    served = daemon("attack_handlers:OwnTimeout", *options(idle=idle), workers=1, threads=1)
    with connect(served) as silent:
        assert read_line(silent) == b"TimeoutError\n"
    counted = stopped(served)
    assert counted["served"] == counted["accepted"] == 1


def test_timeouts_and_resets_cost_one_short_line_each(daemon):
    """S15: where the stock server writes 1.3 kB, 200 bytes at most."""
    served = daemon("attack_handlers:RaisesOwnTimeout", workers=1, threads=4)
    clients = [connect(served) for _ in range(20)]
    for client in clients:
        assert client.recv(1) == b""
        client.close()
    lines = wait_for(lambda: lines_about(served, "ended by TimeoutError")[19:], 20, "twenty lines")
    assert len(lines) == 1
    assert max(len(line) for line in lines_about(served, "ended by")) <= 200
    assert "Traceback" not in served.log()
