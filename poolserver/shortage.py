"""Out of descriptors or memory: how the lanes of one crew hold back and say so once. And how many there are."""

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


class Shortage:
    """Out of descriptors or memory: one line for each episode, whichever lane of the crew meets it first.

    While it ``is_on``, lanes wait for what they have alone, and one tries accept(2) after each pause: a lane that waits
    for the listener takes wake-ups from sibling workers that could serve. ``on_begin`` and ``on_end`` see to that.
    """

    def __init__(self, on_begin: Callable[[], None], on_end: Callable[[], None]) -> None:
        self.is_on = False
        self._on_begin = on_begin
        self._on_end = on_end
        self._next_try = 0.0
        self._is_told = False
        self._since = 0.0
        self._until = 0.0
        self._lock = threading.Lock()

    def begin(self, error: OSError) -> None:
        with self._lock:
            self._next_try = time.monotonic() + PAUSE
            if not self.is_on:
                self._on_begin()
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
                self._on_end()

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
