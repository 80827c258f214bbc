"""S15, R36: failures that repeat are written in full, then in short, then counted. The clock is simulated."""

from collections import Counter
from collections.abc import Hashable

import pytest

from poolserver.repeats import (
    FIRST_BYTES,
    FULL_GUESS,
    KIND_SECONDS,
    MAX_KINDS,
    PREFIX_BYTES,
    RATE,
    SAY_INTERVAL,
    Form,
    Repeats,
)

SECOND = 10**9
NOW = 1_000_000 * SECOND
ERROR = 40


class Pool:
    """Workers that share a word, and what they write."""

    def __init__(self, workers: int = 1) -> None:
        self.word = memoryview(bytearray(8)).cast("Q")
        self.workers = [Repeats(self.word) for _ in range(workers)]
        self.now = NOW
        self.written = 0
        self.forms: Counter[Form] = Counter()
        self.said: list[str] = []

    def fail(self, kind: Hashable = "kind", worker: int = 0, traceback: int = 1500, line: str = "x" * 150) -> Form:
        repeats = self.workers[worker]
        form = repeats.judge(kind, ERROR, line, self.now)
        if form is Form.FULL:
            repeats.charge(traceback - FULL_GUESS, self.now)
        self.written += {Form.FULL: traceback, Form.LINE: len(line) + PREFIX_BYTES, Form.COUNTED: 0}[form]
        self.forms[form] += 1
        return form

    def tick(self, *, is_last: bool = False) -> None:
        for repeats in self.workers:
            for _, text in repeats.sayings(self.now, is_last=is_last):
                self.said.append(text)
                self.written += len(text) + PREFIX_BYTES

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)
        self.tick()

    @property
    def counted(self) -> int:
        return sum(int(text.split()[0]) for text in self.said)


def test_failure_now_and_then_is_always_written_in_full() -> None:
    """One each half second, day after day."""
    pool = Pool()
    for _ in range(1000):
        assert pool.fail() is Form.FULL
        pool.wait(0.5)
    assert pool.said == []


def test_burst_is_written_in_full_then_in_lines_then_counted() -> None:
    """Each form in its turn, and no other order."""
    pool = Pool()
    forms = [pool.fail() for _ in range(200)]
    assert forms == sorted(forms, key=list(Form).index)
    assert pool.forms[Form.FULL] > 3
    assert pool.forms[Form.LINE] > 30
    assert pool.forms[Form.COUNTED] > 30


def test_what_was_counted_is_said_soon_and_once() -> None:
    """With the latest of them, after an interval; then nothing, until there is more."""
    pool = Pool()
    while pool.fail(line="the last") is not Form.COUNTED:
        pass
    pool.wait(SAY_INTERVAL - 1)
    assert pool.said == []
    pool.wait(1)
    assert pool.said == ["1 more of these were not written: the last"]
    pool.wait(SAY_INTERVAL)
    assert len(pool.said) == 1


def test_end_leaves_nothing_unsaid() -> None:
    """A worker that leaves says what it has counted."""
    pool = Pool()
    for _ in range(1000):
        pool.fail()
    pool.tick(is_last=True)
    assert pool.counted == pool.forms[Form.COUNTED] > 0


@pytest.mark.parametrize("workers", [1, 4, 64])
def test_ten_thousand_a_second_write_less_than_ten_kilobytes(workers: int) -> None:
    """R36: 10^5 failing requests within 10 s, over however many workers; none is lost from the counts."""
    pool = Pool(workers)
    for number in range(100_000):
        pool.fail(worker=number % workers)
        pool.now += SECOND // 10_000
        if number % 1000 == 0:
            pool.tick()
    assert pool.written <= 10 * 10_000
    pool.tick(is_last=True)
    assert pool.counted + pool.forms[Form.FULL] + pool.forms[Form.LINE] == 100_000


def test_flood_that_goes_on_is_held_to_the_rate() -> None:
    """Minutes of it, of as many kinds as an attacker can think of: no kind costs more than the rate has."""
    pool = Pool(4)
    for number in range(200_000):
        pool.fail(kind=number, worker=number % 4)
        pool.now += SECOND // 1000
        if number % 1000 == 0:
            pool.tick()
    assert pool.written <= 200 * RATE + FIRST_BYTES + 4 * (MAX_KINDS + 1) * 300
    assert all(len(repeats._kinds) <= MAX_KINDS + 1 for repeats in pool.workers)


def test_new_kind_is_written_in_full_in_the_midst_of_a_flood() -> None:
    """The operator sees each distinct error at once, in whichever worker."""
    pool = Pool(4)
    for number in range(50_000):
        pool.fail("old", worker=number % 4)
        pool.now += SECOND // 5000
    assert pool.fail("old") is not Form.FULL
    assert pool.fail("new", worker=1) is Form.FULL
    assert pool.fail("new", worker=1) is not Form.FULL


def test_kind_is_written_in_full_again_after_a_while() -> None:
    """A log that is rotated meanwhile still says what it is."""
    pool = Pool()
    written = []
    for second in range(4 * int(KIND_SECONDS)):
        written += [second for _ in range(500) if pool.fail() is Form.FULL]
        pool.wait(1)
    again = [second for second in written if second >= 1]
    assert again[0] == pytest.approx(KIND_SECONDS, abs=2)
    assert len(again) == 3


def test_scribbled_word_silences_nobody_for_long() -> None:
    """A handler that writes into shared memory can hide failures for seconds, not for ever."""
    pool = Pool()
    pool.word[0] = 2**64 - 1
    assert pool.fail() is Form.COUNTED
    pool.word[0] = NOW + 10**6 * SECOND
    pool.tick(is_last=True)
    pool.wait(2 * FIRST_BYTES / RATE)
    assert pool.fail() is Form.FULL
