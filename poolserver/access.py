"""The access log: one line for each connection that came to a handler, or waited for one in vain, when it is over.

Lanes tell it. It goes with the log (``log.access = true``), or to a file of its own, which is opened, written and
reopened as the log is. Nobody waits for it. Who was refused has no line: refusals are counted, since whoever floods
us is not to fill the disk.
"""

import logging
import socket
import time
from typing import Any

from poolserver import log
from poolserver.adapter import peer_name
from poolserver.rows import Outcome
from poolserver.station import Station
from poolserver.tcp_info import transferred

_log = logging.getLogger(log.ACCESS)

Moved = tuple[int | None, int | None]
"""Bytes from the client and bytes to it; None where nobody counts them."""

UNCOUNTED: Moved = (None, None)


def moved(request: Any) -> Moved:
    """What a connection has moved, as the kernel counts it; asked before it is closed. Of a datagram, its size."""
    if isinstance(request, tuple):
        return len(request[0]), None
    return (transferred(request) if isinstance(request, socket.socket) else None) or UNCOUNTED


def tell(station: Station, address: Any, lane: int | None, began: float, sizes: Moved, outcome: Outcome) -> None:
    """A connection is over.

    Args:
        station: Where it came in.
        address: Its peer's.
        lane: The lane that had it last; None: it waited for one in vain.
        began: When it was accepted, or came from another worker, in monotonic seconds.
        sizes: What it has moved.
        outcome: How it ended.
    """
    fields = {
        "peer": peer_name(address),
        "listener": station.url,
        "worker": log.slot(),
        "lane": lane,
        "duration": round(time.monotonic() - began, 6),
        "bytes_in": sizes[0],
        "bytes_out": sizes[1],
        "outcome": word(outcome),
    }
    words = (f"{name}={'-' if value is None else value}" for name, value in fields.items())
    _log.info("access: %s", " ".join(words), extra=fields)


def word(outcome: Outcome) -> str:
    """How an end is called: ok, error, timeout; whatever else cut it short is cut."""
    match outcome:
        case Outcome.SERVED:
            return "ok"
        case Outcome.ERRORS:
            return "error"
        case _:
            return "timeout" if outcome.name.startswith("TIMEOUT_") else "cut"
