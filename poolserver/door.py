"""The door: admission as lanes meet it. Judges who comes, keeps each lane's claim, turns away who is refused.

"Why was it refused?" is answered in ``admission.py``; this is the act. One for each process, over shared tables.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poolserver.adapter import RESET_ON_CLOSE
from poolserver.admission import ADMITTED, Admission, Limits, Reason, Verdict
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
    """Runs in a worker; its lanes share it.

    What every connection passes is written for few calls and few look-ups: limits that stop nobody are to cost next to
    nothing. Source: measured, 1.0 us for who is let in, of 1.6 with a function for each step.
    """

    def __init__(self, limits: Limits, register: Register, lanes: int) -> None:
        self._register = register
        self._claims = register.claims
        # A lane that is alone in its process has nobody there to race with between its count and its claim.
        self._lock = register.claims.lock if lanes > 1 else None
        self._claim_words = register.claims.words  # a call of `claim` costs more than what it does
        self.closed = register.claims.give_back
        """With a row's number: the lane's connection is over."""
        self.change(limits)

    def change(self, limits: Limits) -> None:
        """Judge by these from now on; who is in stays. Lanes that met an open door do not ask again."""
        register = self._register
        self.is_open = self._is_off = limits.is_off
        self._limits = limits
        self._admission = Admission(limits, register.claims.active, register.connections, register.datagrams)
        self._known: dict[str, tuple[Source, Verdict | None]] = {}

    def lets_in(
        self, row: Row, request: Any, address: Any, count_refusal: Callable[[Row, Outcome], None] = Row.refuse
    ) -> bool:
        """Whether this connection is served. If not it is counted and turned away; if so, it has its claim until
        ``closed``. One that was counted as accepted before is refused with ``Row.count``."""
        if self._is_off:
            return True  # since a reload
        try:
            source, standing = self._known[address[0]]
        except (LookupError, TypeError):
            source, standing = self._recall(address)
        lock = self._lock
        if lock is not None:
            lock.acquire()
        try:
            verdict = self._admission.admit(source, standing, time.monotonic_ns())
            if verdict.is_counted:
                self._claim_words[row.number] = source.number
        finally:
            if lock is not None:
                lock.release()
        return verdict is ADMITTED or self._is_served(row, request, verdict, count_refusal)

    def lets_in_datagram(self, row: Row, address: Any) -> bool:
        """Whether this datagram is served; if not it is counted. It claims nothing."""
        if self._is_off:
            return True  # since a reload
        source, standing = self._recall(address)
        with self._claims.lock:
            verdict = self._admission.admit_datagram(source, standing, time.monotonic_ns())
        return self._is_served(row, None, verdict, Row.refuse)

    def _recall(self, address: Any) -> tuple[Source, Verdict | None]:
        """Who that is, and what networks say of it, which is remembered until the limits change."""
        host, known = host_of(address), self._known
        found = known.get(host)
        if found is None:
            source = source_of_host(host, self._limits.source_prefix_v4, self._limits.source_prefix_v6)
            found = source, self._admission.standing(source)
            if len(known) >= CACHED_HOSTS:
                known.clear()
            known[host] = found
        return found

    def _is_served(
        self, row: Row, request: Any, verdict: Verdict, count_refusal: Callable[[Row, Outcome], None]
    ) -> bool:
        """Count what is to be counted, and turn away who is refused."""
        if verdict.reason is None:
            return True
        if not verdict.is_enforced:
            row.count(_WOULD[verdict.reason])
            return True
        count_refusal(row, _REFUSED[verdict.reason])
        if request is not None:
            self._turn_away(request)
        return False

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
