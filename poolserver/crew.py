"""The lanes of one process: start, replace a dead one, drain, cut, stop. The only place that makes threads.

Runs in a worker, where the main thread watches, or in the caller's process (``PreThreadMixIn``, ``-w 0``), where a
thread of its own does.
"""

import enum
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from poolserver import deadlines
from poolserver.adapter import has_service_actions, peer_names, run_service_actions, shut
from poolserver.attendant import Attendant
from poolserver.door import Door, Register
from poolserver.failures import say_counted
from poolserver.handover import Intake, Pairs, intakes
from poolserver.here import Here
from poolserver.lane import Lane
from poolserver.mending import keep_nonblocking, mend
from poolserver.park import Park
from poolserver.parked import Parked
from poolserver.rows import Outcome, Quarters
from poolserver.shared_socket import SharedSocket
from poolserver.shortage import Attention, Shortage
from poolserver.signals import wait_readable
from poolserver.socket_options import defer_accept
from poolserver.station import Station, Terms
from poolserver.tcp_info import queue_length
from poolserver.wakeups import Wakeups

_log = logging.getLogger("poolserver")

DRAIN_LOOK = 0.1
"""Seconds between looks, while draining, whether the accept queues are served and the listeners can be closed."""

CUT_GRACE = 0.5
"""Seconds that a handler has to come back once its connection was shut down under it."""

IDLE_GRACE = 1.0
"""Seconds that idle lanes have to leave; they need microseconds, unless the listener was made blocking under them."""


class Phase(enum.Enum):
    """Where a crew is on its way out; it only moves forward."""

    SERVING = "serving"
    DRAINING = "draining"  # no new connections but the queue; open ones finish
    CUTTING = "cutting"  # what is open was shut down
    OVER = "over"


class Crew:
    """Lanes on shared server objects.

    Constructed anywhere; ``start`` after the fork, since an epoll made before it is shared.
    """

    lanes_accept = True

    def __init__(
        self,
        stations: Sequence[Station],
        quarters: Quarters,
        terms: Terms,
        register: Register,
        pairs: Pairs | None = None,
        *,
        on_stop_asked: Callable[[], None],
        on_released: Callable[[], None] = lambda: None,
    ) -> None:
        self.terms, self.here = terms, Here()
        self.door = Door(terms.limits, register, len(quarters.lanes))
        self.stations: dict[int, Station] = {station.fd: station for station in stations}
        passed: dict[int, Any] = intakes(pairs, self.stations) if pairs is not None else {}
        self.intakes: list[Intake] = list(passed.values())
        posts = self.stations | passed if self.lanes_accept else passed
        self.wakeups: Wakeups[Any] = Wakeups(posts, lanes=len(quarters.lanes) if self.lanes_accept else 0)
        self.park = Park(self.wakeups, quarters, register.claims, terms)
        takers = [fd for fd, post in posts.items() if not isinstance(post, Station) or post.is_stream]
        attention = Attention(lambda: self.wakeups.turn_from(takers), lambda: self.wakeups.listen_again(takers))
        self.shortage = Shortage(attention)
        self.lost_listener, self.serves_queue, self._is_released = "", False, False
        self._rows, self._on_released = quarters.lanes, on_released
        self.ask_stop = on_stop_asked  # by a handler, or a thread that it started: ``server.shutdown()``
        self._phase, self._phase_ends = Phase.SERVING, math.inf
        self.is_leaving = False  # every lane asks for each connection: not a property
        self._idle_ends = self._next_service = math.inf
        self._next_tick, self._next_deadlines = 0.0, 0.0 if terms.handler_timeout else math.inf
        self._lock = threading.RLock()  # between retire/cut from one thread, the watcher, and lanes that leave
        self._lanes: list[Lane] = []
        self.attendant = Attendant(self.park, self._lanes, terms, register.claims, pairs, attention)
        self._threads: dict[Lane, threading.Thread] = {}
        self._may_accept = threading.Event()
        self._present: set[Lane] = set()  # a thread is alive a little longer than its lane

    @property
    def has_parked(self) -> bool:
        """Whether lanes that leave are needed still. The lock: the attendant has nothing in its hands then."""
        with self._lock:
            return bool(self.park.has_waiting or self.wakeups.has_passed_on or self.attendant.unsent)

    def watch_closely(self, *, if_full: bool = False) -> None:
        """A lane that leaves has parked a connection, or all have one while others are parked: be there soon."""
        attendant = self.attendant
        if attendant.is_close:
            return
        if if_full and not (self.park.has_waiting and all(lane.request is not None for lane in self._lanes)):
            return
        attendant.is_close = True
        self._wake()

    def hand_over(self, parked: Parked) -> None:
        """Let another worker go on with what no handler has any more."""
        self.attendant.unsent.append(parked)
        self.watch_closely()

    def step_back(self) -> None:
        """Let other workers have newcomers for a moment."""
        self.attendant.step_back(time.monotonic())
        self._wake()

    def mend(self, station: Station, error: OSError) -> None:
        """A lane met a listener that a handler broke; one beyond repair ends the crew."""
        with self._lock:
            if self.is_leaving:
                return
            self.lost_listener = mend(station, error, self.terms.backlog)
            if self.lost_listener:
                self._enter(Phase.DRAINING, 0)
                self._wake()

    def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start the lanes; ``on_ready`` comes before any of them can accept, and hold the interpreter's lock for good.
        From here on this process has threads, and must not fork."""
        self._open()
        if any(has_service_actions(station.server) for station in self.stations.values()):
            self._next_service = time.monotonic() + self.terms.service_interval
        for number, row in enumerate(self._rows):
            self._lanes.append(Lane(number, self, row))
            self._start_thread(self._lanes[-1])
        on_ready()
        self._may_accept.set()

    def retire(self, within: float, *, serve_queue: bool, hand_over: bool = False) -> None:
        """Take no new connections but, if asked, the queued; give open ones ``within`` seconds, then cut them.

        ``hand_over``: other workers go on, and shall have those that are parked.
        """
        with self._lock:
            self.serves_queue = serve_queue and self._phase in (Phase.SERVING, Phase.DRAINING)
            for station in self.stations.values() if self.serves_queue else ():
                station.queued = queue_length(station.server.socket)
            self.attendant.drain(time.monotonic(), hand_over=hand_over)
            if self._phase is Phase.SERVING:
                self._enter(Phase.DRAINING, within)
                self._idle_ends = time.monotonic() + IDLE_GRACE
            self._phase_ends = min(self._phase_ends, time.monotonic() + within)
        self._wake()

    def cut(self) -> None:
        """Shut down what is open, so that its handlers come back, and leave."""
        with self._lock:
            if self._phase in (Phase.CUTTING, Phase.OVER):
                return
            self.serves_queue = False
            self._enter(Phase.CUTTING, CUT_GRACE)
            self._cut_open()
        self._wake()

    def release_streams(self) -> None:
        """While retiring: close the stream listeners, which no handler needs, so that newcomers are refused at once and
        the address is free; ``on_released`` closes the process's other copies. Datagram handlers answer by theirs."""
        if self._is_released:
            return
        self._is_released = True
        for station in self.stations.values():
            if station.is_stream and isinstance(station.server.socket, SharedSocket):
                station.server.socket.release()
        self._on_released()

    def watch(self, others: Mapping[int, Callable[[], bool]] | None = None) -> None:
        """Keep the lanes going until all have left or were given up.

        ``others`` maps further descriptors to what to do when one is readable; False: it is not watched any more.
        """
        calls = dict(others or {})
        poller = self.wakeups.poller([self._wake_fd, *calls])
        while self._phase is not Phase.OVER:
            for fd in wait_readable(poller, max(0.0, self._deadline() - time.monotonic())):
                if fd == self._wake_fd:
                    os.eventfd_read(fd)
                elif not calls[fd]():
                    poller.unregister(fd)
            self._look(time.monotonic())
        self.attendant.close()
        say_counted(is_last=True)

    def watch_beside(self, on_over: Callable[[], None]) -> threading.Thread:
        """Watch from a thread of our own, for a process whose main loop is another's; ``on_over`` is its last call."""

        def run() -> None:
            try:
                self.watch()
            finally:
                on_over()

        watcher = threading.Thread(target=run, name="crew", daemon=True)
        watcher.start()
        return watcher

    def close(self) -> None:
        """Give the descriptors back. With a lane given up they stay: it may come back, and not to a stranger's."""
        for station in self.stations.values():
            station.server.crew = None
        if not self._present:
            for thread in self._threads.values():
                thread.join()
            self.wakeups.close()
            os.close(self._wake_fd)

    def _open(self) -> None:
        self.wakeups.open()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for station in self.stations.values():
            station.server.crew = self
            if station.is_tcp:  # by each worker: only it knows its handler, and a reload may bring another
                defer_accept(station.server.socket, station.defer_accept)

    def _look(self, now: float) -> None:
        with self._lock:
            alive = [lane for lane in self._lanes if lane in self._present]
            if self._phase is Phase.SERVING:
                self._tick(now)
            elif all(lane.is_hung for lane in alive):
                self._give_up(alive)  # nobody, or those only that do not come back
            elif self._phase is Phase.DRAINING:
                self._drain(alive, now)
            elif now >= self._phase_ends:
                self._give_up(alive)
            self.attendant.look(now)
        if now >= self._next_deadlines:
            self._next_deadlines = now + deadlines.LOOK_INTERVAL
            deadlines.enforce(self._threads, now)
        if now >= self._next_service:
            self._next_service = now + self.terms.service_interval
            run_service_actions(station.server for station in self.stations.values())

    def _deadline(self) -> float:
        common = min(self._next_service, self._next_deadlines, self.attendant.deadline())
        if self._phase is Phase.SERVING:
            return min(self._next_tick, common)
        next_drain_look = math.inf if self._is_released else time.monotonic() + DRAIN_LOOK
        return min(self._phase_ends, self._idle_ends, next_drain_look, common)

    def _tick(self, now: float) -> None:
        if now < self._next_tick:
            return
        self._next_tick = now + self.terms.tick
        self.shortage.settle(now)
        self.attendant.tick()
        say_counted()
        self.wakeups.look_at_all()
        for lane in list(self._lanes):
            if lane not in self._present or not self._threads[lane].is_alive():  # ended before it was a lane
                _log.error("lane %d died; replacing it", lane.number)
                self._replace(lane)
        keep_nonblocking(self.stations)

    def _drain(self, alive: list[Lane], now: float) -> None:
        accepting = [lane for lane in alive if lane.is_accepting and lane.request is None]
        if not accepting and not (self.serves_queue and self._has_queue()):
            self.release_streams()
        if now >= self._phase_ends:
            self.cut()
        elif now >= self._idle_ends:
            self._idle_ends = now + IDLE_GRACE
            is_idle = all(lane.is_accepting and lane.request is None for lane in alive) and not self.has_parked
            if is_idle and not (self.serves_queue and self._has_queue()):
                self._phase = Phase.OVER  # stuck in accept(2) on a listener that was made blocking: nothing to wait for

    def _has_queue(self) -> bool:
        streams = [station.fd for station in self.stations.values() if station.is_stream]
        return bool(self.wakeups.poller(streams).poll(0))

    def _cut_open(self) -> None:
        self.attendant.cut()
        busy = [lane for lane in self._lanes if lane.request is not None]
        for lane in busy:
            lane.end_as(lane.request, Outcome.CUT)
            shut(lane.request)
        if busy:
            _log.warning("cut %d open: %s", len(busy), peer_names(lane.address for lane in busy))

    def _give_up(self, alive: Iterable[Lane]) -> None:
        busy = [lane for lane in alive if lane.request is not None]
        if busy:
            names = peer_names(lane.address for lane in busy)
            _log.warning("left %d handler(s) that did not come back: %s", len(busy), names)
        for lane in busy:
            self.park.row.count(lane.ending)
        self._phase = Phase.OVER

    def _enter(self, phase: Phase, seconds: float) -> None:
        self._phase, self.is_leaving = phase, True
        self._phase_ends = time.monotonic() + seconds
        self._idle_ends = math.inf
        self.wakeups.stop()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _start_thread(self, lane: Lane) -> None:
        # A daemon thread: a hung handler must not keep the interpreter from ending.
        thread = threading.Thread(target=self._run_lane, args=(lane,), name=f"lane-{lane.number}", daemon=True)
        self._threads[lane] = thread
        self._present.add(lane)
        thread.start()

    def _run_lane(self, lane: Lane) -> None:
        try:
            self.here.lane = lane
            self._may_accept.wait()
            lane.serve_forever()
        except BaseException:  # noqa: BLE001 - a defect here, not in a handler: said, then the lane is replaced
            _log.critical("lane %d: internal error", lane.number, exc_info=True)
        finally:
            self._present.discard(lane)
            self._wake()

    def _replace(self, lane: Lane) -> None:
        del self._threads[lane]
        self._present.discard(lane)
        self.door.closed(self._rows[lane.number].number)
        successor = Lane(lane.number, self, self._rows[lane.number])
        self._lanes[lane.number] = successor
        self._start_thread(successor)


def run_in_lane(request: Callable[[], None]) -> None:
    """Run one request in a thread of its own and wait for it. What it raises goes to ``threading.excepthook``."""
    thread = threading.Thread(target=request, name="lane", daemon=True)
    thread.start()
    thread.join()
