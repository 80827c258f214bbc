"""Limits by source, through the real command line; sources are addresses in 127.0.0.0/8."""

import socket

import pytest
from clients import connect, read_line, wait_for
from test_deadlines import totals


def options(**limits: object) -> list[str]:
    return [word for key, value in limits.items() for word in ("--set", f"limits.{key}={value}")]


def come_from(served, address: str) -> socket.socket:
    """A connection whose source is ``address``."""
    return socket.create_connection(("127.0.0.1", served.port), 10, source_address=(address, 0))


def is_served(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"echo hi\n")
        return read_line(sock) == b"hi\n"
    except OSError:
        return False


def comes_in(served, address: str) -> bool:
    """Whether one connection from ``address`` is served. A reset may arrive before connect(2) has returned."""
    try:
        with come_from(served, address) as sock:
            return is_served(sock)
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_source_at_its_limit_is_refused_and_others_are_not(daemon, workers: int) -> None:
    """A01: per_source holds over all workers, to one too many for each that races, and gives back what ends."""
    served = daemon("handlers:OrderHandler", *options(per_source=4), workers=workers, threads=16)
    held = []
    for _ in range(12):
        try:
            held.append(come_from(served, "127.0.0.2"))
        except ConnectionResetError:
            continue  # refused before connect(2) had returned
    kept = [sock for sock in held if is_served(sock)]
    assert 4 <= len(kept) <= 4 + max(0, workers - 1)
    assert comes_in(served, "127.0.0.3")
    for sock in held:
        sock.close()
    wait_for(lambda: comes_in(served, "127.0.0.2"), 10, "the places to be given back")
    assert served.stop() == 0
    counted = totals(served.log())
    assert counted["refused_per_source"] >= 12 - len(kept)
    assert "at limits.per_source" in served.log()
    assert "127.0.0.2" in served.log()


def test_places_of_a_killed_worker_are_given_back(daemon) -> None:
    """SIGKILL: what its connections were counted for is free at once."""
    served = daemon("handlers:OrderHandler", *options(per_source=2), workers=1, threads=8)
    held = [come_from(served, "127.0.0.2") for _ in range(2)]
    assert all(is_served(sock) for sock in held)
    held[0].sendall(b"die\n")

    def is_back() -> bool:
        try:
            with come_from(served, "127.0.0.2") as first, come_from(served, "127.0.0.2") as second:
                return is_served(first) and is_served(second)
        except ConnectionResetError:
            return False

    wait_for(is_back, 20, "the places to be given back")
    for sock in held:
        sock.close()


def test_rate_lets_the_burst_through_and_refuses_the_rest(daemon) -> None:
    """An hour's rate: nothing comes back within the test."""
    served = daemon("handlers:OrderHandler", *options(rate_per_source="5/h", burst=5), workers=2, threads=4)
    answers = [comes_in(served, "127.0.0.2") for _ in range(12)]
    assert 5 <= sum(answers) <= 6  # two workers may race for the last
    assert answers[:5] == [True] * 5
    assert comes_in(served, "127.0.0.3")


def test_denied_and_not_allowed_are_refused_and_exempt_is_not_counted(daemon) -> None:
    """deny wins over allow, and no limit counts the exempt."""
    lists = options(allow="127.0.0.0/28", deny="127.0.0.2", exempt="127.0.0.3", per_source=1)
    served = daemon("handlers:OrderHandler", *lists, workers=1, threads=8)
    assert not comes_in(served, "127.0.0.2")
    assert not comes_in(served, "127.0.1.1")
    exempt = [come_from(served, "127.0.0.3") for _ in range(3)]
    assert all(is_served(sock) for sock in exempt)
    for sock in exempt:
        sock.close()
    assert served.stop() == 0
    assert totals(served.log())["refused_denied"] == 2


def test_refusals_earn_a_ban(daemon) -> None:
    """Three refusals within a minute, and the source is out."""
    limits = options(rate_per_source="1/h", ban_after=3, ban_for="1h")
    served = daemon("handlers:OrderHandler", *limits, workers=1, threads=4)
    assert [comes_in(served, "127.0.0.2") for _ in range(10)] == [True] + [False] * 9
    assert served.stop() == 0
    counted = totals(served.log())
    assert (counted["refused_rate"], counted["refused_banned"]) == (3, 6)


def test_refusal_by_text_says_why(daemon) -> None:
    """refuse_with: the client reads it, and then the end."""
    limits = options(deny="127.0.0.2", refuse_with="busy, come back later")
    served = daemon("handlers:OrderHandler", *limits, workers=1, threads=2)
    with come_from(served, "127.0.0.2") as sock:
        assert read_line(sock) == b"busy, come back later"


def test_dry_run_refuses_nobody_and_says_whom_it_would(daemon) -> None:
    """Counted and logged, and served all the same."""
    served = daemon("handlers:OrderHandler", *options(deny="127.0.0.2", dry_run="true"), workers=1, threads=2)
    with come_from(served, "127.0.0.2") as sock:
        assert is_served(sock)
    assert served.stop() == 0
    counted = totals(served.log())
    assert counted["would_denied"] == counted["served"] == 1
    assert "would be refused" in served.log()


def test_datagrams_obey_the_rate_and_are_dropped(daemon) -> None:
    """A refused datagram is not answered."""
    served = daemon(
        "poolserver.examples.echo:EchoHandler", *options(rate_per_source="3/h", burst=3), bind="udp://127.0.0.1:0"
    )
    with connect(served) as sock:
        for number in range(3):
            sock.send(b"%d" % number)
            assert sock.recv(10) == b"%d" % number
        for _ in range(5):
            sock.send(b"more")
        wait_for(lambda: "above limits.rate_per_source" in served.log(), 10, "the refusal to be said")
        served.counted(rate=5)
    assert served.stop() == 0
    assert totals(served.log())["refused_rate"] == 5
