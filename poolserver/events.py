"""The vocabulary between the master and the pure pool: events that happen, actions to carry out."""

import enum
from dataclasses import dataclass

from poolserver.commands import Command, Order
from poolserver.states import Policy


@dataclass(frozen=True, slots=True)
class WorkerBooted:
    """It has loaded the handler and built the server objects. A canary waits from here on."""

    serial: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    serial: int


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """``how`` is a clause such as "was killed by SIGKILL", which may have further lines with its last stack; ``reason``
    what it reported before, or empty."""

    serial: int
    how: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WorkerSpent:
    """It has served enough, and is to be replaced when its turn comes. ``why`` is a clause."""

    serial: int
    why: str


@dataclass(frozen=True, slots=True)
class WorkerSick:
    """``why`` is a clause. One that ``is_silent`` has nothing to finish: it cannot."""

    serial: int
    why: str
    is_silent: bool


@dataclass(frozen=True, slots=True)
class WorkerRevived:
    """One that was silent gives signs of life again."""

    serial: int


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
class Prepared:
    """What a reload needs is there: the configuration is valid, what is new is bound.

    ``closes``: some listeners are not in the new configuration.
    """

    policy: Policy
    closes: bool = False


@dataclass(frozen=True, slots=True)
class NotPrepared:
    """A reload cannot begin; nothing was changed. ``reason`` may have further lines."""

    reason: str


@dataclass(frozen=True, slots=True)
class SuccessorReady:
    """The master that an upgrade started serves, and has what only one can: the old workers may leave.

    ``has_all``: it serves every listener, too, and takes who is parked; what it has not goes with us.
    """

    pid: int
    has_all: bool = True


@dataclass(frozen=True, slots=True)
class SuccessorFailed:
    """It could not be started, or has ended. ``reason`` may have further lines."""

    reason: str


class Predecessor(enum.Enum):
    """How the master is whom an upgrade has replaced by us."""

    GONE = "gone"
    HOLDS = "has not let go as yet"
    LEAVES = "has let go, and its workers finish"
    SILENT = "has let go, and gives no signs of life"


@dataclass(frozen=True, slots=True)
class PredecessorIs:
    """It is so from now on."""

    state: Predecessor


@dataclass(frozen=True, slots=True)
class Asked:
    """An operator asked through the control socket, and waits for the truth. ``number`` is for ``SCALE``."""

    command: Command
    asker: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class AskerLeft:
    """An operator waits no longer for what was asked, which goes on."""

    asker: int


NOBODY = -1
"""The asker of a command that came by signal. Others count from 0."""

Event = (
    WorkerBooted
    | WorkerReady
    | WorkerExited
    | WorkerSpent
    | WorkerSick
    | WorkerRevived
    | ForkFailed
    | ListenerLost
    | Prepared
    | NotPrepared
    | SuccessorReady
    | SuccessorFailed
    | PredecessorIs
    | Command
    | Asked
    | AskerLeft
    | None
)
"""None: only time has passed. A bare Command came by signal: nobody waits for an answer."""


@dataclass(frozen=True, slots=True)
class Start:
    """Fork a worker with so many ``lanes``. A canary is to wait for ``Order.GO`` once it has booted."""

    serial: int
    slot: int
    generation: int = 1
    lanes: int = 8
    is_canary: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    serial: int
    order: Order


@dataclass(frozen=True, slots=True)
class Examine:
    """Ask a worker that does not answer by itself where its threads are, for the log."""

    serial: int


@dataclass(frozen=True, slots=True)
class Announce:
    """All workers accept for the first time."""


@dataclass(frozen=True, slots=True)
class CloseDoor:
    """No new connections into the accept queues: the service ends."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Read the configuration again and bind what is new; answered by ``Prepared`` or ``NotPrepared``."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The generation that was prepared is the current one from here on."""


@dataclass(frozen=True, slots=True)
class Abandon:
    """The generation that was prepared will not be: close what was bound for it."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Close the listeners that the current generation does not have: nobody but one last worker accepts there."""


@dataclass(frozen=True, slots=True)
class StartSuccessor:
    """Start a new master on the same listeners; answered by ``SuccessorReady`` or ``SuccessorFailed``."""


@dataclass(frozen=True, slots=True)
class EndSuccessor:
    """The new master is not wanted any more."""


@dataclass(frozen=True, slots=True)
class Depart:
    """The new master has taken over: let go of what it has, and of all other listeners."""


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


Action = (
    Start
    | Send
    | Examine
    | Announce
    | CloseDoor
    | Prepare
    | Commit
    | Abandon
    | Withdraw
    | StartSuccessor
    | EndSuccessor
    | Depart
    | ReopenLogs
    | Say
    | Answer
    | Finish
)
