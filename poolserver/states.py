"""What the pool keeps: the states, and a record for each worker and each slot. Pure data."""

import enum
from dataclasses import dataclass

FIRST_DELAY = 0.5
DELAY_GROWTH = 1.5
LONGEST_DELAY = 30.0
DELAY_JITTER = 0.2
"""Back-off of a worker that dies before it was ready: at once, then 0.5 s × 1.5ⁿ up to 30 s, each ± 20 % so that
the slots of a broken pool do not try in step."""


class WorkerState(enum.Enum):
    """Where a worker is between its fork and its burial."""

    CANARY = "canary"  # the first of a new generation: boots, and waits for the commit before it accepts
    STARTING = "starting"
    READY = "ready"
    HUNG = "hung"  # without signs of life, or with a lane that hangs; its replacement is on its way
    RETIRING = "retiring"
    STOPPING = "stopping"  # told to leave at once
    KILLED = "killed"  # sent KILL; only its burial is left

    @property
    def word(self) -> str:
        """The same in the words of ``status``: starting, ready, hung, retiring."""
        return _WORDS.get(self, self.value)


_WORDS = {WorkerState.CANARY: "starting", WorkerState.STOPPING: "retiring", WorkerState.KILLED: "retiring"}


class PoolState(enum.Enum):
    """Where the service is."""

    STARTING = "starting"  # not every worker has accepted yet
    SERVING = "serving"
    RELOADING = "reloading"
    DEGRADED = "degraded"  # serving, but a slot waits for its worker to start
    DRAINING = "draining"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Happening(enum.Enum):
    """What can befall one worker."""

    BOOTED = "has loaded its handler"
    READY = "accepts"
    EXITED = "was reaped"
    OVERDUE = "passed its deadline"


@dataclass(frozen=True)
class Policy:
    """What the operator set. Times in seconds.

    ``resident``: the one worker is this process itself (``-w 0``, thread servers), so its number cannot change.
    """

    workers: int
    boot_timeout: float = 30.0
    graceful_timeout: float = 30.0
    resident: bool = False
    lame_duck_timeout: float = 0.0
    lanes: int = 8
    most_workers: int = 1024
    """More are refused: the scoreboard has no room for them."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """An operator waits for this number of workers to accept, until ``deadline``."""

    asker: int
    number: int
    deadline: float


@dataclass(slots=True)
class Worker:
    """One started worker process, from its fork to its burial."""

    serial: int
    slot: int
    state: WorkerState
    deadline: float
    policy: Policy
    generation: int = 1
    was_ready: bool = False
    killed_for: str = ""
    is_silent: bool = False
    """Without signs of life: it has nothing to finish."""
    spent: str = ""
    """Why it is to be replaced some time soon, being in good health (recycling)."""
    is_outgoing: bool = False
    """It is being replaced, and serves until its replacement accepts."""
    is_respawn: bool = False
    """It comes after one that died."""

    @property
    def is_accepting(self) -> bool:
        """Whether it takes connections, as far as we know."""
        return self.state in (WorkerState.READY, WorkerState.HUNG)


@dataclass(slots=True)
class Slot:
    """A stable number. ``due`` is when its next worker is to start; None while it has one."""

    number: int
    failures: int = 0
    has_started: bool = False
    due: float | None = 0.0

    def put_off(self, now: float, jitter: float) -> None:
        """Its worker died before it was ready: the next one at once, then later and later. ``jitter`` is 0 to 1."""
        self.failures += 1
        delay = 0.0
        if self.failures > 1:
            delay = min(FIRST_DELAY * DELAY_GROWTH ** min(self.failures - 2, 100), LONGEST_DELAY)
            delay *= 1 + DELAY_JITTER * (2 * jitter - 1)
        self.due = now + delay
