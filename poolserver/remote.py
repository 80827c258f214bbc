"""A running server, as its operator reaches it: the client half of the control socket. Used by the command line.

The server half is ``control.py``, which describes the lines.
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from poolserver.errors import NoServerError, PoolserverError, SystemRefusedError, UsageError

PATIENCE = 5.0
"""Seconds for what a server in good health does at once."""

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""More than the status of 16,384 lanes."""

_CHUNK = 1024 * 1024

_GREETING = "who"
"""Asked before anything else; nobody typed it, so failures name the socket."""


class Server:
    """The client half: a running server, as its operator reaches it. Owns the connection; use ``at``."""

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.path = path
        self.name = self.pid = "?"
        self.service = ""
        """Its handler and addresses, as far as it tells."""
        self._sock = sock
        self._received = b""
        self._owed = 0

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    @classmethod
    @contextlib.contextmanager
    def at(cls, path: Path) -> Iterator[Self]:
        """Connect to the server at ``path``, for the block.

        Raises:
            NoServerError: nobody answers there.
            SystemRefusedError: we may not ask.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            _connect(sock, path)
            server = cls(sock, path)
            who = server.ask(_GREETING, patience=PATIENCE)
            server.name, server.pid = str(who.get("name")), str(who.get("pid"))
            if who.get("handler"):
                server.service = f"{who['handler']} on {', '.join(map(str, who.get('listeners') or []))}"
            yield server

    def ask(self, command: str, number: int = 0, *, patience: float | None = None) -> dict[str, Any]:
        """Ask, and wait for the reply: up to ``patience`` seconds, or as long as a reload takes.

        Raises:
            NoServerError: no answer came in time.
            PoolserverError: the answer is no, or the server ended before it gave one.
        """
        request = {"command": command} | ({"number": number} if number else {})
        about = command if command != _GREETING else self.path
        self._sock.settimeout(patience)
        try:
            while self._owed:  # replies that came too late for those who asked
                self._line()
            with contextlib.suppress(BrokenPipeError):  # a stranger is refused unasked: the reason is there to be read
                self._sock.sendall(json.dumps(request).encode() + b"\n")
            self._owed += 1
            reply = json.loads(self._line())
        except TimeoutError:
            raise NoServerError(f"the server at {self.path} (pid {self.pid}) is there, but does not answer") from None
        except (OSError, ValueError):
            raise PoolserverError(f"{about}: the server (pid {self.pid}) ended before it answered") from None
        if not (isinstance(reply, dict) and reply.get("ok")):
            raise PoolserverError(f"{about}: {reply.get('reason') if isinstance(reply, dict) else reply}")
        return reply

    def wait_for_end(self) -> None:
        """Wait until it is gone: the kernel closes its end of the connection."""
        self._sock.settimeout(None)
        with contextlib.suppress(OSError):  # a reset is an end, too
            while self._sock.recv(4096):
                continue

    def _line(self) -> bytes:
        while b"\n" not in self._received:
            octets = self._sock.recv(_CHUNK)
            if not octets or len(self._received) > MAX_REPLY_BYTES:
                raise ConnectionResetError
            self._received += octets
        line, _, self._received = self._received.partition(b"\n")
        self._owed -= 1
        return line


def _connect(sock: socket.socket, path: Path) -> None:
    """In the kernel's queue, while the backlog is full, for as long as the send time-out says. Source: connect(2)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(PATIENCE), 0))
    try:
        sock.connect(os.fspath(path))
    except BlockingIOError:
        raise NoServerError(f"the server at {path} is there, but takes no connection") from None
    except PermissionError:
        raise SystemRefusedError(f"{path}: only root and the server's own user may ask") from None
    except OSError as error:
        raise NoServerError(f"no server answers at {path}: {error.strerror or error}") from None


def located(candidates: Iterable[Path], name: str) -> Path:
    """Which of these sockets is that of the server with this name; of the only server, where the name is empty.

    Raises:
        NoServerError: none of them answers.
        UsageError: several do.
    """
    looked = list(dict.fromkeys(candidates))
    answering: dict[Path, str] = {}
    for path in looked:
        try:
            with Server.at(path) as server:
                answering[path] = f"{server} at {path}"
                is_meant = name in ("", server.name)
        except PoolserverError:
            continue  # a stale file, or another user's
        if not is_meant:
            del answering[path]
    if not answering:
        who = f"no server named {name}" if name else "no server"
        raise NoServerError(f"{who} answers at {looked[0]}; if it is elsewhere, -c FILE or --control PATH says where")
    if len(answering) > 1:
        raise UsageError(
            f"several servers answer: {', '.join(answering.values())}; say which by -c FILE or --control PATH"
        )
    return next(iter(answering))
