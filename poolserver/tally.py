"""What was refused or timed out, said at most once a second for each reason in the whole pool, whatever the flood.

Pure: totals and time are passed in. The master asks; workers never log a refusal.
"""

from collections.abc import Callable, Mapping, Sequence

INTERVAL = 1.0
"""Seconds between lines of one reason."""

QUIET_INTERVAL = 3.0
"""Seconds between looks while there is nothing to say: an idle service is not to be woken for it."""

WORST_NAMED = 3

_TEXTS: Mapping[str, str] = {
    "refused_per_source": "refused: at limits.per_source",
    "refused_rate": "refused: above limits.rate_per_source",
    "refused_denied": "refused: denied, or not in limits.allow",
    "refused_banned": "refused: banned",
    "refused_proxy": "refused: no valid PROXY header, or from a peer that is not in proxy_protocol.trusted",
    "would_per_source": "would be refused (dry run): at limits.per_source",
    "would_rate": "would be refused (dry run): above limits.rate_per_source",
    "would_denied": "would be refused (dry run): denied, or not in limits.allow",
    "would_banned": "would be refused (dry run): banned",
    "refused_reset": "dropped: reset by the client before a handler was called",
    "timeout_first_byte": "cut: nothing sent within timeouts.first_byte",
    "refused_tls": "refused: the TLS handshake failed",
    "timeout_handshake": "cut: the TLS handshake was not complete within tls.handshake_timeout",
    "timeout_head": "cut: what is waited for was not complete within timeouts.head",
    "refused_max_head": "cut: what is waited for was longer than parking.max_head",
    "refused_max_parked": "cut: parking.max_parked reached",
    "refused_descriptors": "cut: silent, and a newcomer needed the descriptor; raise LimitNOFILE",
    "timeout_idle": "cut: silent for timeouts.idle",
}

Worst = Callable[[int], Sequence[tuple[str, int]]]
"""The sources refused most often, with how often, at most so many."""


class Tally:
    """Remembers what was said. One for the life of a master."""

    def __init__(self, worst: Worst = lambda _count: ()) -> None:
        self._said: dict[str, int] = {}
        self._worst = worst
        self._next = 0.0

    def deadline(self) -> float:
        """When to call ``lines`` next, in monotonic seconds."""
        return self._next

    def lines(self, totals: Mapping[str, int], now: float) -> list[str]:
        """What is to be logged now: a line for each reason whose count has grown since it was last said."""
        if now < self._next:
            return []
        grown = {name: totals.get(name, 0) - self._said.get(name, 0) for name in _TEXTS}
        self._said = {name: totals.get(name, 0) for name in _TEXTS}
        self._next = now + (INTERVAL if any(grown.values()) else QUIET_INTERVAL)
        new = {name: count for name, count in grown.items() if count > 0}
        worst = ", ".join(f"{source} ({refused})" for source, refused in self._worst(WORST_NAMED)) if new else ""
        return [f"{count} {_TEXTS[name]}{_about(name, worst)}" for name, count in new.items()]


def _about(name: str, worst: str) -> str:
    return f"; most refused so far: {worst}" if worst and not name.startswith("timeout") else ""
