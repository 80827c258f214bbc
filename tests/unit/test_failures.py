"""R36: what is logged of a failure names it in bounded space, and nothing that a client chose acts on a terminal."""

import io
import logging
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from poolserver import failures
from poolserver.adapter import log_error
from poolserver.failures import log_failure, log_line, log_stack, say_counted
from poolserver.lines import TextFormatter
from poolserver.log import LineHandler
from poolserver.repeats import LINE_BYTES, RATE, Repeats

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4} [A-Z]+ poolserver \[\d+\]: (?!forged).*")
BELOW = re.compile(r"(?!poolserver:)[ A-Za-z_].*")
FORGED = "\n2026-11-21T09:00:00.123+0000 INFO poolserver [1]: forged\npoolserver: ready on tcp://forged\n\x1b[2J"
ACTING = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Log:
    """The daemon's own log, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handler = LineHandler(str(path))
        self.handler.setFormatter(TextFormatter())
        self.renew()

    def renew(self) -> None:
        """As in a pool that has failed at nothing yet."""
        failures._here.repeats = Repeats(memoryview(bytearray(8)).cast("Q"))
        self.path.write_bytes(b"")

    @property
    def text(self) -> str:
        return self.path.read_text()

    def stand_alone(self) -> None:
        """Without pytest's handlers, whose report pytest-xdist cannot send when a lone surrogate is in it."""
        logger = logging.getLogger("poolserver")
        logger.handlers[:] = [self.handler]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    logger = logging.getLogger("poolserver")
    made = Log(tmp_path / "log")
    before = failures._here.repeats, logger.level, logger.propagate
    logger.addHandler(made.handler)
    logger.propagate = False
    logger.setLevel("INFO")
    yield made
    logger.removeHandler(made.handler)
    made.handler.close()
    failures._here.repeats, logger.level, logger.propagate = before
    logger.setLevel(before[1])


def fail(error: BaseException, text: str = "handler failed for %s", peer: str = "192.0.2.1:5") -> None:
    try:
        raise error
    except BaseException:
        log_failure(text, peer)


def test_first_has_its_traceback_and_repeats_all_that_matters_in_a_line(log: Log) -> None:
    """Peer, class, text and place; the text once in each."""
    while "at test_failures.py" not in log.text:
        fail(KeyError("colour"))
    first, *_, last = log.text.splitlines()
    assert first.endswith("handler failed for 192.0.2.1:5")
    assert "Traceback (most recent call last):" in log.text.splitlines()
    assert re.search(r"handler failed for 192.0.2.1:5: KeyError: 'colour', at test_failures.py:\d+$", last)


@pytest.mark.parametrize("size", [10**3, 10**5, 10**7])
def test_size_of_an_exceptions_text_is_bounded(log: Log, size: int) -> None:
    """It may quote a whole request: the log does not."""
    fail(ValueError("\x00" * size))
    assert "ValueError" in log.text
    assert len(log.text) < 10_000
    error, start = ValueError("\x00" * size), time.monotonic()
    for _ in range(1000):
        fail(error)
    assert len(log.text) < LINE_BYTES + 10_000 + RATE * (time.monotonic() - start)


def test_deep_recursion_is_one_kind_however_deep(log: Log) -> None:
    """A client that chooses the depth does not choose the kind."""

    def descend(depth: int) -> None:
        if depth == 0:
            raise ValueError
        descend(depth - 1)

    for depth in range(2, 300):
        try:
            descend(depth)
        except ValueError:
            log_failure("failed")
    assert len(failures._here.repeats._kinds) == 1


def test_cause_tells_one_kind_from_another(log: Log) -> None:
    """One place that wraps whatever went wrong does not hide a new cause."""

    def wrap(cause: Exception) -> None:
        try:
            raise RuntimeError("service failed") from cause
        except RuntimeError:
            log_failure("failed")

    for _ in range(3):
        wrap(KeyError())
        wrap(ValueError())
    assert len(failures._here.repeats._kinds) == 2


def test_exceptions_that_are_odd_are_logged_all_the_same(log: Log) -> None:
    """A ring of causes, a text that cannot be made, lone surrogates."""
    log.stand_alone()

    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    for error in (one, MuteError(), ValueError("\ud800")):
        fail(error)
    for _ in range(200):
        fail(MuteError())
    assert all(text in log.text for text in ("one", "other", "__str__ failed", r"\ud800"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(text=st.text(), name=st.text(min_size=1), times=st.sampled_from([1, 40, 400]))
@example(text=FORGED, name=FORGED, times=40)
def test_nothing_of_the_peers_acts_or_passes_for_a_line(log: Log, text: str, name: str, times: int) -> None:
    """Fuzzed names, addresses and exception texts, in full, in lines and in what was counted."""
    log.renew()
    for _ in range(times):
        fail(ValueError(text), peer=name)
    log_line(logging.INFO, "get_request failed: %s", text)
    log_stack(logging.WARNING, sys._getframe(), "lane of %s", name)
    say_counted(is_last=True)
    written = log.path.read_bytes().decode()
    assert not ACTING.search(written)
    assert all(LINE.fullmatch(line) or BELOW.fullmatch(line) for line in written.split("\n")[:-1])


@pytest.mark.parametrize("error", [ConnectionResetError, BrokenPipeError, TimeoutError, BlockingIOError])
def test_client_that_leaves_or_falls_silent_costs_one_short_line(log: Log, error: type[Exception]) -> None:
    """S15: at most 200 bytes, the longest address included."""
    peer = ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535, 0, 0)
    for _ in range(2):
        try:
            raise error
        except OSError:
            log_error(peer)
    assert [len(line) <= 200 for line in log.text.splitlines()] == [True, True]
    assert "[ffff:" in log.text
    assert error.__name__ in log.text


def test_backend_that_refuses_is_a_failure_of_the_handler(log: Log) -> None:
    """No client is refused by its own connection."""
    try:
        raise ConnectionRefusedError
    except OSError:
        log_error(("192.0.2.1", 5))
    assert "Traceback" in log.text


def test_a_million_lines_of_clients_that_leave_cost_what_their_rate_allows(log: Log) -> None:
    """S15, R33: what was left out is said with its number."""
    for _ in range(10_000):
        log_line(logging.INFO, "connection of %s ended by %s", "192.0.2.1:5", "ConnectionResetError")
    assert len(log.text) < LINE_BYTES + 10_000
    say_counted(is_last=True)
    counted = int(re.findall(r": (\d+) more of these were not written", log.text)[0])
    assert counted + log.text.count("\n") - 1 == 10_000


def test_lines_below_the_level_cost_nothing(log: Log) -> None:
    """With log.level = error nobody's leaving uses up what failures may write."""
    logging.getLogger("poolserver").setLevel("ERROR")
    for _ in range(10_000):
        log_line(logging.INFO, "connection of %s ended by %s", "192.0.2.1:5", "ConnectionResetError")
    fail(ValueError("here"))
    assert "Traceback" in log.text
    assert "more of these" not in log.text


def test_formatters_of_others_print_what_ours_does(log: Log) -> None:
    """In a library call the log is the caller's: tracebacks and stacks are where logging has them, and as short."""
    stream = io.StringIO()
    theirs = logging.StreamHandler(stream)
    theirs.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger("poolserver").addHandler(theirs)
    try:
        fail(ValueError("\x1b" * 100_000))
        log_stack(logging.WARNING, sys._getframe(), "lane %d", 3)
    finally:
        logging.getLogger("poolserver").removeHandler(theirs)
    failure, stack = stream.getvalue().split("WARNING lane 3\n")
    assert "Traceback" in failure
    assert "ValueError" in failure
    assert len(failure) < 10_000
    assert not ACTING.search(failure)
    assert "test_formatters_of_others" in stack
