"""The pure pool: every decision of the supervisor, without a process and without a clock."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from poolserver.commands import Command, Order
from poolserver.events import (
    Action,
    Announce,
    Answer,
    Asked,
    CloseDoor,
    Ending,
    Event,
    Finish,
    ForkFailed,
    ListenerLost,
    ReopenLogs,
    Say,
    Send,
    Start,
    WorkerExited,
    WorkerReady,
)
from poolserver.pool import DRAIN_GRACE, STOP_GRACE, Pool
from poolserver.roster import RESPAWNS_PER_SECOND
from poolserver.states import LONGEST_DELAY, Policy, PoolState, WorkerState

KILLED = "was killed by SIGKILL"


class Driver:
    """A pool with a clock in hand, and the actions of each step."""

    def __init__(self, workers: int = 2, **policy: float) -> None:
        self.now = 1000.0
        self.pool = Pool(Policy(workers, **policy), jitter=lambda: 0.5)  # 0.5 is no jitter at all

    def step(self, event: Event = None, *, after: float = 0.0) -> list[Action]:
        self.now += after
        return self.pool.step(event, self.now)

    def started(self) -> "Driver":
        """All workers accept."""
        for action in self.step():
            assert isinstance(action, Start)
            self.step(WorkerReady(action.serial))
        return self

    def serial_of(self, slot: int) -> int:
        serving = (WorkerState.STARTING, WorkerState.READY)
        return next(w.serial for w in self.pool.workers.values() if w.slot == slot and w.state in serving)

    def until_started(self, slot: int) -> None:
        """Let time pass, from deadline to deadline, until the slot has a worker."""
        while not any(worker.slot == slot for worker in self.pool.workers.values()):
            deadline = self.pool.deadline()
            assert deadline is not None
            self.now = deadline
            self.step()


def starts(actions: list[Action]) -> list[Start]:
    return [action for action in actions if isinstance(action, Start)]


def sent(actions: list[Action]) -> list[tuple[int, Order]]:
    return [(action.serial, action.order) for action in actions if isinstance(action, Send)]


def finish(actions: list[Action]) -> Finish | None:
    return next((action for action in actions if isinstance(action, Finish)), None)


def test_first_step_starts_every_slot() -> None:
    """One worker for each slot, numbered from 0."""
    driver = Driver(3)
    assert [action.slot for action in starts(driver.step())] == [0, 1, 2]
    assert driver.pool.state is PoolState.STARTING


def test_all_ready_announces_once() -> None:
    """The ready line is asked for when the last worker accepts, and never again."""
    driver = Driver(2)
    first, second = starts(driver.step())
    assert Announce() not in driver.step(WorkerReady(first.serial))
    assert Announce() in driver.step(WorkerReady(second.serial))
    assert driver.pool.state is PoolState.SERVING
    replacement = starts(driver.step(WorkerExited(first.serial, KILLED)))[0]
    assert Announce() not in driver.step(WorkerReady(replacement.serial))


def test_ready_worker_that_dies_is_replaced_at_once_in_its_slot() -> None:
    """A death after it was ready costs no wait."""
    driver = Driver(3).started()
    assert [start.slot for start in starts(driver.step(WorkerExited(driver.serial_of(1), KILLED)))] == [1]
    assert driver.pool.respawns == 1


def test_more_than_twenty_deaths_a_second_wait_for_the_rate() -> None:
    """The pool's respawn rate holds whichever slots the deaths come from."""
    driver = Driver(4).started()
    count = 0
    for number in range(60):
        actions = driver.step(WorkerExited(driver.serial_of(number % 4), KILLED), after=0.001)
        count += len(starts(actions))
        if not starts(actions):
            break
        driver.step(WorkerReady(starts(actions)[0].serial))
    assert count == RESPAWNS_PER_SECOND
    deadline = driver.pool.deadline()
    assert deadline is not None
    assert driver.now < deadline <= driver.now + 1.0
    driver.now = deadline
    assert len(starts(driver.step())) == 1


def test_worker_that_dies_starting_backs_off() -> None:
    """The second try is at once, then 0.5 s x 1.5^n up to 30 s."""
    driver = Driver(2).started()
    driver.step(WorkerExited(driver.serial_of(0), KILLED))
    delays = []
    for _ in range(14):
        start = driver.now
        driver.step(WorkerExited(driver.serial_of(0), "exited with code 1"))
        driver.until_started(0)
        delays.append(driver.now - start)
    assert delays[:4] == pytest.approx([0, 0.5, 0.75, 1.125])
    assert delays[-1] == pytest.approx(LONGEST_DELAY)


def test_ready_again_forgets_the_failures() -> None:
    """A slot that came back is trusted again."""
    driver = Driver(2).started()
    driver.step(WorkerExited(driver.serial_of(0), KILLED))
    for _ in range(5):
        driver.step(WorkerExited(driver.serial_of(0), "exited with code 1"))
        driver.until_started(0)
    driver.step(WorkerReady(driver.serial_of(0)))
    assert driver.pool.slots[0].failures == 0
    assert len(starts(driver.step(WorkerExited(driver.serial_of(0), KILLED), after=2.0))) == 1


def test_no_worker_starts_at_first_boot_ends_the_pool_with_the_reason() -> None:
    """A handler that does not import is not tried for ever."""
    driver = Driver(3)
    serials = [start.serial for start in starts(driver.step())]
    for serial in serials[:-1]:
        assert finish(driver.step(WorkerExited(serial, "exited with code 78", "no module x\nTraceback"))) is None
    end = finish(driver.step(WorkerExited(serials[-1], "exited with code 78", "no module x\nTraceback")))
    assert end == Finish(Ending.NO_WORKER_STARTED, "no module x\nTraceback")


def test_one_worker_ready_at_first_boot_gives_the_others_their_retries() -> None:
    """Failures are retried as soon as one worker has shown that it can be done."""
    driver = Driver(2)
    first, second = starts(driver.step())
    assert starts(driver.step(WorkerExited(first.serial, "was killed by SIGSEGV"))) == []
    retries = starts(driver.step(WorkerReady(second.serial)))
    assert [start.slot for start in retries] == [0]


def test_fork_refused_for_all_at_first_boot_ends_the_pool() -> None:
    """The system's refusal is told apart from a broken handler."""
    driver = Driver(1)
    (start,) = starts(driver.step())
    assert finish(driver.step(ForkFailed(start.serial, "EAGAIN"))) == Finish(Ending.NO_FORK, "EAGAIN")


def test_fork_refused_while_serving_backs_off() -> None:
    """EAGAIN from fork is not tried again in the same instant."""
    driver = Driver(2).started()
    (start,) = starts(driver.step(WorkerExited(driver.serial_of(0), KILLED)))
    assert starts(driver.step(ForkFailed(start.serial, "EAGAIN"))) == []
    assert len(starts(driver.step(after=0.6))) == 1


def test_worker_not_ready_in_time_is_killed_and_counts_as_failed() -> None:
    """A handler that hangs at import meets timeouts.boot."""
    driver = Driver(2, boot_timeout=5.0).started()
    (start,) = starts(driver.step(WorkerExited(driver.serial_of(0), KILLED)))
    assert sent(driver.step(after=5.0)) == [(start.serial, Order.KILL)]
    said = [a.text for a in driver.step(WorkerExited(start.serial, KILLED)) if isinstance(a, Say)]
    assert any("timeouts.boot = 5 s" in text for text in said)
    assert driver.pool.slots[0].failures == 1


def test_stop_closes_the_door_and_drains_everyone() -> None:
    """TERM: no new connections, every worker drains, the pool ends when the last is gone."""
    driver = Driver(2).started()
    actions = driver.step(Command.STOP)
    assert CloseDoor() in actions
    assert [order for _, order in sent(actions)] == [Order.DRAIN, Order.DRAIN]
    first, second = list(driver.pool.workers)
    assert finish(driver.step(WorkerExited(first, "exited with code 0"))) is None
    assert finish(driver.step(WorkerExited(second, "exited with code 0"))) == Finish(Ending.ASKED)
    assert driver.pool.state is PoolState.STOPPED


def test_second_stop_changes_nothing() -> None:
    """TERM twice is TERM once, and the drain's deadline stays."""
    driver = Driver(2).started()
    driver.step(Command.STOP)
    deadline = driver.pool.deadline()
    assert driver.step(Command.STOP, after=1.0) == []
    assert driver.pool.deadline() == deadline


def test_drain_that_does_not_end_is_killed_after_graceful() -> None:
    """The worker cuts at graceful itself; KILL follows when even that failed."""
    driver = Driver(1, graceful_timeout=3.0).started()
    driver.step(Command.STOP)
    assert sent(driver.step(after=3.0 + DRAIN_GRACE / 2)) == []
    (serial,) = driver.pool.workers
    assert sent(driver.step(after=DRAIN_GRACE)) == [(serial, Order.KILL)]


def test_stop_now_during_a_drain_stops_now() -> None:
    """INT overtakes TERM, and KILL follows."""
    driver = Driver(1).started()
    (serial,) = driver.pool.workers
    driver.step(Command.STOP)
    assert sent(driver.step(Command.STOP_NOW)) == [(serial, Order.STOP_NOW)]
    assert driver.step(Command.STOP_NOW) == []
    assert sent(driver.step(after=STOP_GRACE)) == [(serial, Order.KILL)]


def test_stop_while_starting_ends_the_starting_ones() -> None:
    """TERM, not QUIT: a worker without handlers would dump core on QUIT."""
    driver = Driver(2)
    driver.step()
    assert [order for _, order in sent(driver.step(Command.STOP_NOW))] == [Order.DRAIN, Order.DRAIN]


def test_worker_ready_after_it_was_told_to_leave_has_its_time_to_drain() -> None:
    """It may have taken a connection between its ready byte and the order."""
    driver = Driver(1, graceful_timeout=30.0)
    (start,) = starts(driver.step())
    driver.step(Command.STOP)
    driver.step(WorkerReady(start.serial))
    assert driver.pool.workers[start.serial].state is WorkerState.RETIRING
    assert sent(driver.step(after=STOP_GRACE + 1)) == []


def test_asked_stop_after_a_failed_start_is_no_failure() -> None:
    """Exit 0 is owed to TERM, also while the first boot was going wrong."""
    driver = Driver(2)
    first, second = starts(driver.step())
    driver.step(WorkerExited(first.serial, "exited with code 78", "broken"))
    driver.step(Command.STOP)
    assert finish(driver.step(WorkerExited(second.serial, "was killed by SIGTERM"))) == Finish(Ending.ASKED)


def test_dead_worker_while_draining_is_not_replaced() -> None:
    """Nothing is started that would only be stopped."""
    driver = Driver(3).started()
    driver.step(Command.STOP)
    assert starts(driver.step(WorkerExited(next(iter(driver.pool.workers)), KILLED))) == []


def test_more_starts_the_next_slot() -> None:
    """TTIN."""
    driver = Driver(2).started()
    assert [start.slot for start in starts(driver.step(Command.MORE))] == [2]


def test_fewer_retires_the_highest_slot_and_leaves_the_queue_to_others() -> None:
    """TTOU; its exit is not replaced."""
    driver = Driver(3).started()
    serial = driver.serial_of(2)
    assert sent(driver.step(Command.FEWER)) == [(serial, Order.RETIRE)]
    assert starts(driver.step(WorkerExited(serial, "exited with code 0"))) == []


def test_fewer_at_one_worker_does_nothing() -> None:
    """A service is not scaled to nothing by accident."""
    driver = Driver(1).started()
    assert sent(driver.step(Command.FEWER)) == []
    assert len(driver.pool.slots) == 1


def test_more_after_fewer_lets_newcomer_and_retiree_share_the_slot() -> None:
    """The retiree's exit must not start a second newcomer."""
    driver = Driver(2).started()
    retiree = driver.serial_of(1)
    driver.step(Command.FEWER)
    assert [start.slot for start in starts(driver.step(Command.MORE))] == [1]
    assert starts(driver.step(WorkerExited(retiree, "exited with code 0"))) == []


def test_newcomer_that_dies_beside_a_retiree_is_replaced() -> None:
    """A retiring worker does not occupy its slot."""
    driver = Driver(2).started()
    driver.step(Command.FEWER)
    (start,) = starts(driver.step(Command.MORE))
    driver.step(WorkerReady(start.serial))
    assert [s.slot for s in starts(driver.step(WorkerExited(start.serial, KILLED)))] == [1]


@pytest.mark.parametrize("command", [Command.MORE, Command.FEWER])
def test_resident_pool_cannot_be_scaled(command: Command) -> None:
    """-w 0 says that it cannot."""
    pool = Pool(Policy(1, resident=True))
    pool.step(None, 0.0)
    (said,) = pool.step(command, 1.0)
    assert isinstance(said, Say)
    assert "cannot" in said.text


def test_lost_listener_stops_with_that_ending() -> None:
    """A service that cannot accept must not pretend; its supervisor restarts it."""
    driver = Driver(2).started()
    first, second = list(driver.pool.workers)
    assert CloseDoor() in driver.step(ListenerLost(first, "shut down"))
    assert finish(driver.step(WorkerExited(second, "exited with code 0"))) == Finish(Ending.LISTENER_LOST, "shut down")


def test_reopen_reaches_master_and_workers() -> None:
    """USR1."""
    driver = Driver(2).started()
    actions = driver.step(Command.REOPEN)
    assert ReopenLogs() in actions
    assert [order for _, order in sent(actions)] == [Order.REOPEN, Order.REOPEN]


def answers(actions: list[Action]) -> list[Answer]:
    return [action for action in actions if isinstance(action, Answer)]


ASKER = 7


class TestAnswers:
    @pytest.mark.parametrize("command", [Command.STOP, Command.STOP_NOW])
    def test_stop_is_answered_when_the_pool_has_ended(self, command: Command) -> None:
        """Not before the last worker is buried; and right before the end, while there is somebody to tell it."""
        driver = Driver(2).started()
        assert answers(driver.step(Asked(command, ASKER))) == []
        first, second = list(driver.pool.workers)
        assert answers(driver.step(WorkerExited(first, "exited with code 0"))) == []
        assert driver.step(WorkerExited(second, "exited with code 0"))[-2:] == [
            Answer(ASKER, ok=True),
            Finish(Ending.ASKED),
        ]

    def test_every_asker_of_a_stop_is_answered(self) -> None:
        """Also one that comes late."""
        driver = Driver(1).started()
        driver.step(Asked(Command.STOP, 1))
        driver.step(Command.STOP)
        driver.step(Asked(Command.STOP_NOW, 2))
        (serial,) = driver.pool.workers
        told = answers(driver.step(WorkerExited(serial, "exited with code 0")))
        assert told == [Answer(1, ok=True), Answer(2, ok=True)]

    def test_scale_up_is_answered_when_that_many_accept(self) -> None:
        """A fork is no worker yet."""
        driver = Driver(1).started()
        actions = driver.step(Asked(Command.SCALE, ASKER, 3))
        assert [start.slot for start in starts(actions)] == [1, 2]
        first, second = starts(actions)
        assert answers(driver.step(WorkerReady(first.serial))) == []
        assert answers(driver.step(WorkerReady(second.serial))) == [Answer(ASKER, ok=True)]

    def test_scale_down_is_answered_at_once(self) -> None:
        """Those who leave are told to accept no more, and may finish."""
        driver = Driver(3).started()
        actions = driver.step(Asked(Command.SCALE, ASKER, 1))
        assert [order for _, order in sent(actions)] == [Order.RETIRE, Order.RETIRE]
        assert answers(actions) == [Answer(ASKER, ok=True)]

    def test_scale_to_the_present_number_is_answered_at_once(self) -> None:
        """There is nothing to wait for."""
        assert answers(Driver(2).started().step(Asked(Command.SCALE, ASKER, 2))) == [Answer(ASKER, ok=True)]

    @pytest.mark.parametrize("number", [0, -1])
    def test_scale_below_one_is_refused(self, number: int) -> None:
        """A service is not scaled to nothing."""
        driver = Driver(2).started()
        (told,) = answers(driver.step(Asked(Command.SCALE, ASKER, number)))
        assert not told.ok
        assert "at least 1" in told.reason
        assert len(driver.pool.slots) == 2

    def test_scale_that_does_not_come_true_is_answered_at_the_boot_timeout(self) -> None:
        """With how many there are; the pool goes on trying."""
        driver = Driver(1, boot_timeout=5.0).started()
        driver.step(Asked(Command.SCALE, ASKER, 2))
        (told,) = answers(driver.step(after=5.0))
        assert told == Answer(ASKER, ok=False, reason="1 of 2 workers accept by now; trying goes on")
        assert len(driver.pool.slots) == 2

    def test_scale_is_overtaken_by_the_next(self) -> None:
        """Whoever waits for what will not happen is told so."""
        driver = Driver(1).started()
        driver.step(Asked(Command.SCALE, 1, 3))
        (told,) = answers(driver.step(Asked(Command.SCALE, 2, 2)))
        assert (told.asker, told.ok) == (1, False)

    def test_scale_is_refused_while_leaving_and_by_a_resident(self) -> None:
        """With the reason."""
        driver = Driver(1).started()
        driver.step(Command.STOP)
        (told,) = answers(driver.step(Asked(Command.SCALE, ASKER, 2)))
        assert told == Answer(ASKER, ok=False, reason="cannot scale: the service is stopping")
        resident = Pool(Policy(1, resident=True))
        resident.step(None, 0.0)
        (told,) = answers(resident.step(Asked(Command.SCALE, ASKER, 2), 1.0))
        assert "in this one process" in told.reason

    def test_scale_that_waits_when_a_stop_comes_is_answered(self) -> None:
        """It will not happen any more."""
        driver = Driver(1).started()
        driver.step(Asked(Command.SCALE, ASKER, 2))
        (told,) = answers(driver.step(Command.STOP))
        assert (told.ok, told.reason) == (False, "the service is stopping")

    def test_reopen_is_answered_at_once(self) -> None:
        """The master's own log is open by then."""
        assert Answer(ASKER, ok=True) in Driver(1).started().step(Asked(Command.REOPEN, ASKER))

    def test_signals_are_answered_to_nobody(self) -> None:
        """Nobody waits."""
        driver = Driver(1).started()
        for command in (Command.REOPEN, Command.MORE, Command.FEWER, Command.RELOAD, Command.STOP):
            assert answers(driver.step(command)) == []


class PoolMachine(RuleBasedStateMachine):
    """Random events against the pool's invariants."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jitter = 0.5
        self.pool = Pool(Policy(3, boot_timeout=5.0, graceful_timeout=4.0), jitter=lambda: self.jitter)
        self.alive: set[int] = set()
        self.starts: list[float] = []
        self.finished = False
        self.askers: set[int] = set()
        self.next_asker = 0
        self.apply(None)

    def apply(self, event: Event) -> None:
        for action in self.pool.step(event, self.now):
            assert not self.finished, "nothing is asked after the end"
            if isinstance(action, Start):
                assert action.serial not in self.alive
                self.alive.add(action.serial)
            elif isinstance(action, Send):
                assert action.serial in self.alive, "only living workers are signalled"
            elif isinstance(action, Answer):
                self.askers.remove(action.asker)  # once each
            elif isinstance(action, Finish):
                assert not self.alive, "the pool ends when every worker is buried"
                assert not self.askers, "everybody who asked was answered before the end"
                self.finished = True

    @rule(seconds=st.floats(0.001, 10), jitter=st.floats(0, 1))
    def time_passes(self, seconds: float, jitter: float) -> None:
        self.now += seconds
        self.jitter = jitter
        self.apply(None)

    @rule()
    def wakes_at_the_deadline(self) -> None:
        deadline = self.pool.deadline()
        if deadline is not None:
            self.now = max(self.now, deadline)
            self.apply(None)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def worker_is_ready(self, data: st.DataObject) -> None:
        self.apply(WorkerReady(data.draw(st.sampled_from(sorted(self.alive)))))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), lost=st.booleans())
    def worker_dies(self, data: st.DataObject, lost: bool) -> None:
        serial = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(serial)
        was_ready = self.pool.workers[serial].was_ready
        self.apply(ListenerLost(serial, "lost") if lost and was_ready else WorkerExited(serial, KILLED))

    @rule(command=st.sampled_from([c for c in Command if c not in (Command.STOP, Command.STOP_NOW, Command.REAP)]))
    def operator_signals(self, command: Command) -> None:
        if command is not Command.SCALE:
            self.apply(command)

    @rule(command=st.sampled_from([c for c in Command if c is not Command.REAP]), number=st.integers(0, 5))
    def operator_asks(self, command: Command, number: int) -> None:
        if command not in (Command.STOP, Command.STOP_NOW) or number == 0:
            self.askers.add(self.next_asker)
            self.next_asker += 1
            self.apply(Asked(command, self.next_asker - 1, number))

    @rule(command=st.sampled_from([Command.STOP, Command.STOP_NOW]), seldom=st.integers(0, 9))
    def operator_stops(self, command: Command, seldom: int) -> None:
        if seldom == 0:
            self.apply(command)

    @invariant()
    def every_living_worker_is_known(self) -> None:
        assert set(self.pool.workers) == self.alive

    @invariant()
    def no_two_workers_accept_in_a_slot(self) -> None:
        serving = [w.slot for w in self.pool.workers.values() if w.state in (WorkerState.STARTING, WorkerState.READY)]
        assert len(serving) == len(set(serving))

    @invariant()
    def a_deadline_exists_while_something_is_pending(self) -> None:
        waiting = [w for w in self.pool.workers.values() if w.state not in (WorkerState.READY, WorkerState.KILLED)]
        empty = [slot for slot in self.pool.slots if slot.due is not None]
        if waiting or (empty and not self.pool.is_leaving and any(w.was_ready for w in self.pool.workers.values())):
            assert self.pool.deadline() is not None

    @invariant()
    def every_slot_has_a_worker_or_is_due(self) -> None:
        if self.pool.is_leaving:
            return
        held = (WorkerState.STARTING, WorkerState.READY, WorkerState.KILLED)
        taken = {w.slot for w in self.pool.workers.values() if w.state in held}
        for slot in self.pool.slots:
            assert slot.number in taken or slot.due is not None

    @invariant()
    def a_draining_pool_is_over_when_nobody_is_left(self) -> None:
        if self.pool.is_leaving and not self.alive:
            assert self.finished

    @invariant()
    def deadlines_are_not_missed(self) -> None:
        overdue = [w for w in self.pool.workers.values() if w.deadline <= self.now and w.deadline != math.inf]
        assert not overdue


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
