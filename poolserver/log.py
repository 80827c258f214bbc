"""Who is speaking: the prefix of every log line and the process title. Where lines go, and reopening the file.

The library only uses the logger ``poolserver``; a daemon calls ``configure`` once. Everything goes out by one write(2)
a line, so that lines of several processes in one file are never torn, and a failing write stops nobody.
"""

import contextlib
import fcntl
import importlib
import logging
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator

import setproctitle

from poolserver.errors import ConfigError
from poolserver.privileges import Account, made_for

LOGGER = "poolserver"

_PIPE_BUF = 4096

_LOWEST_OWN_FD = 10
"""A handler that closes descriptors 0–9 must not make the next client's connection our log."""

_UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_OR_NEWLINE = re.compile(rf"{_UNSAFE.pattern}|\n")
"""Control characters, what breaks lines or turns the direction of writing, and lone surrogates, which no file takes: no
client is to move the operator's cursor, forge a line, or hide one."""

_MARGINAL = re.compile(r" |Traceback |(?!poolserver:)[A-Za-z_][\w.]*(:|$)")
"""What may begin a line that is not the first of its record; a record begins with digits, an ``announce``d line with
our name."""

Announce = Callable[[str], None]
"""Tells whoever waits for it, in one line, that the pool serves."""

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""What the journal calls them. Source: syslog(3)."""

_speaker = "poolserver"
_has_standard_streams = False
_service = ""
_journal = ""
_handler: "LineHandler | None" = None


class LineHandler(logging.Handler):
    """Writes to a descriptor of its own.

    Lines that cannot be written are counted, and the count is said when one can be.
    """

    def __init__(self, path: str, owner: Account | None = None) -> None:
        super().__init__()
        self._path = path
        self._owner = owner
        self._lost = 0
        self._is_journal = not path and _is_journal(2)
        self._fd = self._open()

    def fileno(self) -> int:
        """The descriptor that it writes to."""
        return self._fd

    def reopen(self) -> None:
        """Write to the file that has the path now (after a rotation). A failure keeps the old one."""
        try:
            fresh = self._open()
        except OSError as error:
            logging.getLogger(LOGGER).error(  # noqa: TRY400 - the reason is in the line; a traceback adds nothing
                "cannot reopen log.file %s: %s; going on with the old one", self._path, error.strerror
            )
            return
        with self._held():  # a lane that is writing must not meet the number again as a client's connection
            old, self._fd = self._fd, fresh
        os.close(old)
        self.follow()

    def prove(self, text: str) -> None:
        """Write this line, if it is a file's.

        Raises:
            ConfigError: that cannot be; the disk is full, for one.
        """
        if not self._path:
            return
        try:
            _write(self._fd, self._octets(logging.LogRecord(LOGGER, logging.INFO, "", 0, text, None, None)))
        except OSError as error:
            raise ConfigError(f"log.file: cannot write {self._path}: {error.strerror or error}") from error

    def follow(self) -> None:
        """In a daemon, have standard output and error go where the log goes: what handlers print, and last words."""
        if _has_standard_streams and self._path:
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)

    def close(self) -> None:
        """Give the descriptor back: another handler has taken over."""
        with self._held():
            fd, self._fd = self._fd, -1
        os.close(fd)
        super().close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """While the block runs, nobody writes."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost:
                record.lost = self._lost
            _write(self._fd, self._octets(record))
            self._lost = 0
        except Exception:  # noqa: BLE001 - disk full, pipe broken, a record that cannot be formatted: counted above
            self._lost += 1

    def _octets(self, record: logging.LogRecord) -> bytes:
        record.role, record.service = _speaker, _service
        text = self.format(record)
        if self._is_journal:
            mark = f"<{_PRIORITIES.get(record.levelno, 6)}>"
            text = "\n".join(mark + line for line in text.split("\n"))
        return f"{text}\n".encode("utf-8", "backslashreplace")

    def _open(self) -> int:
        if not self._path:
            return _own_copy(2)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = made_for(self._owner, self._path, lambda: os.open(self._path, flags, 0o640))
        try:
            return _own_copy(fd)
        finally:
            os.close(fd)


class _Formatter(logging.Formatter):
    """``2026-11-21T09:00:00.123+0000 INFO worker 3 [4711]: text``, with a client's control characters made harmless."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        zone = time.strftime("%z", time.localtime(record.created))
        text = harmless_line(record.getMessage())
        line = f"{stamp}.{int(record.msecs):03d}{zone} {record.levelname} {_speaker} [{os.getpid()}]: {text}"
        if hasattr(record, "lost"):
            line += f" ({record.lost} earlier lines lost)"
        details = record.exc_text or record.stack_info or getattr(record, "details", "")
        if record.exc_info and not record.exc_text:
            details = self.formatException(record.exc_info)
        return "\n".join([line, *map(_below, harmless(str(details)).splitlines())])


def harmless(text: str) -> str:
    """``text`` with every character escaped that does anything but stand there, newlines apart."""
    return _UNSAFE.sub(_escape, text)


def harmless_line(text: str) -> str:
    """The same, newlines too."""
    return _UNSAFE_OR_NEWLINE.sub(_escape, text)


def formatter(kind: str) -> logging.Formatter:
    """How records become lines: ``text``, or ``json``, an object each.

    Raises:
        ConfigError: the extra is missing.
    """
    if kind == "text":
        return _Formatter()
    try:
        module = importlib.import_module("pythonjsonlogger.json")
    except ModuleNotFoundError as error:
        raise ConfigError("log.format = json needs python-json-logger: pip install 'poolserver[json]'") from error
    names = {"levelname": "level", "process": "pid"}
    fields = ["levelname", "service", "role", "process", "message"]
    made: logging.Formatter = module.JsonFormatter(fields, rename_fields=names, timestamp="time")
    return made


def opened(path: str, kind: str = "text", owner: Account | None = None) -> LineHandler:
    """A handler for the file ``path``, which is to be ``owner``'s, or for standard error if it is empty; for lines of
    this ``kind``.

    Raises:
        ConfigError: the file cannot be opened, or the extra for this kind is missing.
    """
    lines = formatter(kind)
    try:
        handler = LineHandler(path, owner)
    except OSError as error:
        raise ConfigError(f"log.file: cannot open {path!r}: {error.strerror}") from error
    handler.setFormatter(lines)
    return handler


def configure(level: str, path: str, kind: str, journal: str, owner: Account | None = None) -> None:
    """Send the log of this daemon to ``path``, or to standard error if it is empty.

    Args:
        level: The least severity that is written.
        path: The file.
        kind: ``text`` or ``json``.
        journal: The variable JOURNAL_STREAM: where standard error is the journal, lines begin with their priority.
            Source: systemd.exec(5), sd-daemon(3).
        owner: Whose the file is to be.

    Raises:
        ConfigError: as ``opened``.
    """
    global _journal
    _journal = journal
    use(opened(path, kind, owner), level)


def _is_journal(fd: int) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return _journal == f"{found.st_dev}:{found.st_ino}"


def present() -> LineHandler:
    """What ``use`` was given last."""
    assert _handler is not None
    return _handler


def use(handler: LineHandler, level: str) -> None:
    """Send the log of this daemon there from now on, from this severity; the handler before it is closed."""
    global _handler
    root = logging.getLogger()  # the handlers' own loggers too: a service has one log
    root.setLevel(level.upper())
    if handler is _handler:
        return
    root.addHandler(handler)
    if _handler is not None:
        root.removeHandler(_handler)
        _handler.close()
    logging.raiseExceptions = False  # a log that fails must not print about it
    _handler = handler
    handler.follow()


def take_standard_streams() -> None:
    """From the next ``use`` on, the log's file gets them too: a daemon's lead nowhere."""
    global _has_standard_streams
    _has_standard_streams = True


def reopen() -> None:
    """After a rotation. Nothing in a library call, where the log belongs to the caller."""
    if _handler is not None:
        _handler.reopen()


def introduce(role: str, name: str) -> None:
    """Say who speaks from now on in this process: in log lines and in the process title (``ps``, ``top``)."""
    global _speaker, _service
    _speaker, _service = role, name
    setproctitle.setproctitle(f"poolserver: {role} [{name}]")


def announce(line: str) -> None:
    """One line on standard error, whatever the log's settings: scripts wait for it. Standard error may be gone."""
    try:
        os.write(2, f"poolserver: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        logging.getLogger(LOGGER).info("%s", line)


def keep_standard_descriptors() -> None:
    """Where 0, 1 or 2 is closed, the next socket would become somebody's standard error: put /dev/null there."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))  # noqa: SIM115 - for the process's whole life


def _write(fd: int, octets: bytes) -> None:
    """Write without ever waiting: a reader that is stopped must stop nobody else.

    A pipe or socket that is ready takes this much at once; what it does not is lost. Source: pipe(7), PIPE_BUF.

    Raises:
        OSError: it takes nothing now, or never will.
    """
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    for start in range(0, len(octets), _PIPE_BUF):
        if not poller.poll(0):
            raise BlockingIOError
        os.write(fd, octets[start : start + _PIPE_BUF])


def _below(line: str) -> str:
    """A line below a log line: at the margin only what a traceback has there, so that no exception's text can pass for
    a line of ours."""
    return line if _MARGINAL.match(line) else f"  {line}"


def _own_copy(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_OWN_FD)


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
