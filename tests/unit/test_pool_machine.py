"""The pure pool under random events: whatever happens in whatever order, its invariants hold."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from poolserver.commands import Command
from poolserver.events import (
    Abandon,
    Action,
    Answer,
    Asked,
    AskerLeft,
    Commit,
    Depart,
    EndSuccessor,
    Event,
    Finish,
    ForkFailed,
    ListenerLost,
    NotPrepared,
    Prepare,
    Prepared,
    Send,
    Start,
    StartSuccessor,
    SuccessorFailed,
    SuccessorReady,
    WorkerBooted,
    WorkerExited,
    WorkerReady,
    WorkerRevived,
    WorkerSick,
    WorkerSpent,
)
from poolserver.pool import Pool
from poolserver.states import Policy, WorkerState

STOPS = (Command.STOP, Command.STOP_NOW)
SHRINKING = (Command.FEWER, Command.SCALE, *STOPS)
ACCEPTING = (WorkerState.READY, WorkerState.HUNG)


class PoolMachine(RuleBasedStateMachine):
    """Does what the master does, with workers that do anything at any time."""

    lame_duck = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jitter = 0.5
        policy = Policy(3, boot_timeout=5.0, graceful_timeout=4.0, lame_duck_timeout=self.lame_duck)
        self.pool = Pool(policy, jitter=lambda: self.jitter)
        self.prepared: Event = Prepared(policy)
        self.is_prepared = False
        self.has_successor = False
        self.alive: set[int] = set()
        self.finished = False
        self.askers: set[int] = set()
        self.left: set[int] = set()
        self.next_asker = 0
        self.apply(None)

    def apply(self, event: Event) -> None:
        events = [event]
        while events:
            event = events.pop()
            before = self.accepting()
            actions = self.pool.step(event, self.now)
            self.check_strength(event, before)
            for action in actions:
                assert not self.finished, "nothing is asked after the end"
                if isinstance(action, Prepare):
                    self.is_prepared = isinstance(self.prepared, Prepared)
                    events.append(self.prepared)
                else:
                    self.carry_out(action)

    def carry_out(self, action: Action) -> None:
        """As the master does it."""
        if isinstance(action, Start):
            assert action.serial not in self.alive
            self.alive.add(action.serial)
        elif isinstance(action, Send):
            assert action.serial in self.alive, "only living workers are signalled"
        elif isinstance(action, Answer):
            (self.left if action.asker in self.left else self.askers).remove(action.asker)  # once each
        elif isinstance(action, Commit | Abandon):
            assert self.is_prepared, "once for each preparation, one or the other"
            self.is_prepared = False
        elif isinstance(action, StartSuccessor):
            assert not self.has_successor, "one at a time"
            self.has_successor = True
        elif isinstance(action, EndSuccessor):
            assert self.has_successor
            self.has_successor = False
        elif isinstance(action, Depart):
            assert self.has_successor
        elif isinstance(action, Finish):
            assert not self.alive, "the pool ends when every worker is buried"
            assert not self.askers, "everybody who asked was answered before the end"
            self.finished = True

    def accepting(self) -> int:
        return sum(worker.state in ACCEPTING for worker in self.pool.workers.values())

    def check_strength(self, event: Event, before: int) -> None:
        """No decision of the pool leaves fewer accepting than there were, but to come down to the configured number."""
        command = event.command if isinstance(event, Asked) else event
        is_loss = isinstance(event, WorkerExited | ListenerLost) or self.pool.is_leaving
        if not is_loss and command not in SHRINKING:
            assert self.accepting() >= min(before, len(self.pool.slots))

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

    def some_worker(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.alive)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def worker_is_booted(self, data: st.DataObject) -> None:
        self.apply(WorkerBooted(self.some_worker(data)))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def worker_is_ready(self, data: st.DataObject) -> None:
        self.apply(WorkerReady(self.some_worker(data)))

    @precondition(lambda self: self.alive)
    @rule()
    def all_are_quick(self) -> None:
        for serial in sorted(self.alive):
            self.apply(WorkerBooted(serial))
            self.apply(WorkerReady(serial))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), how=st.sampled_from(["dies", "dies", "dies", "loses its listener", "was never forked"]))
    def worker_dies(self, data: st.DataObject, how: str) -> None:
        serial = self.some_worker(data)
        self.alive.discard(serial)
        if how == "loses its listener" and self.pool.workers[serial].was_ready:
            self.apply(ListenerLost(serial, "lost"))
        elif how == "was never forked" and not self.pool.workers[serial].was_ready:
            self.apply(ForkFailed(serial, "EAGAIN"))
        else:
            self.apply(WorkerExited(serial, "was killed by SIGKILL"))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def worker_has_served_enough(self, data: st.DataObject) -> None:
        self.apply(WorkerSpent(self.some_worker(data), "is old"))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), is_silent=st.booleans())
    def worker_falls_sick(self, data: st.DataObject, is_silent: bool) -> None:
        self.apply(WorkerSick(self.some_worker(data), "hangs", is_silent))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def worker_is_back(self, data: st.DataObject) -> None:
        self.apply(WorkerRevived(self.some_worker(data)))

    @precondition(lambda self: self.alive)
    @rule()
    def who_is_to_leave_leaves(self) -> None:
        leaving = (WorkerState.RETIRING, WorkerState.STOPPING, WorkerState.KILLED)
        for serial in [each.serial for each in self.pool.workers.values() if each.state in leaving]:
            self.alive.discard(serial)
            self.apply(WorkerExited(serial, "exited with code 0"))

    @rule(workers=st.integers(0, 5), closes=st.booleans())
    def the_configuration_changes(self, workers: int, closes: bool) -> None:
        valid = Prepared(replace(self.pool.policy, workers=workers), closes)
        self.prepared = valid if workers else NotPrepared("not valid")

    @rule(command=st.sampled_from([each for each in Command if each not in (*STOPS, Command.REAP, Command.SCALE)]))
    def operator_signals(self, command: Command) -> None:
        self.apply(command)

    @rule()
    def operator_reloads(self) -> None:
        self.apply(Command.RELOAD)

    @rule(command=st.sampled_from([each for each in Command if each is not Command.REAP]), number=st.integers(0, 5))
    def operator_asks(self, command: Command, number: int) -> None:
        if command not in STOPS or number == 0:
            self.askers.add(self.next_asker)
            self.next_asker += 1
            self.apply(Asked(command, self.next_asker - 1, number))

    @precondition(lambda self: self.askers)
    @rule(data=st.data())
    def asker_leaves(self, data: st.DataObject) -> None:
        """What it asked for goes on; an answer that is under way all the same finds nobody."""
        asker = data.draw(st.sampled_from(sorted(self.askers)))
        self.askers.discard(asker)
        self.left.add(asker)
        self.apply(AskerLeft(asker))

    @rule(command=st.sampled_from(STOPS), seldom=st.integers(0, 9))
    def operator_stops(self, command: Command, seldom: int) -> None:
        if seldom == 0:
            self.apply(command)

    @precondition(lambda self: self.has_successor)
    @rule(how=st.sampled_from(["is ready", "has less than all", "fails", "fails"]))
    def successor_tells(self, how: str) -> None:
        if how == "fails":
            self.has_successor = False
            self.apply(SuccessorFailed("exited with code 1"))
        else:
            self.apply(SuccessorReady(4711, how == "is ready"))

    def teardown(self) -> None:
        """Asked to stop, with workers that obey, it ends."""
        self.apply(Command.STOP)
        self.now += self.lame_duck
        self.apply(None)
        for serial in sorted(self.alive):
            self.alive.discard(serial)
            self.apply(WorkerExited(serial, "exited with code 0"))
        assert self.finished

    @invariant()
    def every_living_worker_is_known(self) -> None:
        assert set(self.pool.workers) == self.alive

    @invariant()
    def no_two_workers_of_one_generation_accept_in_a_slot(self) -> None:
        places = [(w.slot, w.generation) for w in self.pool.workers.values() if w.state in ACCEPTING]
        assert len(places) == len(set(places))

    @invariant()
    def at_most_one_newcomer_in_a_slot(self) -> None:
        places = [(w.slot, w.generation) for w in self.pool.workers.values() if w.state is WorkerState.STARTING]
        assert len(places) == len(set(places))

    @invariant()
    def at_most_one_canary(self) -> None:
        canaries = [w for w in self.pool.workers.values() if w.state is WorkerState.CANARY]
        assert len(canaries) <= 1

    @invariant()
    def a_deadline_exists_while_something_is_pending(self) -> None:
        waiting = [w for w in self.pool.workers.values() if w.state not in (*ACCEPTING, WorkerState.KILLED)]
        empty = [slot for slot in self.pool.slots if slot.due is not None]
        may_start = not self.pool.is_leaving and any(w.was_ready for w in self.pool.workers.values())
        is_burial_due = any(w.state is WorkerState.KILLED for w in self.pool.workers.values())
        outdated = not is_burial_due and self.pool.outdated()
        if waiting or (may_start and (empty or outdated)):
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
    def whoever_asked_is_not_forgotten(self) -> None:
        """Somebody waits only while something is under way."""
        if self.askers and not self.pool.is_leaving:
            is_waiting = self.pool.reload.is_running or self.pool.upgrade.is_running
            assert is_waiting or self.pool.deadline() is not None or not self.pool.is_whole

    @invariant()
    def an_upgrade_has_a_successor_and_an_end(self) -> None:
        """Until the old pool leaves."""
        if not self.pool.is_leaving:
            assert self.pool.upgrade.is_running == self.has_successor
            assert not self.has_successor or self.pool.deadline() is not None
            assert not (self.has_successor and self.pool.reload.is_running)

    @invariant()
    def a_draining_pool_is_over_when_nobody_is_left(self) -> None:
        if self.pool.is_leaving and not self.alive and not self.lame_duck:
            assert self.finished

    @invariant()
    def deadlines_are_not_missed(self) -> None:
        assert not [w for w in self.pool.workers.values() if w.deadline <= self.now]


class LameDuckMachine(PoolMachine):
    """The same with a stop that goes on accepting for a while."""

    lame_duck = 3.0


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
LameDuckMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestLameDuckMachine = LameDuckMachine.TestCase
