"""Who is speaking: the prefix of every log line and the process title. Where lines go, and reopening the file.

The library only uses the logger ``poolserver``; a daemon calls ``configure`` once. Everything goes out by one write(2)
a line, so that lines of several processes in one file are never torn, and a failing write stops nobody.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

import setproctitle

from poolserver import journal, streams
from poolserver.errors import ConfigError
from poolserver.journal import Journal
from poolserver.lines import formatter
from poolserver.privileges import Account, made_for
from poolserver.streams import TornError, own_copy, put

LOGGER = "poolserver"

ACCESS = "poolserver.access"
"""The logger of ``access.py``."""

Announce = Callable[[str], None]
"""Tells whoever waits for it, in one line, that the pool serves."""

_speaker = "poolserver"
_has_standard_streams = False
_service = ""
_slot = 0
_journal_stream = ""
_handler: "LineHandler | None" = None
_access_handler: "LineHandler | None" = None


class LineHandler(logging.Handler):
    """Writes to a descriptor of its own.

    Lines that cannot be written are counted, and the count is said when one can be.
    """

    def __init__(self, path: str, owner: Account | None = None, native: Journal | None = None) -> None:
        super().__init__()
        self.path = path
        self._native = native
        self._owner = owner
        self._lost = 0
        self._margin = b""  # what ends a line that was torn
        self._is_journal = not path and _is_journal(2)
        self._fd = self._open()

    def fileno(self) -> int:
        """The descriptor that it writes to."""
        return self._fd if self._native is None else self._native.fileno()

    def reopen(self) -> None:
        """Write to the file that has the path now (after a rotation). A failure keeps the old one."""
        try:
            fresh = self._open()
        except OSError as error:
            logging.getLogger(LOGGER).error(  # noqa: TRY400 - the reason is in the line; a traceback adds nothing
                "cannot reopen %s: %s; going on with the old one", self.path, error.strerror
            )
            return
        with self._held():  # a lane that is writing must not meet the number again as a client's connection
            old, self._fd, self._margin = self._fd, fresh, b""
        os.close(old)
        self.follow()

    def prove(self, text: str) -> None:
        """Write this line, if it is a file's.

        Raises:
            ConfigError: that cannot be; the disk is full, for one.
        """
        if not self.path:
            return
        record = logging.LogRecord(LOGGER, logging.INFO, "", 0, text, None, None)
        record.role, record.service = _speaker, _service
        try:
            put(self._fd, self._octets(record))
        except OSError as error:
            raise ConfigError(f"log.file: cannot write {self.path}: {error.strerror or error}") from error

    def follow(self) -> None:
        """In a daemon, have standard output and error go where the log goes: what handlers print, and last words."""
        if _has_standard_streams and self.path and self is _handler:
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)

    def give_back(self) -> None:
        """Close the descriptor: another handler has taken over.

        Not ``close``, which frameworks call on every handler there is: ``logging.config.dictConfig`` does, and so does
        Django's ``setup()``.
        """
        with self._held():
            fd, self._fd = self._fd, -1
        os.close(fd)
        if self._native is not None:
            self._native.close()
        self.close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """While the block runs, nobody writes."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def count_lost(self) -> None:
        """A line that was printed, and not through the log, is lost."""
        self._lost += 1

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                record.lost = self._lost
            record.role, record.service = _speaker, _service
            if not self._is_told_natively(record):
                put(self._fd, self._margin + self._octets(record))
                self._margin = b""
            self._lost = 0
        except TornError:
            self._lost += 1
            self._margin = b"\n"
        except Exception:  # noqa: BLE001 - disk full, pipe broken, a record that cannot be formatted: counted above
            self._lost += 1

    def _is_told_natively(self, record: logging.LogRecord) -> bool:
        if self._native is None:
            return False
        try:
            self._native.send(record)
        except OSError:
            return False  # no room there now, or it is not there: standard error has a buffer of its own
        return True

    def _octets(self, record: logging.LogRecord) -> bytes:
        text = self.format(record)
        if self._is_journal:
            mark = f"<{journal.priority(record)}>"
            text = "\n".join(mark + line for line in text.split("\n"))
        return f"{text}\n".encode("utf-8", "backslashreplace")

    def _open(self) -> int:
        if not self.path:
            return own_copy(2)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = made_for(self._owner, self.path, lambda: os.open(self.path, flags, 0o640))
        try:
            return own_copy(fd)
        finally:
            os.close(fd)


def opened(path: str, kind: str = "text", owner: Account | None = None) -> LineHandler:
    """A handler for the file ``path``, which is to be ``owner``'s, or for standard error if it is empty; for lines of
    this ``kind``.

    Raises:
        ConfigError: the file cannot be opened, or the extra for this kind is missing.
    """
    lines = formatter(kind)
    try:
        is_native = not path and kind == "text" and _is_journal(2)
        handler = LineHandler(path, owner, journal.opened() if is_native else None)
    except OSError as error:
        raise ConfigError(f"log.file: cannot open {path!r}: {error.strerror}") from error
    handler.setFormatter(lines)
    return handler


def opened_access(access: bool | str, kind: str, owner: Account | None = None) -> LineHandler | None:
    """A handler for the file that ``log.access`` names; None: it names none.

    Raises:
        ConfigError: it cannot be opened.
    """
    if isinstance(access, bool) or not access:
        return None
    try:
        return opened(access, kind, owner)
    except ConfigError as error:
        raise ConfigError(str(error).replace("log.file", "log.access", 1)) from error


def configure(
    level: str, path: str, kind: str, stream: str, owner: Account | None = None, access: bool | str = False
) -> None:
    """Send the log of this daemon to ``path``, or to standard error if it is empty.

    Args:
        level: The least severity that is written.
        path: The file.
        kind: ``text`` or ``json``.
        stream: The variable JOURNAL_STREAM: where standard error is the journal, that gets entries of its own kind;
            without the extra for it, lines that begin with their priority. Source: systemd.exec(5), sd-daemon(3).
        owner: Whose the files are to be.
        access: The path of the access log, where it has a file of its own.

    Raises:
        ConfigError: as ``opened``.
    """
    global _journal_stream
    _journal_stream = stream
    use(opened(path, kind, owner), level, opened_access(access, kind, owner))


def _is_journal(fd: int) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return _journal_stream == f"{found.st_dev}:{found.st_ino}"


def present() -> tuple[LineHandler, LineHandler | None]:
    """What ``use`` was given last."""
    assert _handler is not None
    return _handler, _access_handler


def use(handler: LineHandler, level: str, access: LineHandler | None) -> None:
    """Send the log of this daemon there from now on, from this severity, and the access log; the handlers before them
    are closed."""
    _use_access(access)
    global _handler
    root = logging.getLogger()  # the handlers' own loggers too: a service has one log
    root.setLevel(level.upper())
    if handler is _handler:
        return
    root.addHandler(handler)
    if _handler is not None:
        root.removeHandler(_handler)
        _handler.give_back()
    logging.raiseExceptions = False  # a log that fails must not print about it
    _handler = handler
    handler.follow()


def _use_access(handler: LineHandler | None) -> None:
    """None: where the log goes, which takes it whatever its level is."""
    global _access_handler
    logger = logging.getLogger(ACCESS)
    logger.setLevel(logging.INFO)
    logger.propagate = handler is None
    if handler is _access_handler:
        return
    if _access_handler is not None:
        logger.removeHandler(_access_handler)
        _access_handler.give_back()
    if handler is not None:
        logger.addHandler(handler)
    _access_handler = handler


def take_standard_streams() -> None:
    """From the next ``use`` on, the log's file gets them too: a daemon's lead nowhere."""
    global _has_standard_streams
    _has_standard_streams = True


def keep_prints_from_waiting() -> None:
    """Of what this process prints, what cannot be written is counted with the lines of the log that are lost."""
    streams.keep_from_waiting(_count_lost)


def _count_lost() -> None:
    if _handler is not None:
        _handler.count_lost()


def reopen() -> None:
    """After a rotation. Nothing in a library call, where the log belongs to the caller."""
    for handler in (_handler, _access_handler):
        if handler is not None:
            handler.reopen()


def introduce(role: str, name: str, slot: int = 0) -> None:
    """Say who speaks from now on in this process: in log lines and in the process title (``ps``, ``top``)."""
    global _speaker, _service, _slot
    _speaker, _service, _slot = role, name, slot
    setproctitle.setproctitle(f"poolserver: {role} [{name}]")


def slot() -> int:
    """The worker's that speaks; 0 where everything runs in one process."""
    return _slot


def announce(line: str) -> None:
    """One line on standard error, whatever the log's settings: scripts wait for it. Standard error may be gone."""
    try:
        put(2, f"poolserver: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        logging.getLogger(LOGGER).info("%s", line)
