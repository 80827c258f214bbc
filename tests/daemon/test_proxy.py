"""The PROXY protocol, served: who is taken for the client, what is refused, what waits, and what it costs (R38)."""

import contextlib
import random
import socket
import struct
import time
from signal import SIGTTOU

import pytest
from clients import connect, dial, read_line, wait_for

from poolserver.proxy_protocol import V2_SIGNATURE

ON = ("--set", "proxy_protocol.mode=any", "--set", "proxy_protocol.trusted=127.0.0.0/8")
WHOAMI = "proxy_handlers:Whoami"


def v1(host: str, port: int = 4711) -> bytes:
    return b"PROXY TCP4 %s 198.51.100.1 %d 443\r\n" % (host.encode(), port)


def v2(host: str, port: int = 4711, more: bytes = b"") -> bytes:
    family, kind = (socket.AF_INET6, 0x21) if ":" in host else (socket.AF_INET, 0x11)
    address = socket.inet_pton(family, host)
    body = address + bytes(len(address)) + struct.pack("!HH", port, 443) + more
    return V2_SIGNATURE + struct.pack("!BBH", 0x21, kind, len(body)) + body


LOCAL = V2_SIGNATURE + b"\x20\0\0\0"


def whoami(served, *pieces: bytes, index: int = 0) -> bytes:
    """Whom the server takes for the client that sends these pieces, each by itself; b"" if it hangs up.

    What comes after is read, too: an end with something unread would be an error to the handler.
    """
    with connect(served, index) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                client.sendall(piece)
            line = read_line(client)
            client.shutdown(socket.SHUT_WR)
            while client.recv(1000):
                pass
        except OSError:
            return b""
        return line.partition(b"\n")[0] + b"\n" if line else b""


# -- who the client is


@pytest.mark.parametrize("workers", [0, 2])
def test_handler_sees_the_real_client(daemon, workers):
    """At once, in one piece with data, or byte by byte; a handler that speaks first is no different."""
    served = daemon(WHOAMI, *ON, workers=workers)
    old, new = ("192.0.2.7", 4711), ("2001:db8::7", 4711, 0, 0)
    headers = [
        (v1("192.0.2.7"), old),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n", new),
        (v2("192.0.2.7"), old),
        (v2("2001:db8::7"), new),
        (v2("192.0.2.7", more=b"\x01\0\2h2"), old),
    ]
    for header, client in headers:
        expected = f"{client!r}\n".encode()
        assert whoami(served, header) == expected, header
        assert whoami(served, header + b"data\n") == expected, header
        assert whoami(served, *(header[place : place + 1] for place in range(len(header)))) == expected, header
    counted = served.counted(served=3 * len(headers))
    assert (counted["accepted"], counted["proxy"]) == (3 * len(headers), 0)


@pytest.mark.parametrize("handler", ["Whoami", "WaitingWhoami"])
def test_what_follows_the_header_is_the_handlers(daemon, handler):
    """Also another header: it is data."""
    served = daemon(f"proxy_handlers:{handler}", *ON)
    with connect(served) as client:
        client.sendall(v2("192.0.2.7") + v1("192.0.2.8") + b"and more\n")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as reply:
            assert reply.read() == b"('192.0.2.7', 4711)\n" + v1("192.0.2.8") + b"and more\n"


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
def test_health_check_of_the_proxy_is_answered_as_its_own(daemon, header):
    """LOCAL: the connection's own peer is the client."""
    served = daemon(WHOAMI, *ON)
    with connect(served) as client:
        client.sendall(header)
        assert read_line(client) == f"{client.getsockname()!r}\n".encode()


def test_unix_peer_is_trusted(daemon, tmp_path):
    """Whoever may connect to the socket's file."""
    options = ("--set", "proxy_protocol.mode=v2", "--set", "proxy_protocol.trusted=192.0.2.1")
    served = daemon(WHOAMI, *options, bind=f"unix:{tmp_path}/s.sock")
    for header, expected in ((v2("192.0.2.7"), b"('192.0.2.7', 4711)\n"), (LOCAL, b"('unix:uid=")):
        with connect(served) as client:
            for place in range(len(header)):
                client.sendall(header[place : place + 1])
            assert read_line(client).startswith(expected)


def test_keep_alive_conversation_keeps_its_client(daemon):
    """Parked between two requests, and taken up by any lane."""
    served = daemon("proxy_handlers:WebWhoami", *ON)
    with connect(served) as client, client.makefile("rb") as replies:
        client.sendall(v2("192.0.2.7"))
        for _ in range(3):
            client.sendall(b"GET / HTTP/1.1\r\nHost: me\r\n\r\n")
            head = list(iter(replies.readline, b"\r\n"))
            assert head[0] == b"HTTP/1.1 200 OK\r\n"
            assert replies.readline() == b"('192.0.2.7', 4711)\n"
            wait_for(lambda: served.status()["parked"]["between"] == 1, 10, "the connection to be parked")
    assert "192.0.2.7 - - [" in served.log()  # http.server's own access line


# -- limits, bans, status


def test_limits_and_status_know_the_real_client(daemon):
    """Two clients of one proxy are two sources, and one client's second connection is its second."""
    served = daemon(WHOAMI, *ON, "--set", "limits.per_source=1", workers=2, threads=4)
    with connect(served) as first, connect(served) as second:
        for client, host in ((first, "192.0.2.7"), (second, "192.0.2.8")):
            client.sendall(v1(host))
            assert read_line(client) == b"('%s', 4711)\n" % host.encode()
        assert whoami(served, v1("192.0.2.7")) == b""
        status = served.status()
        peers = {lane["peer"] for worker in status["workers"] for lane in worker["lanes"]} - {None}
        assert peers == {"192.0.2.7:4711", "192.0.2.8:4711"}
        sources = {each["source"]: (each["active"], each["refused"]) for each in status["sources"]}
        assert sources["192.0.2.7"] == (1, 1)
        assert sources["192.0.2.8"] == (1, 0)
        counted = served.counted(per_source=1)
        assert (counted["accepted"], counted["proxy"]) == (3, 0)
    wait_for(lambda: served.status()["pool"]["busy"] == 0, 10, "both to be over")
    assert whoami(served, v1("192.0.2.7")) == b"('192.0.2.7', 4711)\n"


def test_bans_and_networks_are_for_the_real_client(daemon):
    """The proxy, through which all others come, is not banned with one of them."""
    limits = ("limits.rate_per_source=1/h", "limits.ban_after=2", "limits.deny=203.0.113.0/24")
    served = daemon(WHOAMI, *ON, *(word for limit in limits for word in ("--set", limit)), workers=1)
    assert whoami(served, v1("192.0.2.7"))
    assert [whoami(served, v1("192.0.2.7")) for _ in range(4)] == [b""] * 4
    assert whoami(served, v1("203.0.113.9")) == b""
    assert whoami(served, v1("192.0.2.8")) == b"('192.0.2.8', 4711)\n"
    counted = served.counted(served=2)
    assert (counted["rate"], counted["banned"], counted["denied"]) == (2, 2, 1)
    assert counted["accepted"] == 7


def test_waiting_clients_are_counted_as_themselves(daemon):
    """Parked for its line, a connection counts for the real client's limit, and is given back when it leaves."""
    served = daemon("proxy_handlers:WaitingWhoami", *ON, "--set", "limits.per_source=1", workers=2, threads=1)
    for _ in range(3):
        with connect(served) as waiting:
            waiting.sendall(v1("192.0.2.7"))
            wait_for(lambda: served.status()["parked"]["new"] == 1, 10, "the first to be parked")
            assert whoami(served, v1("192.0.2.7"), b"line\n") == b""
            assert whoami(served, v1("192.0.2.8"), b"line\n") == b"('192.0.2.8', 4711)\n"
        served.wait_open(0)


# -- who is refused


def test_peer_that_is_not_trusted_is_refused_unheard(daemon):
    """Whatever it sends, and though it sends nothing."""
    served = daemon(WHOAMI, "--set", "proxy_protocol.mode=any", "--set", "proxy_protocol.trusted=192.0.2.0/24")
    for times, sent in enumerate((v1("192.0.2.7"), v2("192.0.2.7"), b"hello\n", b""), 1):
        assert whoami(served, sent) == b"", sent
        counted = served.counted(proxy=times)
        assert (counted["accepted"], counted["served"]) == (times, 0), sent
    assert "is refused: it is not in proxy_protocol.trusted" in served.log()


NO_HEADERS = (
    b"hello\n",
    b"PROXY " + b"x" * 200,
    b"PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n",
    V2_SIGNATURE + b"\x21\x11\xff\xff",
    V2_SIGNATURE + b"\x21\x99\0\0",
)
BEGINNINGS = b"", b"PROXY TCP4 19", v2("192.0.2.7")[:-1]


def test_what_is_no_header_is_refused(daemon):
    """At once: nobody waits for its end. The lane lives on."""
    served = daemon(WHOAMI, *ON, "--set", "proxy_protocol.timeout=60", workers=1, threads=1)
    for times, sent in enumerate(NO_HEADERS, 1):
        for _ in range(3):
            assert whoami(served, sent) == b"", sent
        assert whoami(served, v1("192.0.2.7")) == b"('192.0.2.7', 4711)\n", sent
        counted = served.counted(served=times)
        assert (counted["accepted"], counted["proxy"], counted["errors"]) == (4 * times, 3 * times, 0), sent
    assert "Traceback" not in served.log()


def test_end_within_the_header_is_refused(daemon):
    """No handler is called for it."""
    served = daemon(WHOAMI, *ON, workers=1, threads=1)
    for times, sent in enumerate(BEGINNINGS, 1):
        with connect(served) as client:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            assert read_line(client) == b"", sent
        served.counted(proxy=times, accepted=times, served=0)


def test_header_that_does_not_come_is_waited_for_so_long_and_no_longer(daemon):
    """proxy_protocol.timeout, however it trickles."""
    served = daemon(WHOAMI, *ON, "--set", "proxy_protocol.timeout=0.5", workers=1, threads=1)
    for times, sent in enumerate(BEGINNINGS, 1):
        start = time.monotonic()
        with connect(served) as client:
            client.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b"", sent
        assert time.monotonic() - start >= 0.5
        served.counted(proxy=times, accepted=times, served=0)


def test_only_the_version_that_is_configured_is_taken(daemon):
    """The log says why the other is not."""
    trusted = ("--set", "proxy_protocol.trusted=127.0.0.1")
    for mode, good, bad in (("v1", v1("192.0.2.7"), v2("192.0.2.7")), ("v2", v2("192.0.2.7"), v1("192.0.2.7"))):
        served = daemon(WHOAMI, "--set", f"proxy_protocol.mode={mode}", *trusted)
        assert whoami(served, good)
        assert whoami(served, bad) == b""
        assert f"where proxy_protocol.mode is {mode}" in served.log()


def test_mode_without_anybody_to_trust_is_refused(daemon):
    """With exit code 78 and the key."""
    served = daemon(WHOAMI, "--set", "proxy_protocol.mode=v1", ready=False)
    assert served.wait() == 78
    assert "proxy_protocol.trusted: must name the proxies' networks" in served.log()


# -- what it costs


def test_connections_without_a_header_hold_no_lane(daemon):
    """Three hundred of them, beside one lane."""
    served = daemon(WHOAMI, *ON, "--set", "proxy_protocol.timeout=60", workers=1, threads=1)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(served)) for _ in range(300)]
        for client in silent[::2]:
            client.sendall(b"PROXY TCP4 192.")
        wait_for(lambda: served.status()["parked"]["new"] == 300, 10, "all to be parked")
        assert whoami(served, v1("192.0.2.7")) == b"('192.0.2.7', 4711)\n"
        silent[0].sendall(b"0.2.8 192.0.2.1 1 2\r\n")
        assert read_line(silent[0]) == b"('192.0.2.8', 1)\n"
    served.counted(proxy=299)


def test_connection_is_parked_once_for_its_header_and_again_for_its_line(daemon):
    """Byte by byte, with a look in between that it does wait."""
    served = daemon("proxy_handlers:WaitingWhoami", *ON, "--set", "proxy_protocol.timeout=60", workers=1, threads=1)
    with connect(served) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (v2("192.0.2.7"), b"line\n"):
            for place in range(len(piece)):
                wait_for(lambda: served.status()["parked"]["new"] == 1, 10, "it to be parked")
                client.sendall(piece[place : place + 1])
        assert read_line(client).startswith(b"('192.0.2.7', 4711)\n")


def has_ended(client: socket.socket) -> bool:
    """Whether the server has hung up."""
    client.settimeout(0)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    finally:
        client.settimeout(10)


def test_full_park_lets_some_go(daemon):
    """max_parked bounds them like all that wait."""
    options = ("--set", "proxy_protocol.timeout=60", "--set", "parking.max_parked=64")
    served = daemon(WHOAMI, *ON, *options, workers=1, threads=1)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(served)) for _ in range(70)]
        served.counted(max_parked=6)
        wait_for(lambda: sum(map(has_ended, silent)) == 6, 10, "six to be cut")
        left = [client for client in silent if not has_ended(client)]
        left[-1].sendall(v1("192.0.2.7"))
        assert read_line(left[-1]) == b"('192.0.2.7', 4711)\n"


def test_waiting_connections_move_when_their_worker_leaves(daemon):
    """With all that they have sent so far, and are served as whom they then say."""
    served = daemon(WHOAMI, *ON, "--set", "proxy_protocol.timeout=60", workers=2, threads=2)
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(connect(served)) for _ in range(40)]
        for client in waiting[::2]:
            client.sendall(b"PROXY TCP4 192.0.2.")
        wait_for(lambda: served.status()["parked"]["new"] == 40, 10, "all to be parked")
        served.signal(SIGTTOU)
        wait_for(lambda: len(served.workers()) == 1, 20, "one worker to leave")
        for number, client in enumerate(waiting):
            head = b"" if number % 2 == 0 else b"PROXY TCP4 192.0.2."
            client.sendall(head + b"%d 198.51.100.1 %d 443\r\n" % (number, number))
            assert read_line(client) == b"('192.0.2.%d', %d)\n" % (number, number)
            client.close()
    served.counted(served=40, accepted=40, proxy=0)


def test_wrong_headers_cost_a_refusal_and_nothing_else(daemon):
    """R38: two thousand mutations; every connection is counted once, none raises."""
    served = daemon(WHOAMI, *ON, "--set", "proxy_protocol.timeout=10", workers=2, threads=4)
    dice = random.Random(38)
    seeds = [v1("192.0.2.7"), v2("192.0.2.7"), v2("2001:db8::7", more=b"\x04\0\1\0"), LOCAL, b"PROXY UNKNOWN\r\n"]
    with contextlib.ExitStack() as stack:
        for number in range(2000):
            octets = bytearray(dice.choice(seeds))
            for _ in range(dice.randint(1, 3)):
                place = dice.randrange(len(octets))
                octets[place : place + dice.randint(0, 2)] = dice.randbytes(dice.randint(0, 2))
            client = dial(served.addresses[0], 10)
            with contextlib.suppress(OSError):
                client.sendall(octets)
                client.shutdown(socket.SHUT_WR)
            stack.callback(client.close)
            if number % 100 == 99:
                stack.pop_all().close()
    assert whoami(served, v1("192.0.2.7")) == b"('192.0.2.7', 4711)\n"

    def all_ended() -> dict | None:
        found = served.status()["totals"]
        ended = found["served"] + found["errors"] + sum(found["refused"].values()) + sum(found["timeouts"].values())
        return found if found["accepted"] == ended == 2001 else None

    wait_for(all_ended, 20, "all to be counted")
    assert "Traceback" not in served.log()
    assert "internal error" not in served.log()
