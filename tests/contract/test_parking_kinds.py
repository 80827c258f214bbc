"""Parking, as the daemon and both library classes have it, on TCP, IPv6 and Unix sockets."""

import contextlib

import pytest
from clients import connect, read_line
from test_parking import is_ended

LIMITS = ("--set", "parking.keep_alive=2s", "--set", "timeouts.first_byte=2s")
BINDS = ["tcp://127.0.0.1:0", "tcp://[::1]:0", "unix:{}/s.sock"]


def order(client, line: bytes) -> bytes:
    client.sendall(line + b"\n")
    return read_line(client)


@pytest.mark.parametrize("bind", BINDS, ids=["tcp", "ipv6", "unix"])
def test_silent_and_idle_clients_hold_no_lane(serve, tmp_path, bind: str) -> None:
    """Ten of each, with one lane: newcomers are served, and so are they when they speak."""
    served = serve("parking_handlers:Orders", bind=bind.format(tmp_path), workers=1, threads=1)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(served)) for _ in range(10)]
        idle = [stack.enter_context(connect(served)) for _ in range(10)]
        for _ in range(2):
            for client in idle:
                assert order(client, b"echo again") == b"again\n"
        for client in silent:
            assert order(client, b"echo at last") == b"at last\n"
    assert served.stop() == 0


def test_class_attribute_says_what_is_waited_for(serve) -> None:
    """``parking = {"wait_for": "line"}``: half a line holds no lane."""
    served = serve("handlers:LineHandler", "--set", "parking.wait_for=line", workers=1, threads=1)
    with connect(served) as half:
        half.sendall(b"hel")
        with connect(served) as good:
            assert order(good, b"hello") == b"hello\n"
        half.sendall(b"lo\n")
        assert read_line(half) == b"hello\n"
    assert served.stop() == 0


@pytest.mark.parametrize("bind", BINDS[:1] + BINDS[2:], ids=["tcp", "unix"])
def test_silence_ends_at_its_limits(serve, tmp_path, bind: str) -> None:
    """Before the first line and after one."""
    served = serve("parking_handlers:Orders", *LIMITS, bind=bind.format(tmp_path), workers=1, threads=1)
    with connect(served) as idle, connect(served) as silent:
        assert order(idle, b"echo hi") == b"hi\n"
        assert idle.recv(1) == silent.recv(1) == b""
    assert served.stop() == 0


def test_full_park_sends_the_oldest_away(serve) -> None:
    """``parking = {"max_parked": 3}``."""
    options = ("--set", "parking.max_parked=3", "--set", "parking.wait_for=line")
    served = serve("handlers:LineHandler", *options, workers=1, threads=1)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(5):
            clients.append(stack.enter_context(connect(served)))
            clients[-1].sendall(b"h")  # accepted at once: the kernel keeps those back for a second that say nothing
            if len(clients) > 3:
                assert is_ended(clients[len(clients) - 4])
        for client in clients[2:]:
            assert order(client, b"ello") == b"hello\n"
    assert served.stop() == 0


def test_stop_ends_what_is_parked(serve) -> None:
    """Silent ones and conversations, within a second or two of the stop, not of their limits."""
    served = serve("parking_handlers:Orders", workers=1, threads=2)
    with connect(served) as idle, connect(served) as silent:
        assert order(idle, b"echo hi") == b"hi\n"
        silent.sendall(b"echo")
        served.signal(15)
        assert is_ended(idle)
        assert is_ended(silent)
        assert served.wait() == 0
