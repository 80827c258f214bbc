"""The vocabulary between the master and the pure pool: events that happen, actions to carry out."""

import enum
from dataclasses import dataclass

from poolserver.commands import Command, Order


@dataclass(frozen=True, slots=True)
class WorkerReady:
    serial: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """``how`` is a clause such as "was killed by SIGKILL"; ``reason`` what it reported before, or empty."""

    serial: int
    how: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ForkFailed:
    serial: int
    reason: str


@dataclass(frozen=True, slots=True)
class ListenerLost:
    """A worker left because a listener no longer accepts and cannot be revived."""

    serial: int
    reason: str


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator asked through the control socket, and waits for the truth. ``number`` is for ``SCALE``."""

    command: Command
    asker: int
    number: int = 0


NOBODY = -1
"""The asker of a command that came by signal. Others count from 0."""

Event = WorkerReady | WorkerExited | ForkFailed | ListenerLost | Command | Asked | None
"""None: only time has passed. A bare Command came by signal: nobody waits for an answer."""


@dataclass(frozen=True, slots=True)
class Start:
    """Fork a worker."""

    serial: int
    slot: int


@dataclass(frozen=True, slots=True)
class Send:
    serial: int
    order: Order


@dataclass(frozen=True, slots=True)
class Announce:
    """All workers accept for the first time."""


@dataclass(frozen=True, slots=True)
class CloseDoor:
    """No new connections into the accept queues: the service ends."""


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    pass


@dataclass(frozen=True, slots=True)
class Say:
    """A line for the log; ``level`` is a name of the logging module."""

    level: str
    text: str
    details: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether what ``asker`` asked for has happened; if not, why."""

    asker: int
    ok: bool
    reason: str = ""


class Ending(enum.Enum):
    """Why the pool ended."""

    ASKED = "asked"
    NO_WORKER_STARTED = "no worker could start"
    NO_FORK = "the system refused every fork"
    LISTENER_LOST = "a listener was lost"


@dataclass(frozen=True, slots=True)
class Finish:
    """Every worker is gone: release what is left and end."""

    ending: Ending
    reason: str = ""


Action = Start | Send | Announce | CloseDoor | ReopenLogs | Say | Answer | Finish
