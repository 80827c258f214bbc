"""The handler deadline: a connection's whole time in its handler, however it trickles. Enforced by the crew's watcher.

At the deadline the connection is shut down from outside, which unblocks most handlers. A lane that has not come back
after a grace counts as hung.
"""

import logging
import math
import sys
import threading
from collections.abc import Mapping

from poolserver.adapter import cut, peer_name
from poolserver.failures import log_line, log_stack
from poolserver.lane import Lane
from poolserver.rows import Outcome

HANG_GRACE = 5.0
"""Seconds that a handler has to come back once its connection was shut down under it."""

LOOK_INTERVAL = 0.5
"""Seconds between looks: a connection is cut this much after its deadline at the latest."""


def enforce(threads: Mapping[Lane, threading.Thread], now: float) -> None:
    """Shut down what is past its deadline; say what does not come back."""
    for lane, thread in list(threads.items()):
        request, address = lane.request, lane.address
        if now < lane.deadline or request is None:
            continue
        if lane.is_ended_from_outside:
            _say_hung(lane, address)
        else:
            _cut(lane, thread, request, address, now)


def _cut(lane: Lane, thread: threading.Thread, request: object, address: object, now: float) -> None:
    lane.deadline = now + HANG_GRACE
    lane.end_as(request, Outcome.TIMEOUT_HANDLER)
    frame = sys._current_frames().get(thread.ident or 0)
    text = "lane %d: %s reached timeouts.handler; its connection is shut down"
    log_stack(logging.WARNING, frame, text, lane.number, peer_name(address))
    cut(request)


def _say_hung(lane: Lane, address: object) -> None:
    lane.deadline = math.inf
    lane.mark_hung()
    log_line(
        logging.ERROR,
        "lane %d hangs: the handler of %s has not come back %g s after its connection was shut down",
        lane.number,
        peer_name(address),
        HANG_GRACE,
    )
