"""How a record of the log becomes lines, and how whatever a client has had a hand in is made harmless there.

Knows nothing of where lines go: that is ``log.py``'s, which says in each record who speaks.
"""

import importlib
import logging
import re
import time

from poolserver.errors import ConfigError

_UNSAFE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UNSAFE_OR_NEWLINE = re.compile(rf"{_UNSAFE.pattern}|\n")
"""Control characters, what breaks lines or turns the direction of writing, and lone surrogates, which no file takes: no
client is to move the operator's cursor, forge a line, or hide one."""

_MARGINAL = re.compile(r" |Traceback |(?!poolserver:)[A-Za-z_][\w.]*(:|$)")
"""What may begin a line that is not the first of its record; a record begins with digits, an ``announce``d line with
our name."""


class TextFormatter(logging.Formatter):
    """``2026-11-21T09:00:00.123+0000 INFO worker 3 [4711]: text``, with a client's control characters made harmless."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        stamp += f".{int(record.msecs):03d}" + time.strftime("%z", time.localtime(record.created))
        role = getattr(record, "role", "poolserver")
        return f"{stamp} {record.levelname} {role} [{record.process}]: {self.body(record)}"

    def body(self, record: logging.LogRecord) -> str:
        """What is said, and below it a traceback, if there is one."""
        text = harmless_line(record.getMessage())
        if hasattr(record, "lost"):
            text += f" ({record.lost} earlier lines lost)"
        details = record.exc_text or record.stack_info or getattr(record, "details", "")
        if record.exc_info and not record.exc_text:
            details = self.formatException(record.exc_info)
        return "\n".join([text, *map(_below, harmless(str(details)).splitlines())])


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
        return TextFormatter()
    try:
        module = importlib.import_module("pythonjsonlogger.json")
    except ModuleNotFoundError as error:
        raise ConfigError("log.format = json needs python-json-logger: pip install 'poolserver[json]'") from error
    names = {"levelname": "level", "process": "pid"}
    fields = ["levelname", "service", "role", "process", "message"]
    made: logging.Formatter = module.JsonFormatter(fields, rename_fields=names, timestamp="time")
    return made


def _below(line: str) -> str:
    """A line below a log line: at the margin only what a traceback has there, so that no exception's text can pass for
    a line of ours."""
    return line if _MARGINAL.match(line) else f"  {line}"


def _escape(match: re.Match[str]) -> str:
    return match.group().encode("unicode_escape").decode("ascii")
