"""A lane: one thread, one accept loop, one connection at a time, on socketserver's public hooks.

Whatever a hook of the user's code raises, the lane lives on. It never decides who leaves when: that is ``crew.py``.
"""

import errno
import logging
import math
import os
import threading
import time

from poolserver.exchanges import Exchanges
from poolserver.failures import log_line
from poolserver.handling import CrewOfLane
from poolserver.handover import Intake
from poolserver.parked import Parked
from poolserver.rows import Row
from poolserver.shortage import OUT_OF_RESOURCES, PAUSE
from poolserver.station import Station
from poolserver.tcp_info import has_queue, queue_length
from poolserver.waits import Verdict
from poolserver.wakeups import NOTHING

DRAIN_LOOK = 0.1
"""Seconds between a leaving lane's looks whether anybody is still parked."""

LANE_LOOK = 60.0
"""Seconds between an idle lane's own looks. The crew's tick comes first, where eight lanes cost no more than one."""

SPELL_NS = 2_000_000
"""Nanoseconds after which a lane that is alone in its process lets others run, between two connections.

With more lanes at work than processors, the kernel takes the processor from each after some milliseconds, mostly in
the middle of a connection, which then waits until all others had their turn. Source: measured, 1,000 clients, 32 × 1:
p99 97 ms without, 80 with 1 ms, 75 with 2, the CPU the same; sched_yield(2).
"""

MAX_FRUITLESS = 16
"""Wake-ups in a row that yield nothing before a pause. A few are normal under load, when a sibling was quicker; a
listener in a state that only seems ready would spin for ever."""

SHAKE = 1.0
"""Seconds between two beginnings with a new epoll at the least: with 10,000 parked one takes some milliseconds."""

_PEER_WENT_AWAY = frozenset(
    # accept(2): on Linux errors of the new connection, to be treated like EAGAIN
    {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET}
    | {errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM, errno.EINTR, errno.EAGAIN}
)


class Lane(Exchanges):
    """Runs in its thread."""

    def __init__(self, number: int, crew: CrewOfLane, row: Row) -> None:
        super().__init__(number, crew, row)
        self.is_accepting = True
        self._fruitless = self._strangers = 0
        self._next_shake = 0.0
        self._arriving: Station | None = None
        self._stop_poll = crew.wakeups.poller([crew.wakeups.stop_fd])
        self._is_one_of_many = crew.wakeups.is_shared
        self._queue_polls = {fd: crew.wakeups.poller([fd]) for fd in crew.stations}

    def serve_forever(self) -> None:
        """Accept and handle until the crew is leaving; then what is queued, if that is asked, and what is parked."""
        crew, row = self._crew, self._row
        self.thread_id = threading.get_native_id()
        ready, told, shortage, regulars = crew.wakeups.ready, crew.wakeups.told, crew.shortage, self._regulars
        spell_ends = math.inf if self._is_one_of_many else 0  # several take turns at the interpreter's lock
        row.idle()
        while True:  # CPython 3.11 never specialises a loop whose condition stands at its head
            if crew.is_leaving:
                break
            fd = ready(PAUSE if shortage.is_on else LANE_LOOK)
            if (regular := regulars.pop(fd, None)) is not None and self._exchange(regular):
                if self._arriving is None and not shortage.is_on:
                    continue  # as mostly, where there are any
            elif isinstance(post := told(fd), Station):
                self.take(post)
                if row.began_ns > spell_ends:
                    os.sched_yield()
                    spell_ends = time.monotonic_ns() + SPELL_NS
                if not shortage.is_on:
                    continue
            elif post is not None:
                self._take_up(post)
            # In turn: the epoll tells of the listener once in a round of all that are ready, and of one newcomer.
            if self._arriving is not None and not self.take(self._arriving):
                self._arriving = None
            if fd == NOTHING or (shortage.is_on and shortage.is_due()):  # for long; or is there room again?
                for each in crew.stations.values():
                    self.take(each)
        self._serve_queues()
        self.is_accepting = False
        row.absent()
        while crew.has_parked:
            self._take_up(crew.wakeups.wait_parked(DRAIN_LOOK))
            row.absent()

    def take(self, station: Station) -> bool:
        """Accept one connection (or datagram) and handle it. False: there was none.

        Whatever came of it but "none", more may be queued that no edge will tell of: another lane is woken for it.
        """
        server = station.server
        self._station = station
        if station.may_block and self._is_one_of_many and queue_length(server.socket) > 1:
            self._crew.wakeups.look_again(station)
        try:
            request, address = server.get_request()
        except BlockingIOError:
            if station.is_stream:  # accept(2) takes the descriptor before it looks at the queue: there is one again
                self._crew.shortage.end()
            return self._on_nothing()
        except OSError as error:
            return self._on_accept_error(station, error)
        except BaseException:  # noqa: BLE001 - get_request is the user's to override
            self._report("get_request failed")
            self._crew.wakeups.look_again(station)
            return self._on_nothing()  # if it raised before its accept, the listener is as ready as before
        self._fruitless = 0
        self._arriving = station if station.is_stream else None
        if self._is_one_of_many and self._has_more(station):
            self._crew.wakeups.look_again(station)
        if self._crew.shortage.is_on:
            self._crew.shortage.end()
        self._receive(station, request, address)
        return True

    def _take_in(self, intake: Intake) -> bool:
        """A connection from another worker: one that is ready is handled, one that waits is parked. False: there was
        none."""
        arrival = intake.receive() if not self._crew.shortage.is_on else None
        if arrival is None:
            return False
        if self._is_one_of_many and intake.has_more():
            self._crew.wakeups.look_again(intake)
        park, parked = self._crew.park, arrival.parked
        park.arrived(arrival.place, is_lost=parked is None)
        if parked is not None and intake.is_ready:
            park.give(parked, self._row.number)
            self._go_on(parked)
        elif parked is not None:
            self._park(parked)
        return True

    def _take_up(self, post: Parked | int | Station | Intake | None) -> None:
        """Go on with a connection that was parked, if ``post`` is or tells of one that is ready, here or elsewhere."""
        if isinstance(post, Intake):
            self._take_in(post)
            return
        parked = self._crew.park.take(post) if isinstance(post, int) and post >= 0 else post
        if not isinstance(parked, Parked):
            if isinstance(post, int) and post >= 0:
                self._on_fruitless(self._by_fd.get(post))
            return
        if parked.ending is not None or parked.is_leaving:
            self._end(parked)
            return
        self._crew.park.give(parked, self._row.number)
        self._go_on(parked)

    def _on_fruitless(self, parked: Parked | None) -> None:
        """Who is told of and not here, or silent, was taken by the watcher just now, or has read it; or another had its
        number, and is told of for ever."""
        if self._crew.wakeups.tells_once or (parked is not None and parked.verdict is not Verdict.SILENT):
            return
        self._strangers += 1
        if self._strangers > MAX_FRUITLESS and time.monotonic() >= self._next_shake:
            self._strangers = 0
            self._next_shake = time.monotonic() + SHAKE
            self._crew.park.shake_off()

    def _has_more(self, station: Station) -> bool:
        """Whether more is queued. For TCP without letting go of the interpreter's lock, which a sibling may want."""
        if station.is_tcp:
            return has_queue(station.server.socket)
        return bool(self._queue_polls[station.fd].poll(0))

    def _on_nothing(self) -> bool:
        self._fruitless += 1
        if self._fruitless > MAX_FRUITLESS and not self._crew.is_leaving:
            self._pause()
        return False

    def _on_accept_error(self, station: Station, error: OSError) -> bool:
        if error.errno in OUT_OF_RESOURCES:
            if error.errno == errno.EMFILE and self._crew.park.make_room():
                self._crew.wakeups.look_again(station)
            else:
                self._crew.shortage.begin(error)
            return False
        if error.errno in (errno.EINVAL, errno.EBADF, errno.ENOTSOCK):
            self._crew.mend(station, error)
            self._pause()
        elif error.errno not in _PEER_WENT_AWAY or type(error).__module__ == "ssl":  # whose errno 1 is no EPERM
            # not from accept(2): a get_request of the user's that shakes hands (TLS) and failed
            log_line(logging.INFO, "get_request failed: %s", error)
        self._crew.wakeups.look_again(station)
        return self._on_nothing()

    def _pause(self) -> None:
        """Wait, but not for the listener; a stop ends it."""
        self._stop_poll.poll(int(PAUSE * 1000))

    def _serve_queues(self) -> None:
        """What clients had queued when the stop was asked: up to as many as there were, or until none is left. And what
        is on its way between workers: at the service's end nobody else takes it."""
        crew = self._crew
        for station in crew.stations.values():
            for _ in range(station.queued):
                if not crew.serves_queue or not self.take(station):
                    break
        for intake in crew.intakes:
            while crew.serves_queue and self._take_in(intake):
                pass  # whoever sent one is a worker that leaves, too, and comes here after its last
