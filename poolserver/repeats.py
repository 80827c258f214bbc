"""Failures that repeat: which are written in full, which in one line, and which are only counted, and said later.

Whoever can make a handler fail can make it fail 10,000 times a second. Pure: the clock, and the one word of memory that
all processes of a pool share, are passed in. ``failures.py`` writes what is decided here.
"""

import enum
import math
from collections.abc import Hashable
from dataclasses import dataclass

RATE = 4_000
"""Bytes a second that the failures of a whole pool may write for as long as they go on."""

FULL_BYTES, LINE_BYTES, FIRST_BYTES = 8_000, 16_000, 32_000
"""How far ahead of that rate the pool may be for a failure to be written in full, in one line, and in full where it is
the first of its kind. So one that happens now and then always is, and a new one is seen in a flood of others. In all
that makes 7.2 kB/s over the first ten seconds."""

KIND_SECONDS = 60.0
"""So long after a failure was written in full the next of its kind counts as the first again."""

MAX_KINDS = 32
"""Kinds that one process tells apart. Further ones are taken together."""

SAY_INTERVAL = 10.0
"""Seconds between lines about what was only counted, one for each kind in each process."""

PREFIX_BYTES = 64
"""What stands before each line: time, level, who speaks."""

FULL_GUESS = 2_000
"""Bytes of a failure in full until they are known: the traceback of a handler that calls a few functions."""

_MOST_BYTES = 2 * FIRST_BYTES
_SECOND = 10**9
_OTHERS = "others"


class Form(enum.Enum):
    """How a failure is written."""

    FULL = "with its traceback"
    LINE = "in one line"
    COUNTED = "not now"


@dataclass(slots=True)
class _Kind:
    first_ns: int
    """From when on the next counts as the first."""
    counted: int = 0
    level: int = 0
    latest: str = ""


class Repeats:
    """Judges for one process; not for two threads at once.

    Args:
        paid: One 8-byte word: when, in nanoseconds of the monotonic clock, all that was written will be made up for. Of
            updates that race all but one are lost, which lets a line too many through.
    """

    def __init__(self, paid: memoryview) -> None:
        self._paid = paid
        self._kinds: dict[Hashable, _Kind] = {}
        self._say_ns = math.inf

    def judge(self, kind: Hashable, level: int, line: str, now_ns: int) -> Form:
        """How a failure is written now, of which ``line`` tells in short.

        In full it is charged as ``FULL_GUESS``: ``charge`` the difference once it is known.
        """
        found, debt = self._found(kind, now_ns), self._debt(now_ns)
        if debt < (FIRST_BYTES if found.first_ns <= now_ns else FULL_BYTES):
            found.first_ns = now_ns + int(KIND_SECONDS * _SECOND)
            self.charge(FULL_GUESS, now_ns)
            return Form.FULL
        if debt < LINE_BYTES:
            self.charge(_size(line), now_ns)
            return Form.LINE
        found.counted, found.level, found.latest = found.counted + 1, level, line
        self._say_ns = min(self._say_ns, now_ns + SAY_INTERVAL * _SECOND)
        return Form.COUNTED

    def charge(self, size: int, now_ns: int) -> None:
        """So many bytes are written; or so many fewer than was guessed, when it is negative."""
        debt = min(max(0, self._debt(now_ns) + size), _MOST_BYTES)
        self._paid[0] = now_ns + debt * _SECOND // RATE

    def sayings(self, now_ns: int, *, is_last: bool = False) -> list[tuple[int, str]]:
        """What is to be said now of those that were only counted, each with its level; all of it if there is no
        later."""
        if now_ns < self._say_ns and not is_last:
            return []
        self._say_ns = math.inf
        counted = [kind for kind in self._kinds.values() if kind.counted]
        texts = [(kind.level, f"{kind.counted} more of these were not written: {kind.latest}") for kind in counted]
        for kind in counted:
            kind.counted = 0
        self.charge(sum(_size(text) for _, text in texts), now_ns)
        return texts

    def _debt(self, now_ns: int) -> int:
        """Bytes that were written ahead of the rate. The word may have been scribbled over: then they are the most."""
        return min(max(0, self._paid[0] - now_ns) * RATE // _SECOND, _MOST_BYTES)

    def _found(self, kind: Hashable, now_ns: int) -> _Kind:
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            self._kinds = {key: each for key, each in self._kinds.items() if each.counted or each.first_ns > now_ns}
            kind = kind if len(self._kinds) < MAX_KINDS else _OTHERS
        return self._kinds.setdefault(kind, _Kind(now_ns))


def _size(line: str) -> int:
    return PREFIX_BYTES + len(line.encode("utf-8", "backslashreplace"))
