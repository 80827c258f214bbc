"""Where lanes serve: a server object with its listener, and the terms of a crew. Plain values."""

import os
import ssl
from dataclasses import dataclass
from typing import Any

from poolserver.adapter import LaneServer
from poolserver.admission import Limits
from poolserver.networks import NO_NETWORKS, Networks
from poolserver.waits import Step, Wait


@dataclass(eq=False)
class Station:
    """A server object and the descriptor that its lanes wait on.

    ``queued`` bounds what is taken from it while draining.
    """

    server: LaneServer
    fd: int
    is_stream: bool
    is_tcp: bool
    is_unix_stream: bool
    idle_timeout: float
    sockaddr: Any
    """What the listener is bound to, to be bound to again."""
    url: str = ""
    wait: Wait = Wait.NONE
    """What a connection must have sent before a lane is given to it."""
    between: Wait = Wait.DATA
    """The same between two exchanges of a conversation."""
    defer_accept: float = 0.0
    """Seconds for which the kernel itself keeps a connection that has sent nothing (TCP_DEFER_ACCEPT)."""
    is_conversational: bool = False
    is_movable: bool = False
    """Whether another worker may go on with a conversation, by a new handler object."""
    may_block: bool = False
    """``get_request`` is the user's own and may take its time, over a TLS handshake, say."""
    may_be_tls: bool = False
    """The handler has a ``setup()`` of its own, which may put TLS on: no head or line can be waited for then."""
    queued: int = 0
    usual_end: bytes = b""
    """How nearly every next request ends, if the whole of it is there."""
    first_step: Step = Step.REQUEST
    """Where a connection begins; behind a header, from the next on."""
    proxy_mode: str = ""
    """Which PROXY header a connection must begin with: v1, v2, any; empty = none."""
    tls: ssl.SSLContext | None = None
    """With which TLS is spoken here."""

    def __post_init__(self) -> None:
        self.is_direct = self.is_tcp and self.first_step is Step.REQUEST and not self.may_block
        """Whether nothing that was sent is taken, nor an error, before the handler has a connection."""
        self.is_plain = self.is_direct and self.wait is Wait.NONE
        """Whether it goes from accept(2) to its handler: nobody waits for what it sent."""

    def is_intact(self) -> bool:
        """Whether the server's descriptor still is the listener: a closed number soon is another's connection."""
        try:
            return os.path.sameopenfile(self.server.socket.fileno(), self.fd)
        except OSError:
            return False  # EBADF: closed


@dataclass(frozen=True)
class Terms:
    """On which terms a crew serves. Times in seconds; 0 = off, but for ``graceful_timeout``, where 0 = cut at once."""

    backlog: int = 1024
    graceful_timeout: float = 30.0
    handler_timeout: float = 0.0
    first_byte_timeout: float = 0.0
    head_timeout: float = 30.0
    keep_alive: float = 75.0
    wait_for: str = "auto"
    max_head: int = 16384
    max_parked: int = 10000
    limits: Limits = Limits()  # noqa: RUF009 - frozen
    proxy_mode: str = "off"
    proxy_trusted: Networks = NO_NETWORKS
    proxy_timeout: float = 5.0
    tls: ssl.SSLContext | None = None
    handshake_timeout: float = 10.0
    event_loop: str = "auto"
    service_interval: float = 0.5
    has_access_log: bool = False
    tick: float = 1.0
    """Between signs of life, and looks at what no descriptor tells: a lane that died, a listener made blocking by a
    stranger."""
