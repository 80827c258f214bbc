"""Datagrams: where answers leave from, what is too long, what is empty, what the kernel drops (R34, S20, S33, S34)."""

import socket
import struct
import subprocess
import sys
import threading

import pytest
from clients import ask, connect, dial, wait_for

UDP = "udp://127.0.0.1:0"


def asker(host: str = "127.0.0.1", family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A bound socket that is connected to nothing: it sees where answers come from."""
    client = socket.socket(family, socket.SOCK_DGRAM)
    client.settimeout(10)
    client.bind((host, 0))
    return client


def is_silent(client: socket.socket, served, index: int = 0) -> bool:
    """Whether nothing came for what was sent before a last question, which is answered."""
    with dial(served.addresses[index], 10) as other:
        other.send(b"last")
        other.recv(100)
    client.setblocking(False)
    try:
        client.recv(100)
    except BlockingIOError:
        return True
    return False


# -- where answers leave from


@pytest.mark.parametrize("workers", [0, 2])
def test_answer_leaves_from_the_address_that_was_asked(daemon, workers):
    """S20: on a wildcard bind, by DatagramRequestHandler.finish() and by sendto alike."""
    for handler in ("datagram_handlers:Upper", "poolserver.examples.echo:EchoHandler"):
        served = daemon(handler, bind="udp://0.0.0.0:0", workers=workers)
        with asker() as client:
            for host in ("127.0.0.1", "127.0.0.2", "127.77.0.3") * 3:
                client.sendto(b"HELLO", (host, served.port))
                assert client.recvfrom(100) == (b"HELLO", (host, served.port))
        assert served.stop() == 0


def test_lanes_of_one_worker_do_not_mix_up_where_questions_came_to(daemon):
    """Eight clients at once, each to an address of its own, of one socket."""
    served = daemon("datagram_handlers:Upper", bind="udp://0.0.0.0:0", workers=1, threads=8)
    wrong: list[object] = []

    def talk(host: str) -> None:
        with asker() as client:
            for number in range(50):
                text = b"%s %d" % (host.encode(), number)
                client.sendto(text, (host, served.port))
                answer = client.recvfrom(100)
                if answer != (text, (host, served.port)):
                    wrong.append(answer)

    threads = [threading.Thread(target=talk, args=(f"127.0.1.{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_answer_to_ipv4_on_an_ipv6_listener_leaves_from_the_address_that_was_asked(daemon):
    """A dual-stack wildcard bind sees IPv4 addresses mapped into IPv6."""
    bind = ("udp://[::]:0",)
    served = daemon("datagram_handlers:Upper", "--set", "socket.ipv6_only=false", bind=bind)
    with asker() as client:
        for host in ("127.0.0.1", "127.0.0.2"):
            client.sendto(b"HELLO", (host, served.port))
            assert client.recvfrom(100) == (b"HELLO", (host, served.port))
    with asker("::1", socket.AF_INET6) as client:
        client.sendto(b"HELLO", ("::1", served.port))
        assert client.recvfrom(100)[1][:2] == ("::1", served.port)


IN_A_NETWORK_OF_ITS_OWN = """
import socket
from poolserver.datagrams import shared

listener = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
listener.bind(("::", 0))
port = listener.getsockname()[1]
server = shared(listener)
client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
client.settimeout(10)
client.bind(("::1", 0))
for host in ("fd00::7", "::1", "fd00::8"):
    client.sendto(b"hello", (host, port))
    data, address = server.recvfrom(100)
    server.sendto(data, address)
    print(client.recvfrom(100)[1][0])
"""


def test_answer_leaves_from_the_ipv6_address_that_was_asked():
    """On a machine with several, here a network namespace of its own."""
    add = "ip link set lo up && for a in fd00::7 fd00::8; do ip addr add $a/128 dev lo nodad; done"
    words = ["unshare", "--net", "sh", "-c", f'{add} && exec "$0" -c "$1"', sys.executable, IN_A_NETWORK_OF_ITS_OWN]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == ["fd00::7", "::1", "fd00::8"], done.stderr


def test_what_is_no_answer_leaves_as_ever(daemon):
    """To somebody else than the asker, and from a thread that the handler started."""
    served = daemon("datagram_handlers:Relay", bind="udp://0.0.0.0:0")
    with asker() as client, asker() as third:
        client.sendto(b"%d for you" % third.getsockname()[1], ("127.0.0.2", served.port))
        assert third.recv(100) == b"for you"
        assert client.recv(100) == b"relayed"


# -- too long


@pytest.mark.parametrize("server", ["SmallServer", "CountingServer"])
@pytest.mark.parametrize("kind", ["udp", "unixgram"])
def test_datagram_longer_than_max_packet_size_is_refused_and_said(daemon, tmp_path, server, kind):
    """S20: the handler is not given a part of it; what fits is served; a get_request that calls the stock one is no
    different."""
    bind = UDP if kind == "udp" else f"unixgram:{tmp_path}/d.sock"
    served = daemon(None, "--set", f"server.server_class=datagram_handlers:{server}", bind=bind, workers=1)
    with connect(served) as client:
        for size in (101, 5000, 100):
            client.send(b"x" * size)
        assert client.recv(200).startswith(b"X" * 100)
    wait_for(lambda: served.status()["totals"]["refused"].get("oversized") == 2, 10, "what does not fit to be refused")
    served.counted(accepted=3, served=1, oversized=2)
    lines = wait_for(lambda: [line for line in served.log().splitlines() if "is refused" in line], 10, "the log")
    assert f"is longer than {server}.max_packet_size = 100" in lines[0]


def test_get_request_that_cuts_by_itself_is_left_alone(daemon):
    """It reads ten bytes and wants no more."""
    served = daemon(None, "--set", "server.server_class=datagram_handlers:CuttingServer", bind="udp://0.0.0.0:0")
    with asker() as client:
        client.sendto(b"0123456789abcdef", ("127.0.0.2", served.port))
        assert client.recvfrom(100) == (b"0123456789", ("127.0.0.2", served.port))
    assert served.status()["totals"]["refused"]["oversized"] == 0


def test_flood_of_long_datagrams_leaves_a_few_lines(daemon):
    """R34: 64 kB each, two thousand of them."""
    served = daemon("datagram_handlers:Upper", bind=UDP, workers=1)
    with connect(served) as client:
        for _ in range(2000):
            client.send(bytes(65000))
    wait_for(lambda: served.status()["listeners"][0]["queued"] == 0, 20, "room in the receive buffer")
    assert ask(served, b"still here\n") == b"STILL HERE\n"
    assert len(served.log()) < 60_000  # a line for each would be 280 kB


# -- empty


@pytest.mark.parametrize("handler", ["Mute", "MuteInItsOwnWay"])
def test_answer_that_nobody_gave_is_not_sent(daemon, handler):
    """S20: DatagramRequestHandler.finish() would send an empty one."""
    served = daemon(f"datagram_handlers:{handler}", bind=UDP, workers=1, threads=1)
    served_too = daemon("datagram_handlers:Upper", bind=UDP)
    with connect(served) as client:
        for text in (b"hello", b""):
            client.send(text)
        wait_for(lambda: served.status()["totals"]["served"] == 2, 10, "both to be handled")
        assert is_silent(client, served_too)


def test_empty_answer_that_is_meant_is_sent(daemon):
    """By sendto, in the handler."""
    served = daemon("datagram_handlers:MeansEmpty", bind="udp://0.0.0.0:0")
    with asker() as client:
        client.sendto(b"hello", ("127.0.0.2", served.port))
        assert client.recvfrom(100) == (b"", ("127.0.0.2", served.port))


def forge(source: tuple[str, int], target: tuple[str, int], text: bytes) -> None:
    """Send a datagram that says it comes from ``source``. Root only. Source: raw(7), udp(7), RFC 768."""
    header = struct.pack("!4H", source[1], target[1], 8 + len(text), 0)  # no checksum
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as forger:
        forger.bind((source[0], 0))
        forger.sendto(header + text, (target[0], 0))


@pytest.mark.parametrize("is_itself", [True, False], ids=["itself", "each-other"])
def test_two_mute_servers_do_not_answer_each_other(daemon, is_itself):
    """R34, S20: one forged datagram between two, or from one to itself, is one datagram."""
    one = daemon("datagram_handlers:Mute", bind=UDP)
    other = one if is_itself else daemon("datagram_handlers:Mute", bind=UDP)
    forge(("127.0.0.1", other.port), ("127.0.0.1", one.port), b"hello")
    wait_for(lambda: one.status()["totals"]["served"] == 1, 10, "the forged datagram")
    with connect(other) as client:
        client.send(b"after it")
    goal = {one: 1, other: 1} if one is not other else {one: 2}
    for served, count in goal.items():
        wait_for(lambda served=served, count=count: served.status()["totals"]["served"] >= count, 10, "the last one")
        assert served.status()["totals"]["accepted"] == count


# -- what the kernel knows


def test_what_the_kernel_drops_is_in_the_status(daemon):
    """S34: a burst that finds no room is lost, and said so."""
    served = daemon("datagram_handlers:Nap", bind=UDP, workers=1, threads=1)
    with connect(served) as client:
        for _ in range(5000):
            client.send(bytes(1000))
    listener = wait_for(lambda: served.status()["listeners"][0], 10, "the status")
    assert listener["drops"] > 0
    assert listener["drops"] < 5000


PASSING = """
import os, socket, sys

passed = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
passed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
passed.bind(("127.0.0.1", 0))
os.dup2(passed.fileno(), 7)
os.execv(sys.executable, [sys.executable, "-m", "poolserver", "run", *sys.argv[1:]])
"""


def test_address_reuse_of_a_passed_socket_is_taken_back(daemon):
    """S33: systemd sets it on every socket, and with it another user's process could bind the same port."""
    served = daemon("datagram_handlers:Upper", bind="fd://7", program=(sys.executable, "-c", PASSING))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="Address already in use"):
            thief.bind(("127.0.0.1", served.port))
    assert ask(served, b"genuine\n") == b"GENUINE\n"
