"""What this master would leave to the next: draws up the estate of an upgrade from the parts that have it.

Runs in the old master. How it gets there, and when, is ``upgrader.py``'s.
"""

import time
from dataclasses import dataclass

from poolserver import estate
from poolserver.binding import Group
from poolserver.console import Console
from poolserver.door import Register
from poolserver.estate import Counts, Estate, PassedFile, PassedGroup, PassedSocket
from poolserver.handover import Pairs
from poolserver.listener import Listener
from poolserver.pidfile import PidFile
from poolserver.pool import Pool
from poolserver.scoreboard import Scoreboard
from poolserver.succession import Succession
from poolserver.systemd import Manager
from poolserver.upgrader import Passed


@dataclass(frozen=True)
class Legacy:
    """Whatever an heir gets, where it is kept here."""

    succession: Succession
    desk: Console
    pidfile: PidFile | None
    manager: Manager
    pairs: Pairs
    pool: Pool
    board: Scoreboard
    register: Register

    def drawn_up(self, passed: Passed) -> Estate:
        """The estate as it is now, with all descriptors of it among ``passed``."""
        groups = [_group(each, passed) for each in self.succession.groups]
        strangers = self.manager.passed.unclaimed()
        return Estate(
            version=estate.VERSION,
            line=-1,
            report=-1,
            leash=-1,
            groups=groups,
            unclaimed=[PassedFile(fd=passed.add(sock.fileno()), name=name, file=None) for name, sock in strangers],
            stored=self.manager.stored,
            pairs=[passed.add(sock.fileno(), is_needed=True) for sock in self.pairs.sockets],
            control=self.desk.pass_control(passed),
            metrics=self.desk.pass_metrics(passed),
            pidfile=self._pass_pidfile(passed),
            counts=self.counts(),
            respawns=self.pool.respawns,
            reloads=self.pool.reload.reloads,
            reloads_failed=self.pool.reload.reloads_failed,
            bans=[(key.hex(), left) for key, left in self.register.connections.bans(time.monotonic_ns())],
        )

    def counts(self) -> Counts:
        """What was counted so far."""
        return Counts(totals=self.board.all_totals(), durations=self.board.durations())

    def take_back(self) -> None:
        """An heir that has failed may have written its pid."""
        if self.pidfile is not None:
            self.pidfile.write()

    def _pass_pidfile(self, passed: Passed) -> PassedFile | None:
        found = self.pidfile
        return passed.file(found.fileno(), found.path, found.let_go) if found is not None else None


def _group(group: Group, passed: Passed) -> PassedGroup:
    return PassedGroup(url=group.url, sockets=[_socket(each, passed) for each in group.listeners])


def _socket(listener: Listener, passed: Passed) -> PassedSocket:
    fd = passed.add(listener.socket.fileno(), listener.lend, is_needed=True)
    return PassedSocket(fd=fd, scheme=listener.address.scheme, is_own=not listener.is_adopted, file=listener.file)
