"""Signs of life, judged by a clock in hand: who is silent, who hangs, and when nobody is to blame."""

import struct

from poolserver.events import Event, WorkerRevived, WorkerSick
from poolserver.rows import HALF_WORDS, ROW_WORDS, SIGN
from poolserver.scoreboard import Berth, Scoreboard
from poolserver.vigil import LOOK_INTERVAL, OVERSLEPT, Vigil

LIMIT = 10.0


class Watch:
    """Two workers whose watchers sign when they are told to, and a loop that comes when it is due."""

    def __init__(self, silence: float = LIMIT, handler: float = 0.0) -> None:
        self.board = Scoreboard.create()
        self.staff: dict[int, tuple[int, Berth]] = {serial: (4000 + serial, self.board.allot(2)) for serial in (1, 2)}
        self.vigil = Vigil(lambda: silence, lambda: handler, lambda: self.staff, self.board)
        self.now = 1000.0
        self.vigil.attend((), self.now)

    def sign(self, *serials: int) -> None:
        for serial in serials:
            word = self.staff[serial][1].first * ROW_WORDS + HALF_WORDS + SIGN
            struct.pack_into("=Q", self.board.memory, word * 8, int(self.now * 1e9))

    def pass_by(self, seconds: float, *alive: int) -> list[Event]:
        """The loop turns when it is due, at least once a second; those alive sign before each turn."""
        events: list[Event] = []
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1.0, max(self.vigil.deadline(), self.now + 0.001))
            self.sign(*alive)
            events += self.vigil.attend((), self.now)
        return events


def test_worker_that_signs_is_never_told_of() -> None:
    """However long."""
    assert Watch().pass_by(100, 1, 2) == []


def test_silent_worker_is_told_of_once() -> None:
    """When the limit is reached, and not again."""
    watch = Watch()
    assert watch.pass_by(LIMIT - 0.1, 2) == []
    told = watch.pass_by(1.0, 2)
    assert told == [WorkerSick(1, "gives no signs of life since 10 s (timeouts.worker)", is_silent=True)]
    assert watch.pass_by(50, 2) == []


def test_loop_is_woken_when_the_limit_is_reached() -> None:
    """And not before: an idle service sleeps."""
    watch = Watch()
    watch.sign(1)
    watch.now += 3
    watch.sign(2)
    watch.vigil.attend((), watch.now)
    assert watch.vigil.deadline() == 1000.0 + LIMIT


def test_worker_that_signs_again_is_told_of() -> None:
    """SIGCONT came before its replacement."""
    watch = Watch()
    watch.pass_by(LIMIT + 1, 2)
    assert watch.pass_by(1.0, 1, 2) == [WorkerRevived(1)]
    assert watch.pass_by(LIMIT + 1, 2)[0] == WorkerSick(
        1, "gives no signs of life since 10 s (timeouts.worker)", is_silent=True
    )


def test_newcomer_has_the_whole_limit_for_its_first_sign() -> None:
    """Its row is empty."""
    watch = Watch()
    watch.pass_by(LIMIT - 1, 1, 2)
    watch.staff[3] = (4003, watch.board.allot(2))
    assert watch.pass_by(LIMIT - 0.5, 1, 2) == []


def test_nobody_is_blamed_after_the_loop_itself_stood_still() -> None:
    """SIGSTOP of the master, a paused virtual machine: silence counts anew from there."""
    watch = Watch()
    watch.now += 60
    assert watch.vigil.attend((), watch.now) == []
    assert watch.pass_by(LIMIT - 0.1) == []
    assert len(watch.pass_by(0.2)) == 2


def test_small_delay_of_the_loop_excuses_nobody() -> None:
    """A busy machine is no excuse for a stopped worker."""
    watch = Watch()
    watch.now = watch.vigil.deadline() + OVERSLEPT / 2
    watch.sign(2)
    assert [event.serial for event in watch.vigil.attend((), watch.now) if isinstance(event, WorkerSick)] == [1]


def test_hung_lane_is_told_of_where_handlers_have_a_deadline() -> None:
    """Its worker answers still."""
    watch = Watch(handler=5.0)
    assert watch.pass_by(2, 1, 2) == []
    watch.board.rows(watch.staff[2][1])[1].hung()
    assert watch.pass_by(LOOK_INTERVAL, 1, 2) == [
        WorkerSick(2, "has a lane that hangs (timeouts.handler)", is_silent=False)
    ]
    assert watch.pass_by(5, 1, 2) == []


def test_nothing_is_watched_where_both_are_off() -> None:
    """And the loop is not woken for it."""
    watch = Watch(silence=0.0)
    assert watch.vigil.deadline() == float("inf")
    watch.now += 1000
    assert watch.vigil.attend((), watch.now) == []
