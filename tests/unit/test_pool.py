"""The pure pool: every decision of the supervisor, without a process and without a clock."""

from dataclasses import replace

import pytest

from poolserver.commands import Command, Order
from poolserver.events import (
    Abandon,
    Action,
    Announce,
    Answer,
    Asked,
    AskerLeft,
    CloseDoor,
    Commit,
    Depart,
    Ending,
    EndSuccessor,
    Event,
    Examine,
    Finish,
    ForkFailed,
    ListenerLost,
    NotPrepared,
    Predecessor,
    PredecessorIs,
    Prepare,
    Prepared,
    ReopenLogs,
    Say,
    Send,
    Start,
    StartSuccessor,
    SuccessorFailed,
    SuccessorReady,
    Withdraw,
    WorkerBooted,
    WorkerExited,
    WorkerReady,
    WorkerRevived,
    WorkerSick,
    WorkerSpent,
)
from poolserver.pool import Pool
from poolserver.reload import LONGEST_WAIT, QUIET_INTERVAL, Attempt
from poolserver.roster import DRAIN_GRACE, RESPAWNS_PER_SECOND, STOP_GRACE
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

    def serial_of_newcomer(self, slot: int) -> int:
        starting = WorkerState.STARTING
        return next(w.serial for w in self.pool.workers.values() if w.slot == slot and w.state is starting)

    def until_newcomer(self, slot: int) -> list[Action]:
        """Let time pass, from deadline to deadline, until the slot has a worker that starts; what was done."""
        done: list[Action] = []
        while not self.pool.in_slot(slot, WorkerState.STARTING):
            deadline = self.pool.deadline()
            assert deadline is not None
            self.now = max(self.now, deadline)
            done += self.step()
        return done

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
    """EAGAIN from fork is not tried again in the same instant, and is no respawn."""
    driver = Driver(2).started()
    (start,) = starts(driver.step(WorkerExited(driver.serial_of(0), KILLED)))
    assert starts(driver.step(ForkFailed(start.serial, "EAGAIN"))) == []
    assert driver.pool.respawns == 0
    assert len(starts(driver.step(after=0.6))) == 1
    assert driver.pool.respawns == 1


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

    def test_who_has_left_is_forgotten(self) -> None:
        """A script that asks, gives up and asks again, as long as a drain takes, does not fill the master's memory."""
        driver = Driver(1).started()
        (serial,) = driver.pool.workers
        for asker in range(100):
            driver.step(Asked(Command.STOP if asker % 2 else Command.STOP_NOW, asker))
            driver.step(AskerLeft(asker))
            driver.step(Command.STOP)
        driver.step(Asked(Command.STOP, 200))
        assert answers(driver.step(WorkerExited(serial, "exited with code 0"))) == [Answer(200, ok=True)]

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
        assert "want 1 to 1024 workers" in told.reason
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


class TestRecycling:
    def test_replacement_is_ready_before_the_spent_worker_leaves(self) -> None:
        """As at a reload, but of the same generation."""
        driver = Driver(1).started()
        (old,) = driver.pool.workers
        actions = driver.step(WorkerSpent(old, "has served 9 connections"))
        (start,) = starts(actions)
        assert (start.slot, start.generation) == (0, 1)
        assert sent(actions) == []
        assert sent(driver.step(WorkerReady(start.serial))) == [(old, Order.RETIRE)]
        assert driver.pool.respawns == 0

    def test_one_goes_at_a_time(self) -> None:
        """The next when the one before has drained."""
        driver = Driver(3).started()
        first, second, third = list(driver.pool.workers)
        started = [starts(driver.step(WorkerSpent(serial, "is old"))) for serial in (first, second, third)]
        assert [len(each) for each in started] == [1, 0, 0]
        assert starts(driver.step(WorkerReady(started[0][0].serial))) == []
        assert [start.slot for start in starts(driver.step(WorkerExited(first, "exited with code 0")))] == [1]

    def test_a_tenth_of_a_large_pool_goes_at_a_time(self) -> None:
        """Thirty workers: three."""
        driver = Driver(30).started()
        count = sum(len(starts(driver.step(WorkerSpent(serial, "is old")))) for serial in list(driver.pool.workers))
        assert count == 3

    def test_spent_worker_serves_on_while_its_replacement_cannot_start(self) -> None:
        """A broken deployment does not empty the pool."""
        driver = Driver(1).started()
        (old,) = driver.pool.workers
        driver.step(WorkerSpent(old, "is old"))
        for _ in range(5):
            driver.step(WorkerExited(driver.serial_of_newcomer(0), "exited with code 1"))
            assert driver.pool.workers[old].state is WorkerState.READY
            driver.until_newcomer(0)
        assert driver.pool.state is PoolState.DEGRADED

    def test_waits_for_the_end_of_a_reload(self) -> None:
        """Which replaces everybody anyway."""
        driver = Driver(2).started()
        driver.step(Command.RELOAD)
        driver.step(Prepared(driver.pool.policy))
        assert starts(driver.step(WorkerSpent(next(iter(driver.pool.workers)), "is old"))) == []


SILENT = {"why": "gives no signs of life", "is_silent": True}
HANGING = {"why": "has a lane that hangs", "is_silent": False}


class TestSickWorker:
    def test_silent_one_is_killed_when_its_replacement_is_ready(self) -> None:
        """It has nothing to finish; where its threads are is asked before."""
        driver = Driver(2).started()
        serial = driver.serial_of(0)
        actions = driver.step(WorkerSick(serial, **SILENT))
        assert Examine(serial) in actions
        (start,) = starts(actions)
        assert (start.slot, sent(actions)) == (0, [])
        assert driver.pool.workers[serial].state is WorkerState.HUNG
        assert sent(driver.step(WorkerReady(start.serial))) == [(serial, Order.KILL)]
        driver.step(WorkerExited(serial, KILLED))
        assert driver.pool.respawns == 1
        assert starts(driver.step(after=60)) == []

    def test_one_with_a_hung_lane_may_finish_the_others(self) -> None:
        """It has graceful, like any that leaves."""
        driver = Driver(2).started()
        serial = driver.serial_of(0)
        (start,) = starts(driver.step(WorkerSick(serial, **HANGING)))
        assert sent(driver.step(WorkerReady(start.serial))) == [(serial, Order.RETIRE)]
        assert driver.pool.workers[serial].state is WorkerState.RETIRING

    def test_one_that_comes_back_may_finish(self) -> None:
        """Its replacement is on the way all the same."""
        driver = Driver(2).started()
        serial = driver.serial_of(0)
        (start,) = starts(driver.step(WorkerSick(serial, **SILENT)))
        driver.step(WorkerRevived(serial))
        assert sent(driver.step(WorkerReady(start.serial))) == [(serial, Order.RETIRE)]

    def test_silent_one_is_killed_at_a_stop(self) -> None:
        """Nobody waits for it."""
        driver = Driver(1).started()
        (serial,) = driver.pool.workers
        driver.step(WorkerSick(serial, **SILENT))
        assert (serial, Order.KILL) in sent(driver.step(Command.STOP))

    def test_one_that_leaves_already_is_left_alone(self) -> None:
        """Its time is bounded."""
        driver = Driver(1).started()
        (serial,) = driver.pool.workers
        driver.step(Command.STOP)
        assert driver.step(WorkerSick(serial, **SILENT)) == []

    def test_dead_before_its_replacement_is_no_loss(self) -> None:
        """One newcomer is enough."""
        driver = Driver(1).started()
        (serial,) = driver.pool.workers
        driver.step(WorkerSick(serial, **SILENT))
        assert starts(driver.step(WorkerExited(serial, KILLED))) == []


class TestLameDuck:
    def test_door_closes_after_it(self) -> None:
        """Until then everybody accepts."""
        driver = Driver(2, lame_duck_timeout=5.0).started()
        actions = driver.step(Command.STOP)
        assert CloseDoor() not in actions
        assert sent(actions) == []
        assert driver.pool.state is PoolState.DRAINING
        actions = driver.step(after=5.0)
        assert CloseDoor() in actions
        assert [order for _, order in sent(actions)] == [Order.DRAIN, Order.DRAIN]

    def test_worker_that_dies_in_it_is_replaced(self) -> None:
        """There is somebody to serve."""
        driver = Driver(1, lame_duck_timeout=5.0).started()
        driver.step(Command.STOP)
        actions = driver.step(WorkerExited(next(iter(driver.pool.workers)), KILLED))
        assert len(starts(actions)) == 1
        assert finish(actions) is None

    def test_stop_now_ends_it(self) -> None:
        """And nothing comes of it later."""
        driver = Driver(1, lame_duck_timeout=5.0).started()
        driver.step(Command.STOP)
        (serial,) = driver.pool.workers
        assert sent(driver.step(Command.STOP_NOW)) == [(serial, Order.STOP_NOW)]
        assert CloseDoor() not in driver.step(WorkerExited(serial, "exited with code 0"), after=1.0)
        assert driver.pool.state is PoolState.STOPPED


def said(actions: list[Action]) -> str:
    return "\n".join(f"{action.text}\n{action.details}" for action in actions if isinstance(action, Say))


class Reloader(Driver):
    """A pool that has just been asked to reload, by ASKER."""

    def __init__(self, workers: int = 4, **policy: float) -> None:
        super().__init__(workers, **policy)
        self.started()
        self.old = sorted(self.pool.workers)
        assert Prepare() in self.step(Asked(Command.RELOAD, ASKER))

    def prepared(self, workers: int = 0, *, closes: bool = False, **policy: float) -> Start:
        """The configuration is valid: the canary."""
        fresh = replace(self.pool.policy, workers=workers or self.pool.policy.workers, **policy)
        (start,) = starts(self.step(Prepared(fresh, closes)))
        return start

    def committed(self, workers: int = 0, **options: bool) -> "Reloader":
        canary = self.prepared(workers, **options)
        self.actions = self.step(WorkerBooted(canary.serial))
        self.actions += self.step(WorkerReady(canary.serial))
        return self

    def roll(self) -> list[Action]:
        """Whoever starts becomes ready, whoever is to leave leaves, until nothing is left to do."""
        done: list[Action] = []
        while moving := [
            w for w in self.pool.workers.values() if w.state in (WorkerState.STARTING, WorkerState.RETIRING)
        ]:
            for worker in moving:
                is_starting = worker.state is WorkerState.STARTING
                event = WorkerReady(worker.serial) if is_starting else WorkerExited(worker.serial, "exited with code 0")
                done += self.step(event)
        return done


class TestReload:
    def test_canary_boots_beside_the_old_workers(self) -> None:
        """Nobody is told to leave before it has shown that the new generation can be."""
        driver = Reloader(2)
        actions = driver.step(Prepared(driver.pool.policy))
        (canary,) = starts(actions)
        assert (canary.slot, canary.generation, canary.is_canary) == (0, 2, True)
        assert sent(actions) == []
        assert driver.pool.state is PoolState.RELOADING
        assert driver.pool.generation == 1

    def test_booted_canary_commits_and_goes(self) -> None:
        """From here on it goes forward."""
        driver = Reloader(2)
        canary = driver.prepared()
        actions = driver.step(WorkerBooted(canary.serial))
        assert actions.index(Commit()) < actions.index(Send(canary.serial, Order.GO))
        assert driver.pool.generation == 2
        assert [order for _, order in sent(actions)] == [Order.GO]

    def test_old_worker_leaves_when_its_replacement_is_ready(self) -> None:
        """And leaves the queue to others."""
        driver = Reloader(2)
        canary = driver.prepared()
        driver.step(WorkerBooted(canary.serial))
        assert sent(driver.step(WorkerReady(canary.serial))) == [(driver.old[0], Order.RETIRE)]

    def test_a_part_of_the_pool_is_replaced_at_a_time(self) -> None:
        """Eight workers: two boot at once."""
        driver = Reloader(8)
        canary = driver.prepared()
        assert [start.slot for start in starts(driver.step(WorkerBooted(canary.serial)))] == [1]
        assert [start.slot for start in starts(driver.step(WorkerReady(canary.serial)))] == [2]

    def test_done_when_the_old_generation_has_left(self) -> None:
        """The asker is answered then, and not when the last newcomer accepts."""
        driver = Reloader(3).committed()
        actions = driver.roll()
        assert answers(actions) == [Answer(ASKER, ok=True)]
        assert driver.pool.outdated() == []
        assert driver.pool.state is PoolState.SERVING
        assert driver.pool.respawns == 0
        assert (driver.pool.reload.reloads, driver.pool.reload.reloads_failed) == (1, 0)
        assert driver.pool.reload.last is not None
        assert (driver.pool.reload.last.ok, driver.pool.reload.last.at) == (True, driver.now)

    def test_long_conversation_does_not_hold_the_answer_longer_than_graceful(self) -> None:
        """Who has not left by then is killed, as at a stop."""
        driver = Reloader(1, graceful_timeout=3.0).committed()
        assert sent(driver.step(after=3.0 + DRAIN_GRACE)) == [(driver.old[0], Order.KILL)]
        assert answers(driver.step(WorkerExited(driver.old[0], KILLED))) == [Answer(ASKER, ok=True)]

    def test_invalid_configuration_changes_nothing(self) -> None:
        """The reason goes to the asker, and to the log."""
        driver = Reloader(2)
        actions = driver.step(NotPrepared("x.toml:3: pool.wrokers: unknown key"))
        (told,) = answers(actions)
        assert told == Answer(
            ASKER, ok=False, reason="reload failed, nothing is changed: x.toml:3: pool.wrokers: unknown key"
        )
        assert told.reason in said(actions)
        assert sorted(driver.pool.workers) == driver.old
        assert (driver.pool.reload.reloads, driver.pool.reload.reloads_failed) == (0, 1)
        assert driver.pool.state is PoolState.SERVING

    @pytest.mark.parametrize("reason", ["server.handler: cannot import x: SyntaxError\nTraceback", ""])
    def test_canary_that_dies_changes_nothing(self, reason: str) -> None:
        """What it reported, or else how it died."""
        driver = Reloader(2)
        canary = driver.prepared()
        actions = driver.step(WorkerExited(canary.serial, "(pid 9) was killed by SIGKILL", reason))
        (told,) = answers(actions)
        assert not told.ok
        assert (reason or "the first new worker (pid 9) was killed by SIGKILL") in told.reason
        assert Abandon() in actions
        assert sorted(driver.pool.workers) == driver.old
        assert driver.pool.generation == 1
        assert starts(actions) == sent(actions) == []
        assert driver.pool.state is PoolState.SERVING

    def test_canary_that_hangs_is_killed_and_changes_nothing(self) -> None:
        """timeouts.boot of the new configuration."""
        driver = Reloader(2)
        canary = driver.prepared(boot_timeout=5.0)
        assert sent(driver.step(after=5.0)) == [(canary.serial, Order.KILL)]
        (told,) = answers(driver.step(WorkerExited(canary.serial, KILLED)))
        assert "was not accepting within timeouts.boot = 5 s" in told.reason
        assert sorted(driver.pool.workers) == driver.old

    def test_canary_that_cannot_be_forked_changes_nothing(self) -> None:
        """EAGAIN."""
        driver = Reloader(2)
        canary = driver.prepared()
        (told,) = answers(driver.step(ForkFailed(canary.serial, "no more processes")))
        assert "could not be forked: no more processes" in told.reason
        assert driver.pool.state is PoolState.SERVING

    def test_good_reload_succeeds_after_a_failed_one(self) -> None:
        """A failure leaves nothing behind."""
        driver = Reloader(2)
        driver.step(NotPrepared("bad"))
        assert Prepare() in driver.step(Asked(Command.RELOAD, 8), after=1.0)
        driver.committed()
        assert answers(driver.roll()) == [Answer(8, ok=True)]

    def test_old_worker_that_dies_while_the_canary_boots_is_replaced_by_an_old_one(self) -> None:
        """The service is what it was until the commit."""
        driver = Reloader(2)
        canary = driver.prepared()
        (start,) = starts(driver.step(WorkerExited(driver.old[0], KILLED)))
        assert (start.slot, start.generation) == (0, 1)
        driver.step(WorkerBooted(canary.serial))
        driver.step(WorkerReady(canary.serial))
        assert sent(driver.step(WorkerReady(start.serial))) == [(start.serial, Order.RETIRE)]  # overtaken
        assert answers(driver.roll()) == [Answer(ASKER, ok=True)]

    def test_newcomer_that_fails_is_retried_while_its_predecessor_serves(self) -> None:
        """After the commit it goes forward only."""
        driver = Reloader(2).committed()
        newcomer = driver.serial_of_newcomer(1)
        driver.step(WorkerExited(newcomer, "exited with code 1", "no database"))
        assert driver.pool.workers[driver.old[1]].state is WorkerState.READY
        assert driver.pool.state is PoolState.RELOADING
        driver.until_newcomer(1)
        assert answers(driver.roll()) == [Answer(ASKER, ok=True)]

    def test_incomplete_reload_is_told_and_goes_on(self) -> None:
        """After timeouts.boot for each worker: n of m, degraded; the predecessors serve."""
        driver = Reloader(2, boot_timeout=5.0).committed()
        driver.step(WorkerExited(driver.old[0], "exited with code 0"))
        told: list[Answer] = []
        while not told:
            newcomer = driver.serial_of_newcomer(1)
            actions = driver.step(WorkerExited(newcomer, "exited with code 1", "no database"))
            told = answers(actions) + answers(driver.until_newcomer(1))
        assert not told[0].ok
        assert "1 of 2 workers replaced" in told[0].reason
        assert driver.pool.state is PoolState.DEGRADED
        assert driver.pool.workers[driver.old[1]].state is WorkerState.READY
        assert driver.pool.generation == 2
        driver.roll()
        assert driver.pool.outdated() == []
        assert driver.pool.state is PoolState.SERVING

    def test_more_and_fewer_workers(self) -> None:
        """A reload sets their number, whatever scale and TTIN made of it."""
        driver = Reloader(2)
        driver.committed(workers=4)
        driver.roll()
        assert sorted(w.slot for w in driver.pool.workers.values()) == [0, 1, 2, 3]
        driver.step(Asked(Command.RELOAD, ASKER), after=1.0)
        driver.committed(workers=1)
        driver.roll()
        assert [w.slot for w in driver.pool.workers.values()] == [0]

    def test_requests_during_a_reload_are_one_more_reload(self) -> None:
        """Everybody is answered by one that began after the request."""
        driver = Reloader(1)
        for asker in range(20, 40):
            driver.step(Asked(Command.RELOAD, asker))
        driver.committed()
        actions = driver.roll()
        assert [told.asker for told in answers(actions)] == [ASKER]
        assert Prepare() not in actions
        assert Prepare() in driver.step(after=QUIET_INTERVAL)
        driver.committed()
        assert [told.asker for told in answers(driver.roll())] == list(range(20, 40))

    def test_who_has_left_is_forgotten_and_the_reload_goes_on(self) -> None:
        """The one that runs, and the one that comes after it, which begins no sooner than it would have."""
        driver = Reloader(1)
        for asker in range(20, 40):
            driver.step(Asked(Command.RELOAD, asker))
            driver.step(AskerLeft(asker))
        driver.step(AskerLeft(ASKER))
        driver.committed()
        assert answers(driver.roll()) == []
        assert Prepare() not in driver.step(Asked(Command.RELOAD, 40))
        assert Prepare() in driver.step(after=QUIET_INTERVAL)
        driver.committed()
        assert [told.asker for told in answers(driver.roll())] == [40]

    def test_storm_of_requests_is_three_generations(self) -> None:
        """A thousand HUPs within a second, however quick a reload is."""
        driver = Reloader(1)
        count = 0
        for _ in range(1000):
            driver.roll()
            if Prepare() in driver.step(Command.RELOAD, after=0.001) or count == 0:
                driver.committed()
                count += 1
        driver.roll()
        if Prepare() in driver.step(after=LONGEST_WAIT):
            driver.committed()
        driver.roll()
        assert driver.pool.generation == 3

    def test_storm_without_end_does_not_put_a_reload_off_for_ever(self) -> None:
        """At most LONGEST_WAIT."""
        driver = Reloader(1)
        driver.step(Command.RELOAD)
        driver.committed()
        driver.roll()
        waited = 0.0
        while Prepare() not in driver.step(Command.RELOAD, after=0.1):
            waited += 0.1
            assert waited < LONGEST_WAIT + 0.2

    @pytest.mark.parametrize("command", [Command.SCALE, Command.MORE, Command.FEWER])
    def test_scaling_is_refused_meanwhile(self, command: Command) -> None:
        """The reload sets the number of workers itself."""
        driver = Reloader(2)
        driver.prepared()
        (told,) = answers(driver.step(Asked(command, 8, 3)))
        assert "a reload is under way" in told.reason
        assert len(driver.pool.slots) == 2

    @pytest.mark.parametrize("stage", ["asked", "prepared", "committed"])
    def test_stop_ends_it(self, stage: str) -> None:
        """At each of its stages: the asker is told, and everybody leaves."""
        driver = Reloader(2)
        if stage == "prepared":
            driver.prepared()
        elif stage == "committed":
            driver.committed()
        (told,) = answers(driver.step(Command.STOP))
        assert told == Answer(ASKER, ok=False, reason="reload given up: the service is stopping")
        end = None
        for serial in list(driver.pool.workers):
            end = finish(driver.step(WorkerExited(serial, "exited with code 0")))
        assert end == Finish(Ending.ASKED)

    def test_is_refused_while_leaving(self) -> None:
        """With the reason."""
        driver = Driver(1).started()
        driver.step(Command.STOP)
        (told,) = answers(driver.step(Asked(Command.RELOAD, ASKER)))
        assert told == Answer(ASKER, ok=False, reason="cannot reload: the service is stopping")

    def test_waits_for_the_first_worker(self) -> None:
        """HUP while nothing is known to work."""
        driver = Driver(2)
        first, _second = starts(driver.step())
        assert Prepare() not in driver.step(Asked(Command.RELOAD, ASKER))
        assert Prepare() in driver.step(WorkerReady(first.serial))

    def test_listeners_that_went_are_closed_by_the_last_old_worker(self) -> None:
        """Until then somebody accepts there; what is queued then is its affair."""
        driver = Reloader(2)
        driver.committed(closes=True)
        assert sent(driver.actions)[-1] == (driver.old[0], Order.RETIRE)
        assert Withdraw() not in driver.actions
        actions = driver.step(WorkerReady(driver.serial_of_newcomer(1)))
        assert actions.index(Withdraw()) < actions.index(Send(driver.old[1], Order.DRAIN))
        assert Withdraw() not in driver.roll()

    def test_listeners_that_went_are_closed_though_the_last_old_worker_died(self) -> None:
        """Nobody serves them any more."""
        driver = Reloader(2).committed(closes=True)
        assert Withdraw() in driver.step(WorkerExited(driver.old[1], KILLED))

    def test_resident_goes_on_under_the_new_terms(self) -> None:
        """-w 0: no canary, nobody leaves."""
        pool = Pool(Policy(1, resident=True))
        (start,) = starts(pool.step(None, 0.0))
        pool.step(WorkerReady(start.serial), 0.0)
        assert Prepare() in pool.step(Asked(Command.RELOAD, ASKER), 1.0)
        actions = pool.step(Prepared(pool.policy), 1.0)
        assert Commit() in actions
        assert answers(actions) == [Answer(ASKER, ok=True)]
        assert starts(actions) == sent(actions) == []
        assert pool.generation == 2


class Upgrader(Driver):
    """A pool that has just been asked to upgrade, by ASKER."""

    def __init__(self, workers: int = 2, **policy: float) -> None:
        super().__init__(workers, **policy)
        self.started()
        self.old = sorted(self.pool.workers)
        assert StartSuccessor() in self.step(Asked(Command.UPGRADE, ASKER))


class TestUpgrade:
    def test_old_workers_leave_when_the_new_master_serves(self) -> None:
        """It is let go of first, then the asker is answered; the queues are the new one's."""
        driver = Upgrader()
        actions = driver.step(SuccessorReady(4711))
        assert actions.index(Depart()) < actions.index(Answer(ASKER, ok=True))
        assert sent(actions) == [(serial, Order.RETIRE) for serial in driver.old]
        assert CloseDoor() not in actions
        assert driver.pool.is_leaving
        for serial in driver.old:
            actions = driver.step(WorkerExited(serial, "exited with code 0"))
        assert finish(actions) == Finish(Ending.ASKED)

    def test_what_the_new_master_has_not_is_served_to_its_end(self) -> None:
        """A listener that went: who is queued there is the old workers' affair."""
        driver = Upgrader()
        actions = driver.step(SuccessorReady(4711, has_all=False))
        assert sent(actions) == [(serial, Order.DRAIN) for serial in driver.old]

    def test_new_master_that_fails_changes_nothing(self) -> None:
        """The reason is told, and remembered; another upgrade may be asked for."""
        driver = Upgrader()
        actions = driver.step(SuccessorFailed("exited with code 78"))
        reason = "upgrade failed, nothing is changed: exited with code 78"
        assert answers(actions) == [Answer(ASKER, ok=False, reason=reason)]
        assert (sent(actions), driver.pool.state) == ([], PoolState.SERVING)
        assert driver.pool.upgrade.last == Attempt(ok=False, reason=reason, at=driver.now)
        assert StartSuccessor() in driver.step(Command.UPGRADE)

    def test_new_master_that_is_not_ready_in_time_is_ended(self) -> None:
        """At ``timeouts.boot``."""
        driver = Upgrader(boot_timeout=7.0)
        assert driver.pool.deadline() == driver.now + 7.0
        actions = driver.step(after=7.0)
        assert EndSuccessor() in actions
        assert "did not serve within timeouts.boot = 7 s" in answers(actions)[0].reason
        assert not driver.pool.is_leaving

    @pytest.mark.parametrize("command", [Command.UPGRADE, Command.RELOAD, Command.SCALE, Command.MORE])
    def test_nothing_else_is_begun_meanwhile(self, command: Command) -> None:
        """One change at a time."""
        actions = Upgrader().step(Asked(command, ASKER + 1, number=3))
        (answer,) = answers(actions)
        assert (answer.asker, answer.ok) == (ASKER + 1, False)
        assert "upgrade is under way" in answer.reason
        assert starts(actions) == []

    def test_is_refused_during_a_reload(self) -> None:
        assert "a reload is under way" in answers(Reloader(2).step(Asked(Command.UPGRADE, ASKER + 1)))[0].reason

    def test_is_refused_while_starting_stopping_and_without_workers(self) -> None:
        """There is nothing to hand over, or nobody to go on."""
        driver = Driver(2)
        driver.step()
        assert "is starting" in answers(driver.step(Asked(Command.UPGRADE, ASKER)))[0].reason
        driver = Driver(2).started()
        driver.step(Command.STOP)
        assert "is stopping" in answers(driver.step(Asked(Command.UPGRADE, ASKER)))[0].reason
        driver = Driver(1, resident=True).started()
        assert "this one process" in answers(driver.step(Asked(Command.UPGRADE, ASKER)))[0].reason

    def test_stop_gives_it_up(self) -> None:
        """The new master is ended first."""
        driver = Upgrader()
        actions = driver.step(Command.STOP)
        assert EndSuccessor() in actions
        assert "upgrade given up: the service is stopping" in answers(actions)[0].reason
        assert Depart() not in driver.step(SuccessorReady(4711))

    def test_worker_that_dies_meanwhile_is_replaced(self) -> None:
        """Until the new master serves, the old pool is the service."""
        driver = Upgrader()
        assert len(starts(driver.step(WorkerExited(driver.old[0], KILLED)))) == 1

    @pytest.mark.parametrize("command", [Command.STOP, Command.STOP_NOW])
    def test_stop_that_is_asked_of_a_master_that_has_handed_over_is_refused(self, command: Command) -> None:
        """Who asks by the control socket means the service, which goes on; a signal means this process."""
        driver = Upgrader()
        driver.step(SuccessorReady(4711))
        (answer,) = answers(driver.step(Asked(command, ASKER + 1)))
        assert (answer.ok, "handed over to pid 4711" in answer.reason) == (False, True)
        assert driver.pool.state is PoolState.DRAINING
        driver.step(Command.STOP_NOW)
        assert driver.pool.state is PoolState.STOPPING

    @pytest.mark.parametrize(
        ("last", "ends"),
        [
            (PredecessorIs(Predecessor.GONE), True),
            (PredecessorIs(Predecessor.SILENT), True),
            (Command.STOP_NOW, True),
            (Command.STOP, False),
        ],
    )
    def test_master_that_has_handed_over_stays_for_the_word_of_the_one_before(self, last: Event, *, ends: bool) -> None:
        """Who knows nobody else to tell what its workers count; but not for one that is stopped, nor against orders."""
        driver = Upgrader()
        driver.step(PredecessorIs(Predecessor.LEAVES))
        driver.step(SuccessorReady(4711))
        for serial in driver.old:
            actions = driver.step(WorkerExited(serial, "exited with code 0"))
        assert driver.pool.deadline() is None
        assert Finish(Ending.ASKED) not in actions
        assert (Finish(Ending.ASKED) in driver.step(last)) is ends

    @pytest.mark.parametrize("state", [Predecessor.HOLDS, Predecessor.SILENT])
    def test_is_refused_while_the_master_before_is_stuck(self, state: Predecessor) -> None:
        """It is named, and what to do about it."""
        driver = Driver(2).started()
        driver.pool.upgrade.predecessor_pid = 4710
        driver.step(PredecessorIs(state))
        (answer,) = answers(driver.step(Asked(Command.UPGRADE, ASKER)))
        assert f"cannot upgrade: the master before this one (pid 4710) {state.value}; " in answer.reason
        driver.step(PredecessorIs(Predecessor.GONE))
        assert StartSuccessor() in driver.step(Command.UPGRADE)
