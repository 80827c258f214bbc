"""The lobby: connections of ``tls://`` listeners from their first byte until a seat is free for them.

asyncio shakes hands itself, with 256 KiB of buffer for each connection. Who has sent nothing yet is parked, as with
lanes; of those in here the oldest is cut for a newcomer, so that stalled handshakes bound nobody else. Runs in the
loop's thread.
"""

import asyncio
import collections
import logging
import ssl
import time
from typing import Any, Protocol

from poolserver.adapter import peer_name
from poolserver.aio_protocols import present
from poolserver.failures import log_line
from poolserver.park import Park
from poolserver.parked import Parked
from poolserver.rows import Outcome
from poolserver.station import Terms
from poolserver.waits import Step, Wait

MAX_GUESTS = 256
"""64 MiB of buffers in each worker, at most. An honest handshake takes milliseconds."""

LEAST_PATIENCE = 0.05
"""Seconds that a handshake has at least: asyncio takes no zero."""


class FloorOfLobby(Protocol):
    """What the lobby asks of its floor."""

    loop: asyncio.AbstractEventLoop

    def welcome(self) -> None: ...


class Guest(asyncio.Protocol):
    """A connection here. What it sends early is kept for its handler: a chunk at most, then reading is paused.

    ``seat``: where it is served once it has left.
    """

    def __init__(self, lobby: "Lobby", parked: Parked) -> None:
        self.parked = parked
        self.transport: Any = None
        self.early = b""
        self.has_ended = False
        self.is_over = False
        self.task: asyncio.Task[None] | None = None
        self.seat: Any = None
        self.timer: asyncio.TimerHandle | None = None
        self._lobby = lobby

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is complete."""
        self.transport = transport
        self._lobby.has_shaken_hands(self)

    def data_received(self, data: bytes) -> None:
        """Whatever a handler is to be given for is there."""
        self.early += data
        self.transport.pause_reading()
        self._lobby.has_spoken(self)

    def eof_received(self) -> None:
        """The handler is to see it."""
        self.has_ended = True
        self._lobby.has_spoken(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Before a handler had it."""
        self._lobby.leave(self, Outcome.REFUSED_RESET)


class Lobby:
    """``ready``: who waits for a seat, in the order in which they came to that."""

    def __init__(self, floor: FloorOfLobby, park: Park, terms: Terms) -> None:
        self.ready: collections.deque[Guest] = collections.deque()
        self._guests: collections.OrderedDict[Guest, None] = collections.OrderedDict()
        self._floor = floor
        self._park = park
        self._terms = terms

    def __bool__(self) -> bool:
        return bool(self._guests)

    def enter(self, parked: Parked, lane: int) -> None:
        """Shake hands with ``parked``, which ``lane`` has. It is ours from here on."""
        self._park.lend(parked, lane)
        if len(self._guests) >= MAX_GUESTS:
            unready = (guest for guest in self._guests if guest.transport is None)
            self.leave(next(unready, next(iter(self._guests))), Outcome.REFUSED_MAX_PARKED)
        guest = Guest(self, parked)
        self._guests[guest] = None
        guest.task = self._floor.loop.create_task(self._shake_hands(guest))

    def has_shaken_hands(self, guest: Guest) -> None:
        """What comes now is for the handler, or is waited for."""
        parked = guest.parked
        parked.step = Step.REQUEST
        parked.since = time.monotonic()
        if parked.station.wait is Wait.NONE:
            guest.transport.pause_reading()
            self._ready(guest)
            return
        first_byte, head = (each or float("inf") for each in (self._terms.first_byte_timeout, self._terms.head_timeout))
        patience, outcome = min((first_byte, Outcome.TIMEOUT_FIRST_BYTE), (head, Outcome.TIMEOUT_HEAD))
        if patience < float("inf"):
            guest.timer = self._floor.loop.call_later(patience, self.leave, guest, outcome)

    def has_spoken(self, guest: Guest) -> None:
        """Under TLS a first byte is all that is waited for."""
        if guest in self._guests and guest not in self.ready:
            self._ready(guest)

    def take(self) -> Guest:
        """The next of ``ready``: it is the caller's."""
        guest = self.ready.popleft()
        del self._guests[guest]
        guest.is_over = True
        return guest

    def leave(self, guest: Guest, outcome: Outcome) -> None:
        """It does not come to a handler."""
        if guest.is_over:
            return
        guest.is_over = True
        del self._guests[guest]
        if guest in self.ready:
            self.ready.remove(guest)
        if guest.timer is not None:
            guest.timer.cancel()
        if guest.transport is not None:
            guest.transport.abort()
        elif guest.task is not None:
            guest.task.cancel()
        guest.parked.ending = guest.parked.ending or outcome
        self._park.drop(guest.parked)

    def cut(self) -> None:
        """Send everybody away."""
        for guest in list(self._guests):
            self.leave(guest, Outcome.CUT)

    def _ready(self, guest: Guest) -> None:
        if guest.timer is not None:
            guest.timer.cancel()
        self.ready.append(guest)
        self._floor.welcome()

    async def _shake_hands(self, guest: Guest) -> None:
        present.set(guest)
        parked, context = guest.parked, guest.parked.station.tls
        left = parked.since + self._terms.handshake_timeout - time.monotonic()
        patience = max(LEAST_PATIENCE, left) if self._terms.handshake_timeout else None
        connect: Any = self._floor.loop.connect_accepted_socket
        try:
            await connect(lambda: guest, parked.request, ssl=context, ssl_handshake_timeout=patience)
        except (TimeoutError, ConnectionAbortedError):  # asyncio's way to say so, and uvloop's
            self.leave(guest, Outcome.TIMEOUT_HANDSHAKE)
        except (OSError, ssl.CertificateError, ValueError) as error:
            if not guest.is_over:
                why = getattr(error, "reason", None) or str(error) or type(error).__name__
                log_line(
                    logging.INFO, "a connection of %s is refused: TLS handshake: %s", peer_name(parked.address), why
                )
            self.leave(guest, Outcome.REFUSED_TLS)
        guest.task = None
