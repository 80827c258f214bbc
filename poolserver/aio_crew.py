"""The crew of an event loop: a thread that runs the loop, and this one, which watches it and enforces the ends.

The same towards its worker as a crew of lanes; ``threads`` bounds the connections that it serves at once.
"""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from poolserver.adapter import peer_name
from poolserver.aio_floor import Floor
from poolserver.aio_loop import new_loop
from poolserver.aio_seat import seat_here
from poolserver.crew import CUT_GRACE, Crew, Phase
from poolserver.failures import log_line, log_stack
from poolserver.here import NO_LANE

_log = logging.getLogger("poolserver")


class _HereOnLoop:
    """Whose connection the running task or callback has, for a server object that is asked in it."""

    @property
    def lane(self) -> Any:
        return seat_here() or NO_LANE

    @property
    def is_lane(self) -> bool:
        """Whether a handler asks."""
        return seat_here() is not None

    def extend(self, seconds: float) -> None:
        """Move the handler deadline of this connection."""
        self.lane.extend(seconds)


class LoopCrew(Crew):
    """Constructed anywhere; ``start`` after the fork."""

    lanes_accept = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.here = _HereOnLoop()  # type: ignore[assignment]
        self._asked = 0.0
        self._is_blocked = False

    def start(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Start the loop's thread; ``on_ready`` comes before it accepts.

        Raises:
            ConfigError: the handler cannot be made.
        """
        self._open()
        loop, selector = new_loop(self.terms.event_loop)
        self._floor = Floor(self, self._rows, self._lanes, self.attendant, self._may_accept, loop, selector)
        self._thread = threading.Thread(target=self._run, name="loop", daemon=True)
        self._thread.start()
        self._floor.opened.wait()
        if self._floor.failure is not None:
            raise self._floor.failure
        on_ready()
        self._may_accept.set()

    def retire(self, within: float, *, serve_queue: bool, hand_over: bool = False) -> None:
        """As for lanes."""
        with self._lock:
            if self._phase is Phase.SERVING:
                self._enter(Phase.DRAINING, within)
            self._phase_ends = min(self._phase_ends, time.monotonic() + within)
            is_draining = self._phase is Phase.DRAINING
            self.serves_queue = serve_queue and is_draining
        if is_draining:
            self._floor.call(self._floor.drain, serve_queue, hand_over)
        self._wake()

    def release_streams(self) -> None:
        """The loop's to do, which watches them: it does once it drains."""
        if threading.current_thread() is self._thread:
            super().release_streams()

    def watch_closely(self, *, if_full: bool = False) -> None:  # noqa: ARG002
        """As for lanes, whose crew looks itself; on a loop nobody waits for a lane."""
        if not self.attendant.is_close:
            self.attendant.is_close = True
            self._floor.look_soon(0.0)

    def close(self) -> None:
        """Give the descriptors back, unless the loop still is at it."""
        for station in self.stations.values():
            station.server.crew = None
        if not self._thread.is_alive():
            self.wakeups.close()
            os.close(self._wake_fd)

    def _run(self) -> None:
        try:
            self._floor.run()
        except BaseException:  # noqa: BLE001 - a defect here, not in a handler: said, then the worker is replaced
            _log.critical("event loop: internal error", exc_info=True)
        finally:
            self._phase, self.is_leaving = Phase.OVER, True
            self._wake()

    def _look(self, now: float) -> None:
        with self._lock:
            if self._phase is Phase.DRAINING and now >= self._phase_ends:
                self._enter(Phase.CUTTING, CUT_GRACE)
                self._cut_open()
            elif self._phase is Phase.CUTTING and now >= self._phase_ends:
                self._give_up(list(self._floor.busy))
        if now >= self._next_tick:
            self._next_tick = now + self.terms.tick
            self._ask(now)

    def _deadline(self) -> float:
        return self._next_tick if self._phase is Phase.SERVING else min(self._next_tick, self._phase_ends)

    def _enter(self, phase: Phase, seconds: float) -> None:
        self._phase, self.is_leaving = phase, True
        self._phase_ends = time.monotonic() + seconds

    def _ask(self, now: float) -> None:
        """Ask the loop for a sign of life; say who blocks it if it has not given the last one."""
        floor = self._floor
        if floor.has_answered:
            if self._is_blocked:
                self._is_blocked = False
                log_line(logging.WARNING, "the event loop goes on")
            floor.has_answered = False
            self._asked = now
            floor.call(floor.tick)
        elif not self._is_blocked:
            self._is_blocked = True
            self._say_blocked(now)

    def _say_blocked(self, now: float) -> None:
        floor = self._floor
        task = asyncio.current_task(floor.loop)
        peers = [peer_name(seat.address) for seat in list(floor.busy) if task is not None and seat.task is task]
        whose = f"the handler of {peers[0]}" if peers else "a callback or task"
        frame = sys._current_frames().get(self._thread.ident or 0)
        text = "the event loop is blocked for %.1f s by %s; nobody else is served"
        log_stack(logging.WARNING, frame, text, now - self._asked, whose)

    def _cut_open(self) -> None:
        """Handlers are cancelled, and may still say goodbye."""
        self._floor.call(self._floor.cut)
