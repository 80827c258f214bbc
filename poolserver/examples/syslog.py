"""A syslog receiver: a line in the log for each message, with its facility, its severity, and who sent it.

Serve it, and talk to it::

    poolserver run poolserver.examples.syslog:SyslogHandler -b udp://127.0.0.1:20514 -b unixgram:/tmp/syslog.sock
    logger --server 127.0.0.1 --port 20514 --udp --priority daemon.warning hello
    logger --socket /tmp/syslog.sock hello

Nobody who sends datagrams can be trusted with who they are: give ``limits.allow``, and ``limits.rate_per_source``, or
whoever likes fills the disk. ``socket.receive_buffer`` is room for bursts; ``status`` shows what found none.

Source: RFC 3164, RFC 5424.
"""

import logging
import re
import socketserver

MAX_MESSAGE_CHARS = 1000
"""Longest message that is logged; the rest is left out."""

FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news"),
    *("uucp", "cron", "authpriv", "ftp", "ntp", "audit", "alert", "clock"),
)
SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")

PRIORITY = re.compile(r"<(\d{1,3})>(?:1 )?")

logger = logging.getLogger(__name__)


class SyslogHandler(socketserver.BaseRequestHandler):
    """One message. There is no answer to it."""

    def handle(self) -> None:
        """Log it."""
        data, _socket = self.request
        sender = self.client_address[0] if isinstance(self.client_address, tuple) else "local"
        priority, text = understood(data.decode("utf-8", "replace"))
        logger.info("%s %s: %s", priority, sender, text)


def understood(message: str) -> tuple[str, str]:
    """The priority in words and the text, on one line and without control characters; "user.notice" where none is
    said, as RFC 3164, 4.3.3 has it."""
    found = PRIORITY.match(message)
    number = int(found[1]) if found else 13
    if number > 191:
        found, number = None, 13
    facility, severity = divmod(number, 8)
    name = FACILITIES[facility] if facility < len(FACILITIES) else f"local{facility - 16}"
    text = message[found.end() if found else 0 :].strip("\r\n\0 ")[:MAX_MESSAGE_CHARS]
    return f"{name}.{SEVERITIES[severity]}", "".join(letter if letter.isprintable() else "?" for letter in text)
