"""A companion: a forked process beside the workers that serves no client, started again when it dies.

Runs in the master, which looks after it in its loop.
"""

import logging
import math
import random
import select
import time
from collections.abc import Callable, Collection

from poolserver.errors import SystemRefusedError
from poolserver.events import Event
from poolserver.process import Process
from poolserver.states import Slot

_log = logging.getLogger("poolserver")

STABLE_AFTER = 10.0
"""Seconds after which a death is no failed start."""

UNTOLD_EXIT_INTERVAL = 1.0
"""Seconds between looks where no descriptor tells of its death (no pidfd)."""


class Companion:
    """Owns the process until ``close``.

    Args:
        name: What it is, for the log.
        start: Forks it; may raise SystemRefusedError.
        may_restart: False where this process has threads by then, and must not fork.
    """

    def __init__(self, name: str, start: Callable[[], Process], *, may_restart: bool = True) -> None:
        self._name = name
        self._start_one = start
        self._may_restart = may_restart
        self._slot = Slot(0)
        self._process: Process | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """The first one.

        Raises:
            SystemRefusedError: it cannot be forked.
        """
        self._process = self._start_one()
        self._started_at = time.monotonic()
        self._slot.due = None

    def interests(self) -> dict[int, int]:
        return dict.fromkeys(self._process.descriptors(), select.POLLIN) if self._process is not None else {}

    def deadline(self) -> float:
        if self._process is not None and not self._process.has_exit_descriptor:
            return time.monotonic() + UNTOLD_EXIT_INTERVAL
        return math.inf if self._slot.due is None else self._slot.due

    def attend(self, ready: Collection[int], now: float) -> list[Event]:
        """Bury it, start another when it is time."""
        one = self._process
        if one is not None and (not one.has_exit_descriptor or set(ready).intersection(one.descriptors())):
            one.reports()  # it has nothing to report, but an end of file must not spin us
            if one.has_exited():
                self._bury(one, now)
        if self._slot.due is not None and self._slot.due <= now:
            try:
                self.start()
            except SystemRefusedError as error:
                _log.error("%s: %s", self._name, error)
                self._slot.put_off(now, random.random())  # noqa: S311 - jitter
        return []

    def close_in_child(self) -> None:
        """In a forked sibling: its copies of the descriptors."""
        if self._process is not None:
            self._process.close()

    def close(self) -> None:
        """The end of the service: it has nothing to finish."""
        if self._process is not None:
            self._process.end()

    def _bury(self, dead: Process, now: float) -> None:
        dead.close()
        self._process = None
        if now >= self._started_at + STABLE_AFTER:
            self._slot.failures = 0
        if self._may_restart:
            self._slot.put_off(now, random.random())  # noqa: S311 - jitter
            delay = max(0.0, (self._slot.due or now) - now)
            _log.error("%s (pid %d) %s; the next one in %.1f s", self._name, dead.pid, dead.how, delay)
        else:
            _log.error(
                "%s (pid %d) %s; there is none until the service is started again", self._name, dead.pid, dead.how
            )
