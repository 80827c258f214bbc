"""The access log: one line for each connection, when it is over.

Lanes tell it. It goes with the log (``log.access = true``), or to a file of its own, which is opened, written and
reopened as the log is. Nobody waits for it.
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

Moved = tuple[int, int] | None
"""Bytes from the client and bytes to it; None where nobody counts them."""

_WORDS = {Outcome.SERVED: "ok", Outcome.ERRORS: "error", Outcome.CUT: "cut"}


def moved(request: Any) -> Moved:
    """What a connection has moved, as the kernel counts it; asked before it is closed. Of a datagram, its size."""
    if isinstance(request, tuple):
        return len(request[0]), 0
    return transferred(request) if isinstance(request, socket.socket) else None


def tell(station: Station, address: Any, lane: int | None, began: float, sizes: Moved, outcome: Outcome) -> None:
    """A connection is over.

    Args:
        station: Where it came in.
        address: Its peer's.
        lane: The lane that had it last; None: it waited for one in vain.
        began: When it was accepted, in monotonic seconds.
        sizes: What it has moved.
        outcome: How it ended.
    """
    fields = {
        "peer": peer_name(address),
        "listener": station.url,
        "lane": "-" if lane is None else lane,
        "seconds": round(time.monotonic() - began, 6),
        "in": "-" if sizes is None else sizes[0],
        "out": "-" if sizes is None else sizes[1],
        "outcome": _WORDS.get(outcome) or ("timeout" if outcome.name.startswith("TIMEOUT_") else "refused"),
    }
    _log.info("access: %s", " ".join(f"{name}={value}" for name, value in fields.items()), extra=fields)
