"""How the lanes of one crew hold back: out of descriptors or memory, which is said once, or with more connections than
others have. And how many descriptors there are."""

import errno
import logging
import math
import resource
import threading
import time
from collections.abc import Callable

_log = logging.getLogger("poolserver")

PAUSE = 0.1
"""Seconds without accepting when descriptors have run out (HAProxy's figure; nginx has 0.5)."""

RELIEF = 1.0
"""Seconds without a shortage that end an episode: at the limit each descriptor that is given back ends one otherwise,
and each that is taken begins the next."""

OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def raise_limit() -> None:
    """Let this process and its workers have as many descriptors as they may. Source: setrlimit(2) RLIMIT_NOFILE."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError) as error:
        _log.warning("the limit of descriptors stays as it is: %s", error)


def most_descriptors() -> float:
    """The hard limit of a process; infinite where there is none."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if most == resource.RLIM_INFINITY else most


class Attention:
    """Lanes turn from the listeners while there is a reason to: one that waits for them takes wake-ups from sibling
    workers that could serve."""

    def __init__(self, turn_from: Callable[[], None], listen: Callable[[], None]) -> None:
        self._turn_from, self._listen = turn_from, listen
        self._reasons: set[object] = set()
        self._lock = threading.Lock()

    def turn_from(self, reason: object) -> None:
        """Until ``turn_back`` for the same reason."""
        with self._lock:
            if not self._reasons:
                self._turn_from()
            self._reasons.add(reason)

    def turn_back(self, reason: object) -> None:
        """Unless there is another reason left."""
        with self._lock:
            if reason in self._reasons:
                self._reasons.remove(reason)
                if not self._reasons:
                    self._listen()


class Shortage:
    """Out of descriptors or memory: one line for each episode, whichever lane of the crew meets it first.

    While it ``is_on``, lanes wait for what they have alone, and one tries accept(2) after each pause.
    """

    def __init__(self, attention: Attention) -> None:
        self.is_on = False
        self._attention = attention
        self._next_try = 0.0
        self._is_told = False
        self._since = 0.0
        self._until = 0.0
        self._lock = threading.Lock()

    def begin(self, error: OSError) -> None:
        with self._lock:
            self._next_try = time.monotonic() + PAUSE
            self._attention.turn_from(self)
            self.is_on = True
            if self._is_told:
                return
            self._is_told = True
            self._since = time.monotonic()
        _log.error("accepting is paused: %s; raise LimitNOFILE, or serve fewer at once", error.strerror)

    def end(self) -> None:
        with self._lock:
            if self.is_on:
                self.is_on = False
                self._until = time.monotonic()
                self._attention.turn_back(self)

    def is_due(self) -> bool:
        """Whether it is time to try, though there is other work."""
        return self.is_on and time.monotonic() >= self._next_try

    def settle(self, now: float) -> None:
        """For the watcher, at each tick: say that the episode is over once it is."""
        with self._lock:
            if self.is_on or not self._is_told or now < self._until + RELIEF:
                return
            self._is_told = False
        _log.warning("accepting again after %.1f s", self._until - self._since)
