"""Who of an event loop's connections is past a deadline, or idle; and exceptions that nobody caught. Runs in the loop.

At ``timeouts.handler`` the handler is cancelled; one that does not come back within a grace counts as hung, as in
``deadlines.py``.
"""

import asyncio
import logging
import math
import sys
import time
import traceback
from collections.abc import Collection
from typing import Any

from poolserver.adapter import peer_name
from poolserver.aio_protocols import seat_of
from poolserver.aio_seat import Seat
from poolserver.deadlines import HANG_GRACE
from poolserver.failures import log_failure, log_line
from poolserver.rows import Outcome

SWEEP = 0.5
FINEST_SWEEP = 0.05
"""Seconds between looks, while there are connections."""


class Sweeps:
    """Looks at ``busy``, from ``wake`` on until nobody is.

    Args:
        loop: Whose connections they are.
        busy: Them.
        shortest: The least of the idle time-outs, in seconds; infinite for none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, busy: Collection[Seat], shortest: float) -> None:
        self._loop = loop
        self._busy = busy
        self._interval = max(FINEST_SWEEP, min(SWEEP, shortest / 4))
        self._is_awake = False

    def wake(self) -> None:
        """Somebody has a connection."""
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_later(self._interval, self._sweep)

    def _sweep(self) -> None:
        now = time.monotonic()
        for seat in list(self._busy):
            if now >= seat.deadline:
                _enforce(seat, now)
            elif now >= seat.next_look:
                seat.look(now)
        self._is_awake = False
        if self._busy:
            self.wake()


def _enforce(seat: Seat, now: float) -> None:
    peer = peer_name(seat.address)
    if not seat.is_ended_from_outside:
        seat.deadline = now + HANG_GRACE
        log_line(logging.WARNING, "%s reached timeouts.handler; its handler is cancelled", peer)
        seat.cancel(Outcome.TIMEOUT_HANDLER)
        return
    seat.deadline = math.inf
    seat.abort(Outcome.TIMEOUT_HANDLER)
    seat.mark_hung()
    text = "the handler of %s hangs: it has not come back %g s after it was cancelled"
    log_line(logging.ERROR, text, peer, HANG_GRACE)


def report(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody caught, and count it for the connection that it is of. Source: loop.call_exception_handler."""
    error, message = context.get("exception"), context.get("message", "asyncio")
    seat = seat_of(context.get("protocol"))
    if error is None:
        log_line(logging.ERROR, "%s", message)
    elif seat is not None:
        seat.on_failure(error)
    else:
        log_failure("%s", message, error=error)


def report_exit() -> None:
    """The same of a SystemExit or KeyboardInterrupt, which asyncio lets through: the loop is to be run again."""
    error = sys.exception()
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__ if error else None))
    seats = (seat_of(frame.f_locals.get("self")) for frame in frames)
    seat = next((each for each in seats if each is not None), None)
    if seat is None or error is None:
        log_failure("a callback of the event loop raised")
    else:
        seat.on_failure(error)
        seat.abort(Outcome.ERRORS)
