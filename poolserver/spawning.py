"""How a worker is started: forked, or in this very process. Runs in the master."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from poolserver import process, signals
from poolserver.aio import crew_for
from poolserver.commands import Command
from poolserver.console import Console
from poolserver.crew import Crew
from poolserver.door import Register
from poolserver.events import Start
from poolserver.generation import Generation
from poolserver.handover import Pairs
from poolserver.listener import Listener
from poolserver.parties import Spawn, WorkerHandle
from poolserver.resident import Resident
from poolserver.scoreboard import Berth, Scoreboard
from poolserver.station import Terms
from poolserver.worker import Seat, Worker


@contextlib.contextmanager
def forking_spawn(
    generation_of: Callable[[int], Generation],
    board: Scoreboard,
    inbox: signals.Inbox[Command],
    register: Register,
    desk: Console | None = None,
    *,
    pairs: Pairs | None = None,
    listeners: Callable[[], Iterable[Listener]] = tuple,
) -> Iterator[Spawn]:
    """Workers that are forked. The lifeline's write end is this process's alone: each child closes its copy at once,
    or it would never report the master's death; its copies of inbox and console, which are the master's; and those
    of ``listeners`` that its generation does not have, or their addresses would never be free. ``pairs`` are closed
    after the block."""
    lifeline_read, lifeline_write = os.pipe2(os.O_CLOEXEC)
    pairs = pairs or Pairs.open()

    def spawn(start: Start, berth: Berth, siblings: Sequence[WorkerHandle]) -> WorkerHandle:
        generation = generation_of(start.generation)

        def body(report_fd: int) -> int:
            os.close(lifeline_write)
            inbox.close()
            if desk is not None:
                desk.close_in_child()
            for sibling in siblings:
                sibling.close()
            own = {listener.socket for listener in generation.listeners}
            for listener in listeners():
                if listener.socket not in own:
                    listener.socket.close()
            generation.use_log()
            others = desk.listeners if desk is not None else ()
            seat = Seat(start.slot, lifeline_read, report_fd, start.is_canary, others, stacks_fd)
            return Worker(seat, generation, board.quarters(berth), register, pairs).run()

        with desk.worker_pipe(start.serial) if desk is not None else contextlib.nullcontext(-1) as stacks_fd:
            return process.fork(body)

    try:
        yield spawn
    finally:
        os.close(lifeline_read)
        os.close(lifeline_write)
        pairs.close()


class ResidentSpawn:
    """The one worker that is this process."""

    def __init__(
        self,
        generation: Generation,
        board: Scoreboard,
        register: Register,
        *,
        on_released: Callable[[], None] = lambda: None,
        is_reloadable: bool = False,
    ) -> None:
        self._generation = generation
        self._board = board
        self._register = register
        self._on_released = on_released
        self._is_reloadable = is_reloadable
        self._crew: Crew | None = None

    def __call__(self, _start: Start, berth: Berth, _siblings: Sequence[WorkerHandle]) -> WorkerHandle:
        resident = Resident()
        stations = self._generation.make_stations()
        self._generation.on_start()
        self._crew = crew_for(stations)(
            stations,
            self._board.quarters(berth),
            self._generation.terms,
            self._register,
            on_stop_asked=resident.ask_stop,
            on_released=self._on_released,
        )
        self._crew.door.is_open &= not self._is_reloadable  # so that lanes ask it for each connection
        resident.start(self._crew)
        return resident

    def take_over(self, terms: Terms) -> None:
        """After a reload: the lanes go on under the new limits."""
        if self._crew is not None:
            self._crew.door.change(terms.limits)
