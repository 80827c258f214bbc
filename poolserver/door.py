"""The door: admission as lanes meet it. Judges who comes, keeps each lane's claim, turns away who is refused.

"Why was it refused?" is answered in ``admission.py``; this is the act. One for each process, over shared tables.
"""

import functools
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from poolserver.adapter import RESET_ON_CLOSE
from poolserver.admission import Admission, Limits, Reason, Verdict
from poolserver.claims import Claims
from poolserver.networks import CACHED_HOSTS, Source, host_of, key_text, source_of_host
from poolserver.rows import Outcome, Row
from poolserver.sources import SourceTable

_REFUSED = {
    Reason.PER_SOURCE: Outcome.REFUSED_PER_SOURCE,
    Reason.RATE: Outcome.REFUSED_RATE,
    Reason.DENIED: Outcome.REFUSED_DENIED,
    Reason.BANNED: Outcome.REFUSED_BANNED,
}
_WOULD = {
    Reason.PER_SOURCE: Outcome.WOULD_PER_SOURCE,
    Reason.RATE: Outcome.WOULD_RATE,
    Reason.DENIED: Outcome.WOULD_DENIED,
    Reason.BANNED: Outcome.WOULD_BANNED,
}


@dataclass(frozen=True)
class Register:
    """What all processes know of sources, made by the master before its first fork. Datagrams are counted apart."""

    claims: Claims
    connections: SourceTable
    datagrams: SourceTable

    @classmethod
    def create(cls) -> "Register":
        """Map the memory: anonymous, so that nothing of it is left behind."""
        return cls(Claims.create(), SourceTable.create(), SourceTable.create())

    def worst(self, limits: Limits, count: int) -> list[tuple[str, int]]:
        """The sources most refused, in words, with how often.

        Each is named once, though it may have sent datagrams too, or have two entries from workers that raced.
        """
        found: Counter[bytes] = Counter()
        for key, times in self.connections.worst(2 * count) + self.datagrams.worst(2 * count):
            found[key] += times
        return [
            (key_text(key, limits.source_prefix_v4, limits.source_prefix_v6), times)
            for key, times in found.most_common(count)
        ]


class Door:
    """Runs in a worker; its lanes share it."""

    def __init__(self, limits: Limits, register: Register) -> None:
        self._register = register
        self._claims = register.claims
        self.closed = register.claims.give_back
        """With a row's number: the lane's connection is over."""
        self.change(limits)

    def change(self, limits: Limits) -> None:
        """Judge by these from now on; who is in stays. Lanes that met an open door do not ask again."""
        register = self._register
        self.is_open = self._is_off = limits.is_off
        self._limits = limits
        self._admission = Admission(limits, register.claims.active, register.connections, register.datagrams)
        self._who = functools.lru_cache(CACHED_HOSTS)(self._look_up)

    def lets_in(self, row: Row, request: Any, address: Any, *, is_stream: bool, is_accepted: bool = False) -> bool:
        """Whether this connection or datagram is served. If not it is counted and, being a connection, turned away.

        One that is let in has its claim until ``closed``. ``is_accepted``: it was counted as accepted before.
        """
        if self._is_off:
            return True  # since a reload
        source, standing = self._who(host_of(address))
        with self._claims.lock:
            if is_stream:
                verdict = self._admission.admit(source, standing, time.monotonic_ns())
                if verdict.is_counted:
                    self._claims.claim(row.number, source)
            else:
                verdict = self._admission.admit_datagram(source, standing, time.monotonic_ns())
        if verdict.reason is None:
            return True
        if not verdict.is_enforced:
            row.count(_WOULD[verdict.reason])
            return True
        (row.count if is_accepted else row.refuse)(_REFUSED[verdict.reason])
        if is_stream:
            self._turn_away(request)
        return False

    def _look_up(self, host: str) -> tuple[Source, Verdict | None]:
        source = source_of_host(host, self._limits.source_prefix_v4, self._limits.source_prefix_v6)
        return source, self._admission.standing(source)

    def claimed(self, row: Row) -> int:
        """The number of the source that the lane's connection counts for; 0 when it counts for none."""
        return self._claims.claimed(row.number)

    def _turn_away(self, request: socket.socket) -> None:
        """By a reset, which leaves nothing in the kernel; a plain close; or a text, which one send takes whole."""
        how = self._limits.refuse_with
        try:
            if how == "rst":
                request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            elif how != "close":
                request.send(how.encode(), socket.MSG_DONTWAIT)
                request.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has left already
        request.close()
