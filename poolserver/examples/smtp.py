"""An SMTP sink: takes every mail, keeps none, logs a line for each. A protocol where the server speaks first.

Serve it, and talk to it::

    poolserver run poolserver.examples.smtp:SMTPHandler -b tcp://127.0.0.1:20025
    swaks --server 127.0.0.1 --port 20025 --from you@example --to me@example

Leave ``timeouts.first_byte`` and ``parking.wait_for`` alone: the client says nothing before the greeting.

Source: RFC 5321.
"""

import logging
import socketserver

MAX_LINE_BYTES = 2048
"""Longest line that is read at once: twice what RFC 5321, 4.5.3.1 asks for. Longer ones come in pieces."""

MAX_MAIL_BYTES = 10 * 1024 * 1024
"""Longest mail: announced by EHLO (RFC 1870), refused at MAIL where the client tells, cut off where not."""

MAX_COMMANDS = 1000
"""Commands in one session."""

MAX_RECIPIENTS = 100
"""Recipients of one mail; RFC 5321 4.5.3.1.8 asks for at least these."""

logger = logging.getLogger(__name__)


class SMTPHandler(socketserver.StreamRequestHandler):
    """One session: greeting, commands, mails."""

    def setup(self) -> None:
        """A new session has no mail under way and none behind it."""
        super().setup()
        self.sender: str | None = None
        self.recipients = 0
        self.mails = 0

    def handle(self) -> None:
        """Greet, then obey commands until QUIT, the client's end or a limit."""
        self.reply("220 poolserver.example ESMTP sink")
        for _ in range(MAX_COMMANDS):
            line = self.rfile.readline(MAX_LINE_BYTES)
            if not line.endswith(b"\n"):
                if len(line) == MAX_LINE_BYTES:
                    self.reply("500 line too long")
                return
            if not self.obey(line.decode("utf-8", "replace").strip()):
                return
        self.reply("421 too many commands")

    def obey(self, line: str) -> bool:
        """Carry out one command and reply; whether the session goes on."""
        verb, _, argument = line.partition(" ")
        match verb.upper():
            case "HELO":
                self.reset("250 poolserver.example")
            case "EHLO":
                self.reset(f"250-poolserver.example\r\n250-8BITMIME\r\n250-PIPELINING\r\n250 SIZE {MAX_MAIL_BYTES}")
            case "MAIL":
                return self.begin_mail(argument)
            case "RCPT":
                self.add_recipient()
            case "DATA":
                return self.take_mail()
            case "RSET":
                self.reset("250 forgotten")
            case "NOOP":
                self.reply("250 done")
            case "QUIT":
                self.reply("221 bye")
                return False
            case _:
                self.reply("500 unknown command")
        return True

    def begin_mail(self, argument: str) -> bool:
        """MAIL FROM:<sender>. Between two mails a session can end politely when the worker is to leave."""
        if self.mails and getattr(self.server, "draining", False):
            self.reply("421 closing, come back")
            return False
        if not argument.upper().startswith("FROM:"):
            self.reply("501 MAIL FROM:<address>")
        elif declared_size(argument) > MAX_MAIL_BYTES:
            self.reply("552 mail too large")
        else:
            self.reset("250 sender taken")
            self.sender = argument[5:].split(" ", maxsplit=1)[0]
        return True

    def add_recipient(self) -> None:
        """RCPT TO:<anybody>."""
        if self.sender is None:
            self.reply("503 MAIL first")
        elif self.recipients >= MAX_RECIPIENTS:
            self.reply("452 too many recipients")
        else:
            self.recipients += 1
            self.reply("250 recipient taken")

    def take_mail(self) -> bool:
        """DATA: read the mail, throw it away, log it; whether the session goes on."""
        if not self.recipients:
            self.reply("503 RCPT first")
            return True
        self.reply("354 go on, end with a dot on its own line")
        size = self.skip_mail()
        if size is None:
            return False
        logger.info("mail from %r to %d, %d bytes: discarded", self.sender, self.recipients, size)
        self.mails += 1
        self.reset("250 discarded")
        return True

    def skip_mail(self) -> int | None:
        """Read past the mail, one piece at a time; its size, or None when it was cut short or too large.

        Only CR LF, dot, CR LF ends it: to take a bare LF for a line's end lets one mail smuggle in another.
        """
        size, at_line_start = 0, True
        while size <= MAX_MAIL_BYTES:
            piece = self.rfile.readline(MAX_LINE_BYTES)
            if not piece:
                return None
            if at_line_start and piece == b".\r\n":
                return size
            size += len(piece)
            at_line_start = piece.endswith(b"\r\n")
        self.reply("552 mail too large")
        return None

    def reset(self, line: str) -> None:
        """Forget the mail under way, and reply."""
        self.sender = None
        self.recipients = 0
        self.reply(line)

    def reply(self, line: str) -> None:
        """Send one reply, whole, in one write."""
        self.wfile.write(line.encode() + b"\r\n")


def declared_size(argument: str) -> int:
    """The number in MAIL's ``SIZE=`` (RFC 1870), 0 without. It has at most 20 digits, so no more are read."""
    for word in argument.upper().split(" ")[1:]:
        digits = word.removeprefix("SIZE=")
        if digits != word and digits.isdecimal() and digits.isascii():
            return int(digits[:20])
    return 0
