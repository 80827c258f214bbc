"""The control socket: one JSON object a line in, one a line out.

    {"command": "scale", "number": 4}      {"ok": true, "reason": ""}
    {"command": "status"}                  {"ok": true, "reason": "", "status": {…}}

The server half, which runs in the master's loop and never waits for a client; the client half is ``remote.py``. What a
command means is the pool's affair.
"""

import json
import logging
import math
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping

from poolserver.commands import CONTROL_COMMANDS
from poolserver.events import Asked, AskerLeft, Event
from poolserver.listener import Listener

_log = logging.getLogger("poolserver")

MAX_CLIENTS = 16
"""Whoever comes when all places are taken gets that of the client that has kept us waiting longest."""

MAX_REQUEST_BYTES = 4096
"""The longest request is a tenth of it."""

PATIENCE = 5.0
"""Seconds that a client has to make its request, and again to take the reply."""

PAUSE = 0.1
"""Seconds without accepting when descriptors have run out: the listener stays ready, and would spin the loop."""

MAX_ACCEPTED = 64
"""Connections taken in one turn: a thousand that come at once must not keep the workers waiting."""

Question = Callable[[int], Mapping[str, object] | None]
"""What is asked, by which client: the reply, or None when ``answer`` will give it."""


class _Client:
    """A connection, as the server half sees it: it asks, waits for the answer, takes it, and may ask again."""

    def __init__(self, sock: socket.socket, deadline: float, patience: float = PATIENCE) -> None:
        self.sock = sock
        self.deadline = deadline
        self.patience = patience
        self.received = b""
        self.unsent = memoryview(b"")
        self.is_waiting = False
        self.is_last = False

    @property
    def interest(self) -> int:
        """What to poll it for; hang-ups are told in any case, so that one that waits can leave."""
        if self.unsent:
            return select.POLLOUT
        return 0 if self.is_waiting else select.POLLIN

    @property
    def has_request(self) -> bool:
        return not (self.is_waiting or self.unsent) and b"\n" in self.received

    def receive(self) -> bool:
        """Take what came. False: that was the end."""
        octets = self.sock.recv(MAX_REQUEST_BYTES + 1)
        self.received += octets
        return bool(octets)


class ControlSocket:
    """The server half. Owns the listener and the clients' connections until ``close``; runs in the master.

    Only root and the user that the server runs as are answered. Source: unix(7), SO_PEERCRED.
    """

    def __init__(self, listener: Listener | None) -> None:
        self.listener = listener
        self._questions: dict[str, Question] = {}
        self._clients: dict[int, _Client] = {}
        self._next_asker = 1
        self._paused_until = 0.0

    def serve(self, questions: Mapping[str, Question]) -> None:
        """Answer these questions. All other words are commands, which become events."""
        self._questions = dict(questions)

    def interests(self) -> dict[int, int]:
        """What to poll: descriptors, and for which events."""
        found = {client.sock.fileno(): client.interest for client in self._clients.values()}
        if self.listener is not None and not self._paused_until:
            found[self.listener.socket.fileno()] = select.POLLIN
        return found

    def deadline(self) -> float:
        """When to call ``attend`` at the latest, in monotonic seconds."""
        deadlines = [0.0 if client.has_request else client.deadline for client in self._clients.values()]
        return min([self._paused_until or math.inf, *deadlines])

    def attend(self, ready: Collection[int], now: float) -> list[Event]:
        """Do what can be done without waiting; what was asked of the pool comes back as events.

        Each client has at most one request taken in a turn, and all that ask the same share one answer: no number of
        them makes a turn long.
        """
        events: list[Event] = []
        answered: dict[str, bytes] = {}
        for asker, client in list(self._clients.items()):
            if client.deadline <= now:
                self._drop(asker)
            elif client.has_request or client.sock.fileno() in ready:
                try:
                    events += self._converse(asker, client, answered, now)
                except OSError:
                    self._drop(asker)  # reset, or gone with its reply unread
        if self.listener is not None and self._paused_until <= now:
            self._paused_until = 0.0
            self._accept(self.listener.socket, now)
        return events

    def adopt(self, sock: socket.socket) -> None:
        """A client of our own making, such as the exporter: it has all the time in the world, and keeps its place."""
        sock.setblocking(False)
        self._clients[self._new_asker()] = _Client(sock, math.inf, patience=math.inf)

    def answer(self, asker: int, ok: bool, reason: str = "", **more: object) -> None:
        """The outcome of what ``asker`` had asked; one that has left meanwhile is told nothing."""
        client = self._clients.get(asker)
        if client is not None and client.is_waiting:
            client.is_waiting = False
            self._reply(asker, client, _line(ok, reason, **more), time.monotonic())

    def hold(self) -> None:
        """Let who comes wait, until ``begin``: another master answers as yet."""
        self._paused_until = math.inf

    def begin(self) -> None:
        """From here on who comes is answered here."""
        self._paused_until = 0.0

    def hand_over(self) -> None:
        """Another master answers whoever comes from here on."""
        if self.listener is not None:
            self.listener.lend()
            self.listener.close()
            self.listener = None

    def close(self) -> None:
        """The end of the service. What was answered is on its way; whoever still waits sees the end of file."""
        for asker in list(self._clients):
            self._drop(asker)
        if self.listener is not None:
            self.listener.close()

    def close_in_child(self) -> None:
        """In a forked child: its copies. A client must see the end of the master, not of the last worker."""
        for client in self._clients.values():
            client.sock.close()
        if self.listener is not None:
            self.listener.socket.close()

    def _accept(self, listener: socket.socket, now: float) -> None:
        for _ in range(MAX_ACCEPTED):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self._paused_until = now + PAUSE  # no descriptor: who came waits in the backlog
                return
            sock.setblocking(False)
            client = _Client(sock, now + PATIENCE)
            refusal = "" if _is_allowed(sock) else "only root and the server's own user may ask"
            if not (refusal or self._make_room()):
                refusal = f"{MAX_CLIENTS} clients are waiting for answers already"
            asker = self._new_asker()
            self._clients[asker] = client
            if refusal:
                self._refuse(asker, client, refusal, now)

    def _new_asker(self) -> int:
        self._next_asker += 1
        return self._next_asker - 1

    def _make_room(self) -> bool:
        if sum(client.patience < math.inf for client in self._clients.values()) < MAX_CLIENTS:
            return True
        slow = [(client.deadline, asker) for asker, client in self._clients.items() if client.deadline < math.inf]
        if slow:
            self._drop(min(slow)[1])
        return bool(slow)

    def _converse(self, asker: int, client: _Client, answered: dict[str, bytes], now: float) -> list[Event]:
        if client.unsent:
            self._send(asker, client, now)
        elif client.is_waiting:
            self._drop(asker)  # polled for hang-ups alone
            return [AskerLeft(asker)]
        elif not (client.has_request or client.receive()):
            self._drop(asker)
        elif len(client.received) > MAX_REQUEST_BYTES:
            self._refuse(asker, client, f"a request has at most {MAX_REQUEST_BYTES} bytes", now)
        elif client.has_request:
            return self._take(asker, client, answered, now)
        return []

    def _take(self, asker: int, client: _Client, answered: dict[str, bytes], now: float) -> list[Event]:
        line, _, client.received = client.received.partition(b"\n")
        try:
            word, number = parse(line, self._questions)
        except ValueError as error:
            self._refuse(asker, client, str(error), now)
            return []
        client.is_waiting = True
        client.deadline = math.inf
        if word not in self._questions:
            return [Asked(CONTROL_COMMANDS[word], asker, number)]
        if word not in answered:
            found = self._questions[word](asker)
            if found is None:
                return []
            answered[word] = _line(True, "", **found)
        client.is_waiting = False
        self._reply(asker, client, answered[word], now)
        return []

    def _refuse(self, asker: int, client: _Client, reason: str, now: float) -> None:
        client.is_last = True
        self._reply(asker, client, _line(False, reason), now)

    def _reply(self, asker: int, client: _Client, line: bytes, now: float) -> None:
        client.deadline = now + client.patience
        client.unsent = memoryview(line)
        try:
            self._send(asker, client, now)
        except OSError:
            self._drop(asker)  # it has left

    def _send(self, asker: int, client: _Client, now: float) -> None:
        try:
            client.unsent = client.unsent[client.sock.send(client.unsent) :]
        except BlockingIOError:
            return  # it does not read; its time runs
        if client.unsent:
            return
        client.deadline = now + client.patience
        if client.is_last:
            self._drop(asker)

    def _drop(self, asker: int) -> None:
        self._clients.pop(asker).sock.close()


def parse(line: bytes, questions: Collection[str]) -> tuple[str, int]:
    """A request's word and number, whatever was sent.

    Raises:
        ValueError: it is no request; the message says why.
    """
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError('want one JSON object a line, such as {"command": "status"}') from None
    word = request.get("command") if isinstance(request, dict) else None
    known = [*questions, *CONTROL_COMMANDS]
    if not isinstance(word, str) or word not in known:
        raise ValueError(f"unknown command (known: {', '.join(known)})")
    number = request.get("number", 0)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 2**31:
        raise ValueError(f"{word}: number must be a whole number")
    return word, number


def _line(ok: bool, reason: str, **more: object) -> bytes:
    return json.dumps({"ok": ok, "reason": reason, **more}, separators=(",", ":")).encode() + b"\n"


def _is_allowed(sock: socket.socket) -> bool:
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())
