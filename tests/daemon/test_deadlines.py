"""first_byte, idle and handler deadlines, through the real command line."""

import pytest
from clients import connect, read_line, wait_for


def options(**timeouts: float) -> list[str]:
    return [word for key, value in timeouts.items() for word in ("--set", f"timeouts.{key}={value}")]


def spoken(**timeouts: float) -> list[str]:
    """Likewise, where handlers, and so these times, begin once their clients have said something."""
    return options(first_byte=30, **timeouts)


def totals(log: str) -> dict[str, int]:
    """The counters of the line that a service ends with."""
    words = log.rpartition("stopped: ")[2].splitlines()[0].split(", ")
    return {name: int(count) for count, _, name in (word.partition(" ") for word in words)}


def test_client_that_never_speaks_is_cut_and_its_handler_never_called(daemon) -> None:
    """A01, A02, R30: first_byte: lanes come back, and a good client is served meanwhile and after."""
    served = daemon("handlers:OrderHandler", *options(first_byte=1), workers=1, threads=4)
    silent = [connect(served) for _ in range(4)]
    try:
        for sock in silent:
            assert sock.recv(1) == b""
    finally:
        for sock in silent:
            sock.close()
    with connect(served) as good:
        good.sendall(b"echo hi\n")
        assert read_line(good) == b"hi\n"
    assert served.stop() == 0
    assert totals(served.log())["timeout_first_byte"] == 4


def test_silent_conversation_is_cut_by_idle_and_counted(daemon) -> None:
    """S15: idle: the handler sees the end of its input after the time-out, without a system call of its own."""
    served = daemon("handlers:OrderHandler", *spoken(idle=0.3), workers=1, threads=1)
    with connect(served) as sock:
        sock.sendall(b"echo hi\n")
        assert read_line(sock) == b"hi\n"
        assert sock.recv(1) == b""
    assert served.stop() == 0
    assert totals(served.log())["timeout_idle"] == 1


def test_handler_deadline_cuts_a_trickle_and_logs_the_stack(daemon) -> None:
    """S15, R32: handler: a byte now and then does not keep the lane, and the log shows where the lane was."""
    served = daemon("handlers:OrderHandler", *options(handler=0.5), workers=1, threads=1)
    with connect(served) as sock:
        sock.sendall(b"x")

        def is_cut() -> bool:
            try:
                sock.sendall(b"x")
            except OSError:
                return True
            return False

        wait_for(is_cut, 15, "the trickling client to be cut")
    assert served.stop() == 0
    assert "reached timeouts.handler" in served.log()
    assert "serve_forever" in served.log()  # the stack
    assert totals(served.log())["timeout_handler"] == 1


@pytest.mark.parametrize("handler", ["handlers:OrderHandler", "aio_handlers:orders"])
def test_status_tells_what_is_left_of_a_deadline_that_was_moved(daemon, handler: str) -> None:
    """extend: of this connection only, not of the next in its lane."""
    served = daemon(handler, *options(handler=100), workers=1, threads=1)

    def left(order: bytes) -> float:
        with connect(served) as sock:
            sock.sendall(order)
            assert read_line(sock)
            return served.status()["workers"][0]["lanes"][0]["deadline_left"]

    assert 1000 < left(b"extend 1000\n") < 1100
    assert 0 < left(b"echo hi\n") <= 100


def test_handler_that_does_not_come_back_is_said_to_hang(daemon) -> None:
    """A lane past deadline and grace counts as hung, and the other lanes go on."""
    served = daemon("handlers:OrderHandler", *spoken(handler=1), workers=1, threads=2)
    with connect(served) as stuck:
        stuck.sendall(b"sleep 60\n")
        wait_for(lambda: "hangs:" in served.log(), 20, "the hung lane to be named")
        with connect(served) as good:
            good.sendall(b"echo hi\n")
            assert read_line(good) == b"hi\n"


@pytest.mark.parametrize("timeouts", [{"first_byte": 5}, {"handler": 5}, {"idle": 5}])
def test_clients_within_their_deadlines_notice_nothing(daemon, timeouts: dict[str, float]) -> None:
    """A deadline that is not reached changes nothing."""
    served = daemon("handlers:OrderHandler", *options(**timeouts), workers=1, threads=2)
    for _ in range(20):
        with connect(served) as sock:
            sock.sendall(b"echo hi\n")
            assert read_line(sock) == b"hi\n"
    assert served.stop() == 0
    counted = totals(served.log())
    assert counted["served"] == counted["accepted"] == 20
