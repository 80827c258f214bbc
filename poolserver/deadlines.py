"""The handler deadline: a connection's whole time in its handler, however it trickles. Enforced by the crew's watcher.

At the deadline the connection is shut down from outside, which unblocks most handlers. A lane that has not come back
after a grace counts as hung.
"""

import logging
import math
import sys
import threading
import traceback
from collections.abc import Mapping

from poolserver.adapter import peer_name, shut
from poolserver.lane import Lane
from poolserver.scoreboard import Outcome

_log = logging.getLogger("poolserver")

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
    text = f"lane {lane.number}: {peer_name(address)} reached timeouts.handler; its connection is shut down"
    _log.warning("%s", text, extra={"details": _stack(thread)})
    shut(request)


def _say_hung(lane: Lane, address: object) -> None:
    lane.deadline = math.inf
    lane.mark_hung()
    _log.error(
        "lane %d hangs: the handler of %s has not come back %g s after its connection was shut down",
        lane.number,
        peer_name(address),
        HANG_GRACE,
    )


def _stack(thread: threading.Thread) -> str:
    """Where the lane is, innermost call last. Source: sys._current_frames."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else ""
