"""The operator's console: what can be asked of a running service, and who answers. Looked after by the master's loop.

Puts the control socket together with the observer, which knows how the service is, and the inquiry, which asks workers
for their stacks. Commands it passes on to the pool.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

from poolserver import control, stacks
from poolserver.control import ControlSocket
from poolserver.events import Event
from poolserver.inquiry import Inquiry
from poolserver.metrics import Observer
from poolserver.pool import Pool
from poolserver.scoreboard import Berth
from poolserver.sections import Control
from poolserver.snapshot import Snapshot

_log = logging.getLogger("poolserver")


class Supervisor(Protocol):
    """What it asks of the master."""

    def roster(self) -> Mapping[int, tuple[int, Berth]]: ...
    def signal(self, serial: int, signum: int) -> None: ...


class Console:
    """Runs in the master, from before its first fork."""

    def __init__(self, socket: ControlSocket) -> None:
        self.socket = socket
        self._inquiry = Inquiry()
        self._examined_slots: dict[int, int] = {}

    def connect(self, pool: Pool, master: Supervisor, observer: Observer) -> None:
        """From here on questions are answered; until then none can be taken, since the loop does not turn."""
        self._pool = pool
        self._master = master
        self._observer = observer
        self._inquiry.send = master.signal
        self._inquiry.on_done = self._told_stacks
        self._inquiry.on_examined = self._examined
        self.socket.serve({"status": lambda _asker: {"status": self._snapshot()}, "stacks": self._ask_stacks})

    def worker_pipe(self, serial: int) -> contextlib.AbstractContextManager[int]:
        """The descriptor on which a worker that is about to be forked tells its stacks."""
        return self._inquiry.pipe(serial)

    def answer(self, asker: int, ok: bool, reason: str) -> None:
        """Tell an asker whether what it asked for has happened, and if not, why."""
        self.socket.answer(asker, ok, reason)

    def examine(self, serial: int) -> None:
        """Have the threads of a worker that does not answer by itself written to the log."""
        self._examined_slots[serial] = self._pool.workers[serial].slot  # it may be buried when its answer comes
        self._inquiry.examine(serial, time.monotonic())

    def last_words(self, serial: int) -> str:
        """The stack that a worker left which has crashed, or nothing."""
        return self._inquiry.last_words(serial)

    def interests(self) -> dict[int, int]:
        return self.socket.interests() | self._inquiry.interests()

    def deadline(self) -> float:
        return min(self.socket.deadline(), self._inquiry.deadline())

    def attend(self, ready: Collection[int], now: float) -> list[Event]:
        self._inquiry.attend(ready, now)
        return self.socket.attend(ready, now)

    def close_in_child(self) -> None:
        """In a forked child: its copies of what is the master's."""
        self.socket.close_in_child()
        self._inquiry.close_in_child()

    def close(self) -> None:
        self._inquiry.close()

    def _snapshot(self) -> Snapshot:
        return self._observer.snapshot(self._pool, self._master.roster(), time.monotonic())

    def _ask_stacks(self, asker: int) -> Mapping[str, object] | None:
        if not self._pool.policy.resident:
            self._inquiry.begin(asker, time.monotonic())
            return None
        return self._stacks(dict.fromkeys(self._master.roster(), stacks.text(None) + stacks.END.decode()))

    def _examined(self, serial: int, text: str) -> None:
        what = "where its threads are" if text else "it is stopped, and cannot tell where its threads are"
        _log.error("worker %d: %s", self._examined_slots.pop(serial), what, extra={"details": text})

    def _told_stacks(self, asker: int, texts: Mapping[int, str]) -> None:
        self.socket.answer(asker, True, "", **self._stacks(texts))

    def _stacks(self, texts: Mapping[int, str]) -> dict[str, object]:
        workers = {serial: worker for serial, worker in self._pool.workers.items() if serial in texts}
        roster = self._master.roster()
        told = [
            {"slot": worker.slot, "pid": roster[serial][0], "text": texts[serial]}
            for serial, worker in workers.items()
            if serial in roster
        ]
        return {"stacks": told, "status": self._snapshot()}


@contextlib.contextmanager
def opened(section: Control, name: str, environ: Mapping[str, str]) -> Iterator[Console | None]:
    """The console of the server with this name, for the block; None where it cannot have a socket.

    Raises:
        SystemRefusedError: as ``control.opened``.
    """
    with control.opened(section.socket, name, section.mode, environ) as socket:
        if socket is None:
            yield None
            return
        console = Console(socket)
        try:
            yield console
        finally:
            console.close()
