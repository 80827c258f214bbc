"""Admission: the decision to serve or refuse a connection or a datagram.

Pure rules over injected counts, clock passed in: it touches no socket, no clock and no log. Lanes ask it, and carry
out what it says.
"""

import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from poolserver.networks import NO_NETWORKS, Networks, Source

BAN_WINDOW_NS = 60 * 10**9
"""Refusals within so long earn a ban: a minute."""

MAX_RATE = 1_000_000
"""Arrivals a second: above it an interval in whole nanoseconds would be off by more than 1 in 1,000."""

MAX_FILL = 2_147_483
"""Seconds in which a burst's credit must come back: the longest duration of the configuration, 24 days."""

_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)/(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class Reason(enum.StrEnum):
    """Why somebody is refused; the values are the names under ``refused`` in ``status``."""

    PER_SOURCE = "per_source"
    RATE = "rate"
    DENIED = "denied"
    BANNED = "banned"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a connection or datagram.

    With a ``reason`` count a refusal, and refuse when ``is_enforced``: under ``dry_run`` it is not. Where
    ``is_counted`` a connection that is served claims its place; exempt ones do not, for no limit counts them.
    """

    reason: Reason | None
    is_enforced: bool
    is_counted: bool


ADMITTED = Verdict(None, is_enforced=False, is_counted=True)
EXEMPT = Verdict(None, is_enforced=False, is_counted=False)
_ENFORCED = {reason: Verdict(reason, is_enforced=True, is_counted=False) for reason in Reason}
_REHEARSED = {reason: Verdict(reason, is_enforced=False, is_counted=True) for reason in Reason}


def parse_rate(text: str) -> float:
    """Read ``"20/s"``, ``"600/m"`` or ``"5/h"`` as arrivals a second; empty = 0, off.

    Raises:
        ValueError: it is no rate from 1/h to 1000000/s; a clause without the text, which the caller names.
    """
    if not text:
        return 0.0
    found = _RATE.fullmatch(text)
    rate = float(found[1]) / _SECONDS[found[2]] if found else 0.0
    if not 1 / 3600 <= rate <= MAX_RATE:
        raise ValueError(f'must be a rate such as "20/s", "600/m" or "5/h", from "1/h" to "{MAX_RATE}/s"')
    return rate


def most_burst(rate: float) -> int:
    """The largest burst that ``rate`` may have."""
    return int(min(rate * MAX_FILL, MAX_RATE))


@dataclass(frozen=True, slots=True)
class Limits:
    """The section ``limits``, in the units that admission reckons in. 0, or no network, is off."""

    per_source: int = 0
    source_prefix_v4: int = 32
    source_prefix_v6: int = 64
    rate_interval_ns: int = 0
    rate_burst: int = 1
    allow: Networks = NO_NETWORKS
    deny: Networks = NO_NETWORKS
    exempt: Networks = NO_NETWORKS
    ban_after: int = 0
    ban_ns: int = 0
    refuse_with: str = "rst"
    dry_run: bool = False

    @classmethod
    def parse(
        cls,
        *,
        per_source: int = 0,
        source_prefix_v4: int = 32,
        source_prefix_v6: int = 64,
        rate_per_source: str = "",
        burst: int = 0,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        exempt: Iterable[str] = (),
        ban_after: int = 0,
        ban_for: float = 60.0,
        refuse_with: str = "rst",
        dry_run: bool = False,
    ) -> "Limits":
        """Make them of the section's keys, whose bounds ``sections.py`` has seen to.

        Raises:
            ValueError: a network or the rate is none.
        """
        rate = parse_rate(rate_per_source)
        return cls(
            per_source=per_source,
            source_prefix_v4=source_prefix_v4,
            source_prefix_v6=source_prefix_v6,
            rate_interval_ns=round(10**9 / rate) if rate else 0,
            rate_burst=burst or max(1, int(rate)),
            allow=Networks.parse(allow),
            deny=Networks.parse(deny),
            exempt=Networks.parse(exempt),
            ban_after=ban_after,
            ban_ns=int(ban_for * 10**9),
            refuse_with=refuse_with,
            dry_run=dry_run,
        )

    @property
    def is_off(self) -> bool:
        """Whether nobody can be refused. ``exempt`` and ``ban_after`` alone refuse nobody."""
        return not (self.per_source or self.rate_interval_ns or self.allow or self.deny)


class Table(Protocol):
    """What admission asks of the table of sources."""

    last_ban: memoryview

    def arrive(self, source: Source, now_ns: int, interval_ns: int, burst: int) -> bool: ...

    def strike(
        self, source: Source, now_ns: int, after: int, window_ns: int, ban_ns: int, *, is_rehearsal: bool = False
    ) -> bool: ...

    def banned(self, source: Source, now_ns: int, *, heeds_rehearsal: bool = False) -> bool: ...

    def refuse(self, source: Source, now_ns: int) -> None: ...


class Admission:
    """Who may come in. One for each process and configuration; its state is all in the tables.

    In this order: ``deny`` refuses; a given ``allow`` refuses whom it does not hold, exempt or not; ``exempt`` is
    served, whatever it does; then a ban, the rate, and the connections at once. Networks apply to IP addresses:
    a Unix peer is kept out by its socket's permissions, and counted by its uid.

    A refusal is a strike towards a ban, but for one that a ban itself makes, one of an exempt address, whose
    neighbours share its source, and those of datagrams, whose source may be forged. Without ``ban_after`` earlier
    bans are not heeded: that is how an operator lifts them.

    Args:
        limits: What is refused.
        active: How many connections at once a source has. To be exact within the process, its lanes hold
            ``Claims.lock`` from here to their claim.
        table: What is known of the sources of connections.
        datagrams: The same of datagrams, a table of its own.
    """

    __slots__ = ("_active", "_banned", "_datagrams", "_denied", "_limits", "_over", "_table", "_too_fast")

    def __init__(self, limits: Limits, active: Callable[[Source], int], table: Table, datagrams: Table) -> None:
        self._limits = limits
        self._active = active
        self._table = table
        self._datagrams = datagrams
        verdicts = _REHEARSED if limits.dry_run else _ENFORCED
        self._denied, self._banned = verdicts[Reason.DENIED], verdicts[Reason.BANNED]
        self._too_fast, self._over = verdicts[Reason.RATE], verdicts[Reason.PER_SOURCE]

    def standing(self, source: Source) -> Verdict | None:
        """What the networks say of a source's address; None: nothing, and of a Unix peer never anything.

        Always the same, and the dearest to find out, by bisections of lists that no cache of a CPU holds: who asks
        keeps the answer, and gives it to those below.
        """
        limits, address, version = self._limits, source.address, source.version
        if not version:
            return None
        if limits.deny.contains(address, version) or (limits.allow and not limits.allow.contains(address, version)):
            return self._denied
        return EXEMPT if limits.exempt.contains(address, version) else None

    def admit(self, source: Source, standing: Verdict | None, now_ns: int) -> Verdict:
        """Judge a connection that arrives from ``source`` now. Not asked while ``limits.is_off``."""
        limits, table = self._limits, self._table
        if standing is not None:
            if standing is EXEMPT:
                return EXEMPT
            is_exempt = limits.exempt.contains(source.address, source.version)
            return self._refused(source, now_ns, self._denied, is_strike=not is_exempt)
        if (
            limits.ban_after
            and now_ns < table.last_ban[0]
            and table.banned(source, now_ns, heeds_rehearsal=limits.dry_run)
        ):
            table.refuse(source, now_ns)
            return self._banned
        interval = limits.rate_interval_ns
        if interval and not table.arrive(source, now_ns, interval, limits.rate_burst):
            return self._refused(source, now_ns, self._too_fast)
        if limits.per_source and self._active(source) >= limits.per_source:
            return self._refused(source, now_ns, self._over)
        return ADMITTED

    def admit_datagram(self, source: Source, standing: Verdict | None, now_ns: int) -> Verdict:
        """Judge a datagram: networks and the rate, counted apart from connections; no strikes, no bans."""
        limits = self._limits
        if standing is not None:
            return EXEMPT if standing is EXEMPT else self._dropped(source, now_ns, self._denied)
        interval = limits.rate_interval_ns
        if interval and not self._datagrams.arrive(source, now_ns, interval, limits.rate_burst):
            return self._dropped(source, now_ns, self._too_fast)
        return ADMITTED

    def _refused(self, source: Source, now_ns: int, verdict: Verdict, *, is_strike: bool = True) -> Verdict:
        limits = self._limits
        self._table.refuse(source, now_ns)
        if is_strike and limits.ban_after:
            self._table.strike(
                source, now_ns, limits.ban_after, BAN_WINDOW_NS, limits.ban_ns, is_rehearsal=limits.dry_run
            )
        return verdict

    def _dropped(self, source: Source, now_ns: int, verdict: Verdict) -> Verdict:
        self._datagrams.refuse(source, now_ns)
        return verdict
