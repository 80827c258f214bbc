"""The service at one moment, in plain values that JSON takes as they are: what ``status --json`` prints.

Times in seconds, sizes in bytes, ``cpu`` in CPU seconds, ``at`` in Unix time; None is what there is not, or what the
kernel does not tell. ``metrics.py`` makes it; the table, ``top`` and the exporter show it.
"""

from typing import TypedDict

REFUSALS = ("per_source", "rate", "denied", "banned", "proxy", "verify", "reset")
"""Why a connection can be refused. Reasons that the scoreboard counts beside these are shown, too."""

TIMEOUTS = ("first_byte", "head", "idle", "handler", "handshake", "keep_alive")


class ListenerStatus(TypedDict):
    """``queued``: connections that wait to be accepted; bytes, for datagrams, of which ``drops`` found no room."""

    url: str
    backlog: int | None
    queued: int | None
    drops: int | None


class PoolStatus(TypedDict):
    """``lanes`` is what the pool is to have, ``busy`` those inside a handler, ``idle`` those of ready workers."""

    workers: int
    threads: int
    lanes: int
    busy: int
    idle: int
    parked: int


class LaneStatus(TypedDict):
    """``since``: how long it has been idle, or in this connection's handler."""

    state: str
    since: float
    peer: str | None
    deadline_left: float | None


class WorkerStatus(TypedDict):
    """One process, or a slot that waits for one (``stopped``, without a pid)."""

    slot: int
    pid: int | None
    generation: int | None
    state: str
    age: float | None
    rss: int | None
    cpu: float | None
    accepted: int
    served: int
    errors: int
    refused: int
    lanes: list[LaneStatus]


class Totals(TypedDict):
    """Since the service started, the dead workers' counts included. ``rehearsed``: what a dry run would refuse."""

    accepted: int
    served: int
    errors: int
    cut: int
    refused: dict[str, int]
    rehearsed: dict[str, int]
    timeouts: dict[str, int]
    respawns: int
    reloads: int
    reloads_failed: int


class Attempt(TypedDict):
    """How the last reload or upgrade went."""

    ok: bool
    reason: str
    at: float


class ParkedStatus(TypedDict):
    """Connections that hold no lane: before their first request, and between two."""

    new: int
    between: int
    oldest: float | None


class SourceStatus(TypedDict):
    """Who takes most of the pool, or was refused most."""

    source: str
    active: int
    refused: int


class Durations(TypedDict):
    """How long handlers took: how many at most each of ``bounds``, and more than all; and all of them together."""

    bounds: list[float]
    counts: list[int]
    sum: float


class Snapshot(TypedDict):
    """The whole."""

    name: str
    version: str
    pid: int
    generation: int
    state: str
    uptime: float
    listeners: list[ListenerStatus]
    pool: PoolStatus
    parked: ParkedStatus
    stress: bool
    workers: list[WorkerStatus]
    totals: Totals
    durations: Durations
    sources: list[SourceStatus]
    last_reload: Attempt | None
    last_upgrade: Attempt | None
