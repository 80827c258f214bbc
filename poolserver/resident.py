"""A worker that is this very process: the crew's lanes run beside the master's loop.

For ``-w 0`` and thread servers.
"""

import os
import signal

from poolserver.commands import Order
from poolserver.crew import Crew
from poolserver.process import READY, STOP_ASKED, Report
from poolserver.worker import LISTENER_LOST_STATUS

_OVER = b"."
_REPORTS = {ord(READY): Report.READY, ord(STOP_ASKED): Report.STOP_ASKED}


class Resident:
    """Stands where a ``Process`` stands; its pipe carries the same bytes, and one more when the crew is over."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.reason = ""
        self.status: int | None = None
        self.how = "left"
        self.has_exit_descriptor = True
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._told = b""

    def ask_stop(self) -> None:
        """For the crew: a handler asked the service to stop."""
        self._tell(STOP_ASKED)

    def start(self, crew: Crew) -> None:
        """Start the lanes; from here on ``crew`` is ours to close."""
        self._crew = crew
        crew.start()
        self._tell(READY)
        self._watcher = crew.watch_beside(lambda: self._tell(_OVER))

    def descriptors(self) -> list[int]:
        return [self._read_fd]

    def reports(self) -> list[Report]:
        """What had come when ``has_exited`` was asked; the end, if it came since, stays in the pipe, and wakes."""
        told, self._told = self._told, b""
        return [_REPORTS[octet] for octet in told if octet in _REPORTS]

    def has_exited(self) -> bool:
        try:
            self._told += os.read(self._read_fd, 4096)
        except BlockingIOError:
            pass  # nothing new
        if self.status is None and _OVER in self._told:
            self.reason = self._crew.lost_listener
            self.status = LISTENER_LOST_STATUS << 8 if self.reason else 0  # in the form of waitpid(2)
        return self.status is not None

    def note_reaped(self, status: int) -> None:
        """Never: nobody reaps its own process."""

    def send(self, signum: int) -> None:
        """An order, by the number of the signal that carries it to a forked worker."""
        if signum in (signal.SIGKILL, Order.STOP_NOW.value):
            self._crew.cut()
        elif signum in (Order.DRAIN.value, Order.RETIRE.value):
            self._crew.retire(self._crew.terms.graceful_timeout, serve_queue=signum == Order.DRAIN.value)

    def close(self) -> None:
        self._watcher.join()  # it has told that the crew is over, which was its last act
        self._crew.close()
        os.close(self._read_fd)
        os.close(self._write_fd)

    def end(self) -> None:
        self._crew.cut()

    def _tell(self, octets: bytes) -> None:
        os.write(self._write_fd, octets)
