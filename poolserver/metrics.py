"""The service at one moment, put together in the master: the pool's states, the lanes' rows, what the kernel tells.

``Observer`` makes a ``Snapshot``; everything that shows the service starts from it. What a worker wrote is not trusted:
whatever stands in its rows, this does not raise, and no total goes back.
"""

import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poolserver import __version__, reload
from poolserver.door import Register
from poolserver.listener import Listener
from poolserver.networks import key_text, source_of
from poolserver.pool import Pool
from poolserver.queues import queue_of
from poolserver.rows import DURATION_BOUNDS, MAX_COUNT, LaneState
from poolserver.scoreboard import Berth, CrewReading, LaneReading, Scoreboard
from poolserver.snapshot import (
    REFUSALS,
    TIMEOUTS,
    Attempt,
    Durations,
    LaneStatus,
    ListenerStatus,
    ParkedStatus,
    PoolStatus,
    Snapshot,
    SourceStatus,
    Totals,
    WorkerStatus,
)
from poolserver.states import PoolState, Worker
from poolserver.station import Terms

WORST_INTERVAL = 1.0
"""Seconds for which the list of the most refused holds: making it goes through a megabyte."""

MAX_SOURCES = 10

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_LANE_STATES = {LaneState.IDLE: "idle", LaneState.BUSY: "busy", LaneState.HUNG: "hung"}


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """What ``/proc/PID/stat`` tells, in one read: psutil would take four. ``age`` in seconds since its fork."""

    is_stopped: bool
    age: float
    cpu: float
    rss: int

    @classmethod
    def of(cls, pid: int) -> "ProcessReading | None":
        """None: it has ended, or there is no /proc. Source: proc(5)."""
        try:
            # "PID (NAME) STATE PPID …", where NAME may hold anything, also parentheses
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return None
        return cls(
            is_stopped=fields[0] in (b"T", b"t"),
            age=max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS),
            cpu=(int(fields[11]) + int(fields[12])) / _TICKS,
            rss=int(fields[21]) * _PAGE_BYTES,
        )


@dataclass
class Observer:
    """Runs in the master. Asked at each look: the pool, and each worker's pid and berth, by its serial."""

    name: str
    threads: int
    terms: Terms
    listeners: Sequence[Listener]
    register: Register
    board: Scoreboard
    handler: str = ""
    """As the configuration names it."""
    _since: float = field(default_factory=time.monotonic)
    _worst: tuple[float, Mapping[str, int]] = (-math.inf, {})

    def follow(self, threads: int, terms: Terms, listeners: Sequence[Listener], handler: str) -> None:
        """After a reload: what is shown is of the present generation."""
        self.threads, self.terms, self.listeners, self.handler = threads, terms, listeners, handler

    def who(self) -> dict[str, object]:
        """Which service this is, for an operator about to give it an order."""
        urls = [listener.url for listener in self.listeners]
        return {"name": self.name, "pid": os.getpid(), "handler": self.handler, "listeners": urls}

    def snapshot(self, pool: Pool, berths: Mapping[int, tuple[int, Berth]], now: float) -> Snapshot:
        """The service at ``now`` (monotonic seconds).

        Source: measured with 128 workers of 8 busy lanes, 10 ms, a quarter of it in /proc; with 8 of 8, 1 ms.
        """
        workers = [
            self._worker(pool.workers[serial], pid, berth, now)
            for serial, (pid, berth) in berths.items()
            if serial in pool.workers
        ]
        workers += [_vacancy(slot.number) for slot in pool.slots if slot.failures and not pool.is_taken(slot)]
        crews = [self.board.read_crew(berth) for _, berth in berths.values()]
        parked = _parked(crews, now)
        workers.sort(key=lambda worker: (worker["slot"], worker["pid"] or 0))
        return Snapshot(
            name=self.name,
            version=__version__,
            pid=os.getpid(),
            generation=pool.generation,
            state=_state(pool, workers),
            uptime=now - self._since,
            listeners=[_listener(listener) for listener in self.listeners],
            pool=self._pool(pool, workers, parked["new"] + parked["between"]),
            parked=parked,
            stress=any(crew.stress for crew in crews),
            workers=workers,
            totals=self._totals(pool),
            durations=self._durations(),
            sources=self._sources(berths, now),
            last_reload=_attempt(pool.reload.last, now),
            last_upgrade=_attempt(pool.upgrade.last, now),
        )

    def _pool(self, pool: Pool, workers: Iterable[WorkerStatus], parked: int) -> PoolStatus:
        states = Counter(
            "idle" if lane["state"] == "idle" else "busy"
            for worker in workers
            for lane in worker["lanes"]
            if lane["state"] != "idle" or worker["state"] == "ready"
        )
        count = len(pool.slots)
        return PoolStatus(
            workers=count,
            threads=self.threads,
            lanes=count * self.threads,
            busy=states["busy"],
            idle=states["idle"],
            parked=parked,
        )

    def _worker(self, worker: Worker, pid: int, berth: Berth, now: float) -> WorkerStatus:
        process = ProcessReading.of(pid)
        counts = self.board.counted([berth])
        return WorkerStatus(
            slot=worker.slot,
            pid=pid,
            generation=worker.generation,
            state="stopped" if process is not None and process.is_stopped else worker.state.word,
            age=process.age if process is not None else None,
            rss=process.rss if process is not None else None,
            cpu=process.cpu if process is not None else None,
            accepted=counts["accepted"],
            served=counts["served"],
            errors=counts["errors"],
            refused=sum(count for name, count in counts.items() if name.startswith("refused_")),
            lanes=[self._lane(reading, now) for reading in self.board.read(berth) if reading.state in _LANE_STATES],
        )

    def _lane(self, reading: LaneReading, now: float) -> LaneStatus:
        since = min(max(0.0, now - reading.since), now)
        is_idle = reading.state is LaneState.IDLE
        has_deadline = self.terms.handler_timeout and not is_idle
        deadline = reading.deadline
        if deadline <= reading.since:
            deadline = reading.since + self.terms.handler_timeout
        return LaneStatus(
            state=_LANE_STATES[reading.state],
            since=since,
            peer=None if is_idle else reading.peer,
            deadline_left=max(0.0, deadline - now) if has_deadline else None,
        )

    def _totals(self, pool: Pool) -> Totals:
        counts = self.board.all_totals()
        return Totals(
            accepted=counts["accepted"],
            served=counts["served"],
            errors=counts["errors"],
            cut=counts["cut"],
            refused=_named(counts, "refused_", REFUSALS),
            rehearsed=_named(counts, "would_", ()),
            timeouts=_named(counts, "timeout_", TIMEOUTS),
            respawns=pool.respawns,
            reloads=pool.reload.reloads,
            reloads_failed=pool.reload.reloads_failed,
        )

    def _durations(self) -> Durations:
        *counts, microseconds = self.board.durations()
        return Durations(bounds=list(DURATION_BOUNDS), counts=counts, sum=microseconds / 1e6)

    def _sources(self, berths: Mapping[int, tuple[int, Berth]], now: float) -> list[SourceStatus]:
        """The largest by connections at once, in lanes and parked, and by refusals, in turn: neither must hide the
        other."""
        if now >= self._worst[0] + WORST_INTERVAL:
            self._worst = (now, dict(self.register.worst(self.terms.limits, MAX_SOURCES)))
        refused = self._worst[1]
        active: Counter[str] = Counter()
        for _, berth in berths.values():
            readings = self.board.read(berth)
            active.update(self._source(each.peer) for each in readings if each.peer and not each.is_in_crowd)
            for host, count in self.board.crowds.read(berth.ordinal).items():
                active[self._source_of_host(host)] += count
        pairs = itertools.zip_longest((source for source, _ in active.most_common(MAX_SOURCES)), refused)
        largest = list(dict.fromkeys(source for pair in pairs for source in pair if source is not None))[:MAX_SOURCES]
        found = [SourceStatus(source=each, active=active[each], refused=refused.get(each, 0)) for each in largest]
        return sorted(found, key=lambda each: (each["active"], each["refused"]), reverse=True)

    def _source(self, peer: str) -> str:
        """A peer as limits count it. Peers stand in the rows as they are written in the log."""
        return self._source_of_host(peer if peer.startswith("unix:") else peer.rpartition(":")[0].strip("[]"))

    def _source_of_host(self, host: str) -> str:
        prefixes = self.terms.limits.source_prefix_v4, self.terms.limits.source_prefix_v6
        return key_text(source_of((host,), *prefixes).key, *prefixes)


def _state(pool: Pool, workers: Iterable[WorkerStatus]) -> str:
    """The pool's state, and ``degraded`` while it serves but a slot's worker cannot start or does not answer."""
    if pool.state is not PoolState.SERVING:
        return pool.state.value if pool.state is not PoolState.STOPPED else PoolState.STOPPING.value
    states = {worker["state"] for worker in workers}
    is_whole = "ready" in states and not states & {"hung", "stopped"} and not any(slot.failures for slot in pool.slots)
    return pool.state.value if is_whole else "degraded"


def _attempt(last: reload.Attempt | None, now: float) -> Attempt | None:
    return None if last is None else Attempt(ok=last.ok, reason=last.reason, at=time.time() - (now - last.at))


def _vacancy(slot: int) -> WorkerStatus:
    """A slot whose worker could not start, until the next one is tried."""
    return WorkerStatus(
        slot=slot,
        pid=None,
        generation=None,
        state="stopped",
        age=None,
        rss=None,
        cpu=None,
        accepted=0,
        served=0,
        errors=0,
        refused=0,
        lanes=[],
    )


def _parked(crews: Iterable[CrewReading], now: float) -> ParkedStatus:
    """What all workers have parked, with what they may have scribbled left out."""
    honest = [crew for crew in crews if max(crew.new, crew.between) <= MAX_COUNT]
    since = [crew.oldest for crew in honest if 0 < crew.oldest <= now]
    return ParkedStatus(
        new=sum(crew.new for crew in honest),
        between=sum(crew.between for crew in honest),
        oldest=now - min(since) if since else None,
    )


def _listener(listener: Listener) -> ListenerStatus:
    queue = queue_of(listener.socket)
    backlog = queue.backlog if queue.backlog is not None or not listener.is_stream else listener.options.backlog
    return ListenerStatus(url=listener.url, backlog=backlog, queued=queue.waiting, drops=queue.drops)


def _named(counts: Mapping[str, int], prefix: str, known: Iterable[str]) -> dict[str, int]:
    """The counters with this prefix, without it, and those that a later version of the scoreboard will count."""
    found = {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}
    return dict.fromkeys(known, 0) | found
