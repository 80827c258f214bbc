"""The parties that the master's loop works with, as it sees them: workers, attendants, the desk, the succession."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from poolserver.events import Event, NotPrepared, Prepared, Start, SuccessorFailed
from poolserver.process import Report
from poolserver.scoreboard import Berth


class WorkerHandle(Protocol):
    """The master's side of a worker: a ``Process``, or a ``Resident`` in this one."""

    pid: int
    reason: str
    status: int | None

    @property
    def has_exit_descriptor(self) -> bool: ...
    @property
    def how(self) -> str: ...
    def descriptors(self) -> list[int]: ...
    def reports(self) -> list[Report]: ...
    def has_exited(self) -> bool: ...
    def note_reaped(self, status: int) -> None: ...
    def send(self, signum: int) -> None: ...
    def close(self) -> None: ...
    def end(self) -> None: ...


class Succession(Protocol):
    """How one generation follows another: what a reload does outside of the pool. Nothing here waits."""

    def prepare(self) -> Prepared | NotPrepared: ...
    def commit(self) -> None: ...
    def abandon(self) -> None: ...
    def withdraw(self) -> None: ...


class NoSuccession:
    """In a library call: what is served is the caller's. Nothing is ever prepared, so nothing else is called."""

    def prepare(self) -> NotPrepared:
        return NotPrepared("a server object cannot be reloaded")

    def commit(self) -> None:
        """Never."""

    abandon = withdraw = commit


class Upgrader(Protocol):
    """How one master follows another. Nothing here waits, either."""

    def start(self) -> Event: ...
    def end(self) -> None: ...
    def depart(self) -> None: ...


class NoUpgrader:
    """In a library call: what is served is the caller's."""

    def start(self) -> SuccessorFailed:
        return SuccessorFailed("a server object cannot be upgraded")

    def end(self) -> None:
        """Never."""

    depart = end


class Attendant(Protocol):
    """Something else that this loop looks after, which never waits either: the control socket."""

    def interests(self) -> Mapping[int, int]: ...
    def deadline(self) -> float: ...
    def attend(self, ready: Collection[int], now: float) -> Sequence[Event]: ...


class Desk(Protocol):
    """Where operators are answered, and workers examined."""

    def answer(self, asker: int, ok: bool, reason: str) -> None: ...
    def examine(self, serial: int) -> None: ...
    def last_words(self, serial: int) -> str: ...


class NoDesk:
    """In a library call nobody asks."""

    def answer(self, asker: int, ok: bool, reason: str) -> None:
        """Nobody waits for it."""

    def examine(self, serial: int) -> None:
        """Nothing was prepared for it."""

    def last_words(self, _serial: int) -> str:
        return ""


Spawn = Callable[[Start, Berth, Sequence[WorkerHandle]], WorkerHandle]
"""Start a worker in a berth; a forked child must close its copies of the siblings' descriptors.

May raise SystemRefusedError.
"""
