"""The journal's own protocol, through the extra ``journald``: an entry for each record, with its priority and who
speaks as fields of their own, and a traceback within it.

Used by ``log.py`` where standard error is the journal. Sending never waits: what the journal has no room for now goes
to standard error as a line, as without the extra.
"""

import importlib
import logging
import socket
from typing import Any

from poolserver.lines import TextFormatter
from poolserver.streams import own_copy

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
"""What the journal calls them. Source: syslog(3)."""

_IDENTIFIER = "poolserver"


class Journal:
    """Owns its socket. Forked children share it: each entry is one datagram."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._formatter = TextFormatter()
        with transport.socket as low:
            transport.socket = socket.socket(fileno=own_copy(low.fileno()))
        transport.socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that it sends by."""
        fd: int = self._transport.socket.fileno()
        return fd

    def send(self, record: logging.LogRecord) -> None:
        """One entry. Its fields are the journal's own and ``POOLSERVER_ROLE``, ``POOLSERVER_SERVICE``.

        Raises:
            OSError: the journal takes nothing now, or is not there.
        """
        said = vars(record)
        self._transport.send(
            [
                ("MESSAGE", f"{said['role']}: {self._formatter.body(record)}"),
                ("PRIORITY", priority(record)),
                ("SYSLOG_IDENTIFIER", _IDENTIFIER),
                ("POOLSERVER_ROLE", said["role"]),
                ("POOLSERVER_SERVICE", said["service"]),
            ]
        )

    def close(self) -> None:
        """Give the descriptor back."""
        self._transport.socket.close()


def opened() -> Journal | None:
    """The journal; None: the extra is missing."""
    try:
        module = importlib.import_module("logging_journald")
    except ModuleNotFoundError:
        return None
    # Not connected: a journal that is restarted may have another socket at its path.
    return Journal(module.JournaldTransport(connected=False))


def priority(record: logging.LogRecord) -> int:
    """The record's severity as the journal has it. Source: sd-daemon(3)."""
    return _PRIORITIES.get(record.levelno, _PRIORITIES[logging.INFO])
