"""The inquiry and what is made of its answers."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolserver import stacks
from poolserver.inquiry import FORCED_PATIENCE, PATIENCE, Inquiry
from poolserver.whereabouts import stacks_text

SNAPSHOT = {
    "workers": [
        {
            "pid": 7,
            "state": "ready",
            "lanes": [
                {"state": "idle", "since": 61.0, "peer": None},
                {"state": "busy", "since": 2.0, "peer": "127.0.0.1:4711\x1b[2J"},
            ],
        }
    ]
}


class Asked:
    """An inquiry with two workers, whose pipes the test writes to."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []
        self.told: list[tuple[int, dict[int, str]]] = []
        self.inquiry = Inquiry(
            lambda serial, signum: self.sent.append((serial, signum)),
            lambda asker, texts: self.told.append((asker, texts)),
        )
        self.pipes = {}
        for serial in (1, 2):
            with self.inquiry.pipe(serial) as fd:
                self.pipes[serial] = os.dup(fd)

    def write(self, serial: int, octets: bytes, now: float) -> None:
        os.write(self.pipes[serial], octets)
        self.turn(now)

    def turn(self, now: float) -> None:
        self.inquiry.attend(list(self.inquiry.interests()), now)

    def leave(self, serial: int) -> None:
        os.close(self.pipes.pop(serial))


@pytest.fixture
def asked() -> Iterator[Asked]:
    one = Asked()
    yield one
    for serial in list(one.pipes):
        one.leave(serial)
    one.inquiry.close()


def test_all_have_answered_and_every_asker_is_told(asked: Asked) -> None:
    """Who asks meanwhile shares the answers."""
    asked.inquiry.begin(5, 0.0)
    asked.inquiry.begin(6, 0.1)
    assert asked.sent == [(1, stacks.ASK), (2, stacks.ASK)]
    asked.write(1, b"> one" + stacks.END, 0.2)
    assert not asked.told
    asked.write(2, b"> two" + stacks.END, 0.2)
    assert asked.told == [(asker, {1: "> one\n.\n", 2: "> two\n.\n"}) for asker in (5, 6)]


def test_silent_worker_is_forced_and_then_given_up(asked: Asked) -> None:
    """Within a bound."""
    asked.inquiry.begin(5, 0.0)
    asked.write(1, b"> one" + stacks.END, 0.0)
    assert asked.inquiry.deadline() == PATIENCE
    asked.turn(PATIENCE)
    assert asked.sent[2:] == [(2, stacks.FORCE)]
    asked.write(2, b"Thread 0x1 (most recent call first):\n", PATIENCE + 0.1)
    asked.turn(PATIENCE + FORCED_PATIENCE)
    assert asked.told[0][1][2].startswith("Thread 0x1")


def test_late_answer_is_not_taken_for_the_next(asked: Asked) -> None:
    """What a thawed worker writes meanwhile is thrown away."""
    os.write(asked.pipes[1], b"> stale" + stacks.END)
    asked.inquiry.begin(5, 0.0)
    asked.write(1, b"> fresh" + stacks.END, 0.0)
    asked.write(2, stacks.END, 0.0)
    assert asked.told[0][1][1] == "> fresh\n.\n"


def test_worker_that_died_is_not_waited_for(asked: Asked) -> None:
    """Its pipe is closed."""
    asked.inquiry.begin(5, 0.0)
    asked.leave(2)
    asked.turn(0.0)
    asked.write(1, stacks.END, 0.0)
    assert list(asked.told[0][1]) == [1]
    assert len(asked.inquiry.interests()) == 1


@pytest.mark.parametrize("is_buried_first", [True, False])
def test_last_words_are_told_once_and_then_forgotten(asked: Asked, is_buried_first: bool) -> None:
    """Whichever end is seen first, of the process or of its pipe: clients that crash workers fill nobody's memory."""
    os.write(asked.pipes[1], f"{stacks.CRASH}: Segmentation fault\n".encode())
    asked.leave(1)
    if not is_buried_first:
        asked.turn(0.0)  # takes the text
        asked.turn(0.0)  # sees the end
    assert asked.inquiry.last_words(1).startswith(stacks.CRASH)
    asked.turn(0.0)
    assert asked.inquiry.last_words(1) == ""


def test_worker_without_its_pipe_is_not_examined(asked: Asked) -> None:
    """A handler may have closed it; nobody waits for an answer then."""
    asked.leave(1)
    asked.turn(0.0)
    assert not asked.inquiry.examine(1, 0.0)
    assert asked.inquiry.examine(2, 0.0)
    assert asked.sent == [(2, stacks.FORCE)]


def test_flood_is_bounded(asked: Asked) -> None:
    """More than an answer may have is not read."""
    asked.inquiry.begin(5, 0.0)
    for _ in range(40):
        try:
            os.write(asked.pipes[1], b"x" * 16384)
        except BlockingIOError:
            pass
        asked.turn(0.0)
    asked.turn(PATIENCE)
    asked.turn(PATIENCE + FORCED_PATIENCE)
    assert len(asked.told[0][1][1]) == stacks.MAX_BYTES


def test_text_names_this_thread_and_its_innermost_call() -> None:
    """As a worker would tell it."""
    told = stacks.text(None) + stacks.END.decode()
    assert told.startswith("> MainThread\n") or "\n> MainThread\n" in told


def test_lanes_come_first_and_tell_whom_they_serve() -> None:
    """In the order of their numbers, without what a terminal would obey."""
    text = f'> MainThread\nFile "x.py", line 1, in f\n> lane-1\n{call("y.py")}\n> lane-0\n{call("z.py")}\n.\n'
    told = stacks_text([{"slot": 0, "pid": 7, "text": text}], SNAPSHOT)  # type: ignore[arg-type]
    assert told.splitlines() == [
        "worker 0 (pid 7) ready",
        "  lane-0: idle for 1m01s",
        "      z.py:1 in f",
        "  lane-1: busy with 127.0.0.1:4711\\x1b[2J for 2.0s",
        "      y.py:1 in f",
        "  MainThread",
        "      x.py:1 in f",
    ]


def call(path: str) -> str:
    return f'File "{path}", line 1, in f'


@given(text=st.text(max_size=300))
def test_whatever_a_worker_tells_can_be_printed(text: str) -> None:
    """It may be hostile."""
    told = stacks_text([{"slot": 0, "pid": 7, "text": text}], SNAPSHOT)  # type: ignore[arg-type]
    assert all(line.isprintable() for line in told.splitlines())
