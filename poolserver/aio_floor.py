"""The floor: the seats of one event loop, its listeners, and who looks after them. Runs in the loop's thread.

``aio_crew.py`` tells it to drain and to cut; it tells that it is through by ending the loop.
"""

import asyncio
import logging
import math
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from poolserver.adapter import peer_names
from poolserver.aio_datagrams import DatagramTransport
from poolserver.aio_deadlines import FINEST_SWEEP, Sweeps, report, report_exit
from poolserver.aio_lobby import Lobby
from poolserver.aio_loop import LoopSelector
from poolserver.aio_protocols import accept_presented
from poolserver.aio_seat import Seat
from poolserver.attendant import DRAIN_PATIENCE, Attendant
from poolserver.errors import ConfigError
from poolserver.failures import say_counted
from poolserver.handling import CrewOfLane
from poolserver.lane import Lane
from poolserver.mending import keep_nonblocking
from poolserver.rows import Outcome, Row
from poolserver.shortage import PAUSE
from poolserver.station import Station
from poolserver.tcp_info import has_queue, queue_length

_log = logging.getLogger("poolserver")

TURN = 16
"""Connections that a worker accepts before it queues up again behind the others: the kernel wakes whoever has waited
longest on the listener, every time. Source: epoll_ctl(2) EPOLLEXCLUSIVE; nginx 1.23, ngx_reorder_accept_events."""

LEAVE_PATIENCE = 0.5
"""Seconds that tasks of nobody's connection have at the end, once they are cancelled."""


class CrewOfFloor(CrewOfLane, Protocol):
    """What a floor asks of its crew."""

    def release_streams(self) -> None: ...


class Floor:
    """``opened`` is set once it could accept, or has met its ``failure``; ``has_answered`` by each ``tick``, for which
    the crew asks. ``datagrams``: a transport for each listener of that kind."""

    def __init__(
        self,
        crew: CrewOfFloor,
        rows: Sequence[Row],
        lanes: list[Lane],
        attendant: Attendant,
        may_accept: threading.Event,
        loop: asyncio.AbstractEventLoop,
        selector: LoopSelector | None,
    ) -> None:
        self.loop = loop
        self.opened = threading.Event()
        self.has_answered = True
        self.busy: dict[Seat, None] = {}
        self.lobby = Lobby(self, crew.park, crew.terms)
        self.datagrams: dict[int, DatagramTransport] = {}
        self.failure: ConfigError | None = None
        self._crew = crew
        self._seats = [Seat(number, crew, row, self) for number, row in enumerate(rows)]
        self._free = self._seats[::-1]
        self._attendant = attendant
        self._may_accept = may_accept
        self._selector = selector
        self._stations = list(crew.stations.values())
        lanes += self._seats
        self._is_listening = self._is_held_back = self._is_resuming = False
        self._is_leaving = self._is_closed = self._is_over = False
        self._taken = 0
        self._parked_fd = -1
        self._patience_ends = 0.0
        self._look: asyncio.TimerHandle | None = None
        idle = min((each.idle_timeout for each in self._stations if each.idle_timeout), default=math.inf)
        self._sweeps = Sweeps(loop, self.busy, idle)

    def call(self, act: Callable[..., None], *args: object) -> None:
        """From any thread: have the loop do this soon. Nothing once it is over."""
        try:
            self.loop.call_soon_threadsafe(act, *args)
        except RuntimeError:
            pass  # closed

    def run(self) -> None:
        """The thread: until drained or cut."""
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(report)
        try:
            self._open()
        except ConfigError as error:
            self.failure = error
            self._is_over = True
        finally:
            self.opened.set()
        if not self._is_over:
            self._may_accept.wait()
            self._listen()
        while not self._is_over:
            try:
                self.loop.run_forever()
            except BaseException:  # noqa: BLE001 - asyncio lets SystemExit of a protocol's callback through
                report_exit()
        self._leave()

    # What seats ask

    def begin(self, seat: Seat) -> None:
        """It has a connection."""
        self._free.pop()  # it was the last
        self.busy[seat] = None
        self._sweeps.wake()

    def release(self, seat: Seat) -> None:
        """Its connection is over."""
        del self.busy[seat]
        self._free.append(seat)
        if self._is_closed:
            seat.leave()
        if self._is_leaving or self.lobby.ready or not self._is_listening:
            self._resume_soon()

    def welcome(self) -> None:
        """Somebody in the lobby is ready for a seat."""
        if self._free:
            self._free[-1].receive(self.lobby.take())

    def hold_back(self) -> None:
        """Accept nothing for a while: out of descriptors, or something is wrong with a listener."""
        self._unlisten()
        if not self._is_held_back:
            self._is_held_back = True
            self.loop.call_later(PAUSE, self._end_pause)

    # What the crew asks

    def tick(self) -> None:
        """A sign of life, and what nothing wakes us for."""
        self.has_answered = True
        now = time.monotonic()
        self._crew.shortage.settle(now)
        say_counted()
        if not self._is_leaving:
            self._attendant.tick()
            keep_nonblocking(self._crew.stations)
            self._crew.wakeups.look_at_all()
            self._take_what_waits()
        self.look_soon(0.0)
        self._settle()

    def look_soon(self, seconds: float) -> None:
        """Have the attendant look at those who are parked."""
        if self._look is not None:
            self._look.cancel()
        self._look = self.loop.call_later(seconds, self._attend)

    def drain(self, serve_queue: bool, hand_over: bool) -> None:
        """Take no new connections but, if asked, the queued; go once all is over."""
        self._unlisten()
        for station in self._stations:
            station.queued = queue_length(station.server.socket) if serve_queue and not self._is_closed else 0
        now = time.monotonic()
        if not self._is_leaving:
            self._is_leaving = True
            self._patience_ends = now + DRAIN_PATIENCE
        self._unwatch_parked()  # another descriptor tells of them from now on
        self._attendant.drain(now, hand_over=hand_over)
        self._watch_parked()
        self._resume()

    def cut(self) -> None:
        """Cancel what is open; a protocol's connection is cut."""
        if not self._is_leaving:
            self.drain(serve_queue=False, hand_over=False)
        for station in self._stations:
            station.queued = 0
        self._attendant.cut()
        self.lobby.cut()
        if self.busy:
            _log.warning("cut %d open: %s", len(self.busy), peer_names(seat.address for seat in self.busy))
        for seat in list(self.busy):
            seat.cancel(Outcome.CUT)
        self._resume()

    # Listening

    def _open(self) -> None:
        if any(station.proxy_mode for station in self._stations):
            accept_presented(self.loop)
        for station in self._stations:
            if not station.is_stream:
                self.datagrams[station.fd] = DatagramTransport.open(self.loop, station)
        for seat in self._seats:
            seat.open()
        if self._selector is not None:
            self._selector.exclusive.update(station.fd for station in self._stations)
        self._watch_parked()

    def _listen(self) -> None:
        self._is_listening = True
        for station in self._stations:
            self.loop.add_reader(station.fd, self._on_listener, station)

    def _unlisten(self) -> None:
        if self._is_listening:
            self._is_listening = False
            for station in self._stations:
                self.loop.remove_reader(station.fd)

    def _on_listener(self, station: Station) -> None:
        """What is queued, but no more than a turn: siblings want some, too, and so does what is open."""
        if not self._free:
            self._unlisten()
            return
        has_more = True
        while has_more and self._free and self._taken < TURN and self._is_listening:
            is_taken = self._free[-1].take(station)
            self._taken += is_taken
            has_more = is_taken and station.is_tcp and has_queue(station.server.socket)
        if self._taken >= TURN:
            self._taken = 0
            if self._is_listening:
                self.loop.remove_reader(station.fd)
                self.loop.add_reader(station.fd, self._on_listener, station)

    def _watch_parked(self) -> None:
        self._parked_fd = self._crew.wakeups.fileno()
        self.loop.add_reader(self._parked_fd, self._on_parked)

    def _unwatch_parked(self) -> None:
        if self._parked_fd >= 0:
            self.loop.remove_reader(self._parked_fd)
            self._parked_fd = -1

    def _on_parked(self) -> None:
        """One that is parked has something to say, or one came from another worker."""
        if not self._free:
            self._unwatch_parked()
            self._unlisten()  # so that the next seat that is free is told of
            return
        wakeups = self._crew.wakeups
        self._free[-1].attend(wakeups.wait_parked(0) if self._is_leaving else wakeups.wait(0))
        if self._is_leaving:
            self._settle()

    def _take_what_waits(self) -> None:
        """A sibling that was killed between its wake-up and its accept took the wake-up with it."""
        if not self._is_listening:
            return
        poller = select.poll()
        for station in self._stations:
            poller.register(station.fd, select.POLLIN)
        for fd, _ in poller.poll(0):
            self._on_listener(self._crew.stations[fd])

    def _end_pause(self) -> None:
        self._is_held_back = False
        self._resume()

    def _resume_soon(self) -> None:
        """Not at once: who ends a connection may be called by who begins one."""
        if not self._is_resuming:
            self._is_resuming = True
            self.loop.call_soon(self._resume)

    def _resume(self) -> None:
        """There are seats again: take what waits for one, and wait for more."""
        self._is_resuming = False
        while self._free and self.lobby.ready:
            self._free[-1].receive(self.lobby.take())
        if self._free and self._parked_fd < 0:
            self._watch_parked()
        if self._is_leaving:
            self._serve_queues()
            self._settle()
        elif not (self._is_listening or self._is_held_back):
            for station in self._stations:
                if self._free and station.is_stream:
                    self._free[-1].take(station)
            if self._free and not self._is_held_back:
                self._listen()

    # Leaving

    def _serve_queues(self) -> None:
        """As many as were queued when the stop was asked, or until none is left; then the listeners are closed."""
        for station in self._stations:
            while station.queued and self._free:
                station.queued = station.queued - 1 if self._free[-1].take(station) else 0
        for intake in self._crew.intakes:
            while self._crew.serves_queue and self._free and self._free[-1].take_in(intake):
                pass  # what is on its way between workers: nobody else takes it at the service's end
        if not (self._is_closed or any(station.queued for station in self._stations)):
            self._is_closed = True
            for seat in self._free:
                seat.leave()
            self._crew.release_streams()

    def _settle(self) -> None:
        if not self._is_closed or self.busy or self.lobby or self._crew.has_parked:
            return
        if self.datagrams and time.monotonic() < self._patience_ends and asyncio.all_tasks(self.loop):
            self.loop.call_later(FINEST_SWEEP, self._settle)  # answers that are being made, perhaps
            return
        self._is_over = True
        self.loop.stop()

    def _leave(self) -> None:
        """Cancel what handlers have left behind, and close the loop."""
        for transport in self.datagrams.values():
            transport.close()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks, timeout=LEAVE_PATIENCE))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    # Looking after

    def _attend(self) -> None:
        self._look = None
        self._attendant.look(time.monotonic())
        deadline = self._attendant.deadline()
        if deadline < math.inf:
            self.look_soon(max(0.0, deadline - time.monotonic()))
        if self._is_leaving:
            self._settle()
