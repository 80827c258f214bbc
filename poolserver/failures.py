"""What goes wrong in lanes, in the log: named with its peer and its place, and never enough to flood it.

Called wherever a client, or a handler, could repeat a line as often as it likes. ``repeats.py`` decides what is
written; one bound holds for all processes forked from the one that imported this.
"""

import logging
import mmap
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from pathlib import PurePath
from types import FrameType

from poolserver.lines import harmless, harmless_line
from poolserver.repeats import FULL_GUESS, PREFIX_BYTES, Form, Repeats

_log = logging.getLogger("poolserver")

MAX_LINE_CHARS = 250
MAX_TEXT_CHARS = 100
"""Of an exception's own text within a line: it may quote all that a client sent."""

MAX_PIECE_CHARS = 1_000
MAX_DETAILS_CHARS = 8_000
"""Of one frame or one exception's text, and of a traceback or stack in all; what is in the middle is left out."""

_MAX_CHAIN = 8
"""Exceptions of a chain that tell one kind from another; a chain may be a ring."""

Place = tuple[str, int]
"""A file and a line. As a set, those of a recursion are the same however deep it went."""

# Mapped at import, so before any fork: workers share it.
_paid = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")


class _Here:
    """What this process has said."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """In a fresh child: a thread that was not forked may have held the lock."""
        self.lock = threading.Lock()
        self.repeats = Repeats(_paid)


_here = _Here()
os.register_at_fork(after_in_child=_here.renew)


def log_failure(text: str, *args: object, error: BaseException | None = None) -> None:
    """Log the exception being handled, or ``error``. ``text % args`` says what failed, and for whom."""
    error = error or sys.exception()
    if error is None:  # a handle_error of the user's calls ours when nothing was raised
        log_line(logging.ERROR, text, *args)
        return
    headline = text % args
    line = f"{headline}: {_summary(error)}"
    _write(logging.ERROR, (text, *_origin(error)), headline, line, lambda: traceback.format_exception(error), error)


def log_line(level: int, text: str, *args: object) -> None:
    """Log a line that may repeat. Those of one ``text`` are of one kind."""
    line = text % args
    _write(level, text, line, line, tuple)


def log_stack(level: int, frame: FrameType | None, text: str, *args: object) -> None:
    """Log a line that may repeat, with where another thread is: innermost call last."""
    headline = text % args
    places = list(_places(traceback.walk_stack(frame))) if frame is not None else []
    line = f"{headline}{_at(places[0])}" if places else headline
    _write(level, (text, frozenset(places)), headline, line, lambda: traceback.format_stack(frame) if frame else ())


def say_counted(*, is_last: bool = False) -> None:
    """Say how many were not written, once it is time to. Call it now and then; at the end with ``is_last``."""
    with _here.lock:
        sayings = _here.repeats.sayings(time.monotonic_ns(), is_last=is_last)
    for level, text in sayings:
        _log.log(level, "%s", text)


def _write(
    level: int,
    kind: Hashable,
    headline: str,
    line: str,
    make_details: Callable[[], Iterable[str]],
    error: BaseException | None = None,
) -> None:
    """``line`` tells it all in short; in full it is the ``headline`` with the details below."""
    if not _log.isEnabledFor(level):
        return
    line = harmless_line(_cut(line, MAX_LINE_CHARS))
    with _here.lock:
        form = _here.repeats.judge(kind, level, line, time.monotonic_ns())
    if form is Form.FULL:
        details = "".join(_cut(piece, MAX_PIECE_CHARS) for piece in make_details())
        _write_full(level, harmless_line(headline), harmless(_cut(details, MAX_DETAILS_CHARS)), error)
    elif form is Form.LINE:
        _log.log(level, "%s", line)
    say_counted()


def _write_full(level: int, headline: str, details: str, error: BaseException | None) -> None:
    size = PREFIX_BYTES + len(f"{headline}{details}".encode("utf-8", "backslashreplace"))
    with _here.lock:
        _here.repeats.charge(size - FULL_GUESS, time.monotonic_ns())
    is_stack = error is None and details
    exc_info = (type(error), error, error.__traceback__) if error is not None else None
    record = _log.makeRecord(_log.name, level, __file__, 0, headline, (), exc_info, sinfo=details if is_stack else None)
    if error is not None:
        record.exc_text = details  # or a formatter makes one, with all that a client sent in it
    _log.handle(record)


def _origin(error: BaseException) -> tuple[Hashable, Hashable]:
    """What tells one kind of exception from another: classes and places, of its causes too; not their texts, which
    are the client's to vary."""
    chain = list(islice(_chain(error), _MAX_CHAIN))
    places = frozenset(place for each in chain for place in _places(traceback.walk_tb(each.__traceback__)))
    return tuple(type(each).__qualname__ for each in chain), places


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _places(frames: Iterable[tuple[FrameType, int]]) -> Iterator[Place]:
    return ((frame.f_code.co_filename, number) for frame, number in frames)


def _at(place: Place) -> str:
    return f", at {PurePath(place[0]).name}:{place[1]}"


def _summary(error: BaseException) -> str:
    """Its class, its text as far as that is short, and where it was raised."""
    try:
        text = _cut(str(error), MAX_TEXT_CHARS)
    except Exception:  # noqa: BLE001 - a __str__ of the user's
        text = "<no text: its __str__ failed>"
    places = list(_places(traceback.walk_tb(error.__traceback__)))
    return f"{type(error).__name__}: {text}{_at(places[-1]) if places else ''}"


def _cut(text: str, most: int) -> str:
    """At most about so long; the end tells more than the beginning."""
    if len(text) <= most:
        return text
    return f"{text[: most // 4]} [{len(text) - most} characters left out] {text[len(text) - most + most // 4 :]}"
