"""Which workers have served enough: told by the scoreboard and a clock in hand."""

import os

import pytest

from poolserver.events import Event, WorkerSpent
from poolserver.recycling import LOOK_INTERVAL, Allowance, Recycler
from poolserver.rows import Outcome
from poolserver.scoreboard import Berth, Scoreboard


class Place:
    """Two workers, which are this process, and what they have served."""

    def __init__(self, allowance: Allowance, jitter: float = 0.0) -> None:
        self.board = Scoreboard.create()
        self.staff: dict[int, tuple[int, Berth]] = {serial: (os.getpid(), self.board.allot(2)) for serial in (1, 2)}
        self.allowance = allowance
        self.recycler = Recycler(lambda: self.allowance, lambda: self.staff, self.board, lambda: jitter)
        self.now = 1000.0
        self.look()

    def serve(self, serial: int, connections: int) -> None:
        row = self.board.rows(self.staff[serial][1])[1]
        for _ in range(connections):
            row.begin("127.0.0.1:1")
            row.end(Outcome.SERVED)

    def look(self, after: float = LOOK_INTERVAL) -> list[Event]:
        self.now += after
        return self.recycler.attend((), self.now)


def test_never_without_an_allowance() -> None:
    """And the loop is not woken for it."""
    place = Place(Allowance())
    place.serve(1, 1000)
    assert place.look() == []
    assert place.recycler.deadline() == float("inf")


def test_by_connections() -> None:
    """Those of all its lanes."""
    place = Place(Allowance(connections=10))
    place.serve(1, 9)
    assert place.look() == []
    place.serve(1, 1)
    assert place.look() == [WorkerSpent(1, "has served 10 connections (recycle.connections)")]


def test_jitter_adds_to_the_allowance() -> None:
    """So that workers that started together do not go together."""
    place = Place(Allowance(connections=10, jitter=0.5), jitter=1.0)
    place.serve(1, 14)
    assert place.look() == []
    place.serve(1, 1)
    assert place.look() == [WorkerSpent(1, "has served 15 connections (recycle.connections)")]


def test_by_age() -> None:
    """From when it was first seen to accept."""
    place = Place(Allowance(age=60.0))
    assert place.look(after=59) == []
    assert [event.serial for event in place.look(after=1) if isinstance(event, WorkerSpent)] == [1, 2]


@pytest.mark.parametrize(("limit", "is_over"), [(1, True), (2**50, False)])
def test_by_memory(limit: int, is_over: bool) -> None:
    """What the kernel says is resident."""
    told = Place(Allowance(rss=limit)).look()
    assert bool(told) == is_over
    assert not told or "(recycle.rss)" in str(told[0])


def test_worker_that_has_just_ended_is_no_worry() -> None:
    """Its burial is on the way."""
    place = Place(Allowance(rss=1))
    place.staff = {1: (2**22 + 1, place.staff[1][1])}  # above pid_max
    assert place.look() == []


def test_newcomer_in_a_used_berth_begins_anew() -> None:
    """Its age is its own."""
    place = Place(Allowance(age=60.0))
    place.look(after=59)
    place.staff = {3: place.staff[1]}
    assert place.look(after=2) == []


def test_reload_changes_the_allowance() -> None:
    """For workers that are there already, too."""
    place = Place(Allowance())
    place.serve(2, 5)
    place.allowance = Allowance(connections=5)
    assert [event.serial for event in place.look() if isinstance(event, WorkerSpent)] == [2]
