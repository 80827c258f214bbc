"""R36: requests that fail by the thousand do not flood the log, hide no other failure, and put nothing into it that
acts. The rules are tested in unit (``test_repeats.py``, ``test_failures.py``); this is the pool as a whole."""

import re
import socket
import time

import pytest
from clients import Storm, ask, wait_for
from test_deadlines import totals

from poolserver.repeats import FIRST_BYTES

OF_THESE = re.compile(r": (\d+) more of these were not written: ")


def failing(client: socket.socket, _line: bytes) -> bool:
    """A request whose handler raises."""
    client.sendall(b"raise\n")
    return client.recv(1) == b""


def said(log: str) -> int:
    """How many failures the log tells of: in full, in a line, or by their number."""
    lines = [line for line in log.splitlines() if "handler failed for" in line]
    counts = [int(found[1]) for line in lines if (found := OF_THESE.search(line))]
    return len(lines) - len(counts) + sum(counts)


def assert_failures_do_not_flood(daemon, requests: int, within: float) -> None:
    served = daemon("trap_handlers:TrapHandler", workers=4, threads=8)
    start = time.monotonic()
    with Storm(served, clients=8, requests=requests // 8, exchange=failing) as storm:
        storm.wait_for_more(requests // 20)
        assert ask(served, b"throw LookupError\n") == b""
        wait_for(lambda: "\nLookupError: ordered to throw" in served.log(), 20, "the traceback of a new failure")
        storm.join(within)
    assert storm.counts.is_lossless, storm.counts
    assert served.stop() == 0
    seconds = time.monotonic() - start
    assert len(served.log()) <= 10_000 * seconds + FIRST_BYTES
    assert said(served.log()) == totals(served.log())["errors"] == requests + 1


def test_thousands_of_failing_requests_write_less_than_ten_kilobytes_a_second(daemon):
    """R36: the pool's whole log; each failure is told of, most by number, and a new one at once, in full."""
    assert_failures_do_not_flood(daemon, 8_000, 60)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_hundred_thousand_failing_requests_write_less_than_ten_kilobytes_a_second(daemon):
    """R36: the same with 10^5."""
    assert_failures_do_not_flood(daemon, 100_000, 300)


def test_clients_that_time_out_by_the_thousand_are_counted(daemon):
    """S15: info lines have the same bound."""
    served = daemon("attack_handlers:ReadsRaw", "--set", "timeouts.idle=0.01", workers=2, threads=8)

    def waits(client: socket.socket, _line: bytes) -> bool:
        return client.recv(1) == b""

    with Storm(served, clients=8, requests=125, exchange=waits) as storm:
        storm.join(60)
    assert served.stop() == 0
    lines = [line for line in served.log().splitlines() if "ended by BlockingIOError" in line]
    counts = [int(found[1]) for line in lines if (found := OF_THESE.search(line))]
    assert len(lines) - len(counts) + sum(counts) == totals(served.log())["timeout_idle"] == 1000
    assert sum(counts) > 100


FORGED = (
    b"x\r\n2026-11-21T09:00:00.123+0000 INFO master [1]: all is well\x1b[2J\x1b]0;owned\x07\x9b31m\r\n"
    b"poolserver: ready on tcp://all.is.well:1 (pid 1, 1 workers x 1 lanes)\n"
)


def test_what_a_client_sends_does_not_act_in_the_log(daemon):
    """R36: neither terminal sequences nor lines of its own, in full or in short."""
    served = daemon("attack_handlers:Quotes", workers=1, threads=1)
    for _ in range(40):
        assert ask(served, FORGED) == b""
    assert served.stop() == 0
    assert_harmless(served.log_path.read_bytes())
    assert "all is well" in served.log()
    assert len(served.ready_lines()) == 1


def test_address_of_a_peer_does_not_act_in_the_log(daemon, tmp_path):
    """R36: a Unix datagram peer names itself as it likes."""
    served = daemon("attack_handlers:Quotes", bind=f"unixgram:{tmp_path}/d.sock", workers=1, threads=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(f"{tmp_path}/\x1b[31m\n2026 INFO forged")
        for _ in range(40):
            peer.sendto(FORGED, f"{tmp_path}/d.sock")
    wait_for(lambda: said(served.log()) >= 8, 20, "failures in the log")
    assert served.stop() == 0
    assert_harmless(served.log_path.read_bytes())
    assert r"\x1b[31m\n2026 INFO forged" in served.log()


def assert_harmless(log: bytes) -> None:
    text = log.decode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    ours = re.compile(r"\d{4}-\S+ [A-Z]+ (master|worker \d+) \[\d+\]: (?!all is well)|[ TVp]")
    assert [line for line in text.splitlines() if not ours.match(line)] == []
