"""A connection that holds no lane: what it waits for, how far it is, how long it may. ``park.py`` keeps them."""

import math
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from poolserver.adapter import peer_name
from poolserver.conversation import Conversation
from poolserver.proxy_protocol import MAX_BYTES
from poolserver.rows import Outcome, regular
from poolserver.station import Station, Terms
from poolserver.waits import Step, Verdict, Wait, judge, judge_header

_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)  # as flags they cost a microsecond each time
_GLANCE = 2048
"""Bytes that are looked at first: nearly every line or head is shorter."""

READY = (Verdict.COMPLETE, Verdict.ENDED)
_PREFACE_ENDINGS = {Step.HEADER: Outcome.REFUSED_PROXY, Step.HANDSHAKE: Outcome.TIMEOUT_HANDSHAKE}
UNFIT = {Verdict.TOO_LONG: Outcome.REFUSED_MAX_HEAD, Verdict.RESET: Outcome.REFUSED_RESET}


@dataclass(eq=False, slots=True)
class Parked:
    """A connection that holds no lane.

    ``since``: when it was accepted, when its ``step`` or its next request began, or when its last exchange ended.
    ``born``: when it was accepted, or came from another worker. ``claim``: the number of the source that it counts for,
    0 for none. ``is_between`` two exchanges. ``ending``: it is over, and how; a lane has only to finish it.
    ``is_leaving``: a lane is to finish it for another worker to go on with. ``is_lent``: it is in an event loop's
    lobby. ``wants_room``: what it waits for is that the client takes what was sent. ``is_plain``: its conversation's
    bytes are what the client sends. ``is_regular``: lanes take it out of the park for its exchanges and put it back;
    ``peer``: as they write it in their rows.
    """

    station: Station
    request: Any
    address: Any
    since: float
    claim: int = 0
    conversation: Conversation | None = None
    is_between: bool = False
    has_begun: bool = False
    verdict: Verdict = Verdict.SILENT
    ending: Outcome | None = None
    fd: int = -1
    is_counted: bool = False
    is_in_hand: bool = False
    is_leaving: bool = False
    is_lent: bool = False
    has_news: bool = False
    step: Step = Step.REQUEST
    wants_room: bool = False
    born: float = 0.0
    is_plain: bool = False
    is_regular: bool = False
    peer: bytes = b""

    def __post_init__(self) -> None:
        self.born = self.born or self.since
        self.is_plain = self.conversation is not None and self.conversation.is_plain

    def wait_again(self, conversation: Conversation, claim: int, *, has_news: bool) -> None:
        """An exchange is over: until the next. ``has_news``: some of it is there."""
        self.conversation, self.is_plain = conversation, conversation.is_plain
        self.request = conversation.connection
        self.claim, self.has_news = claim, has_news
        self.since = time.monotonic()
        self.is_between = True
        self.has_begun = self.is_in_hand = False
        self.verdict = Verdict.SILENT

    def settle(self) -> None:
        """It is parked: see whether it is a regular."""
        self.is_regular = self.is_between and self.is_plain and not self.has_begun and not self.request.gettimeout()
        if self.is_regular and not self.peer:
            self.peer = regular(peer_name(self.address))

    def look(self, most: int) -> Verdict:
        """Say how far it is; one that no handler can be given has its ending then."""
        if self.step is Step.HEADER:
            self.verdict = self._look_for_header()
        else:
            self.verdict = look(self.request, self._wait(), most, may_be_tls=self.station.may_be_tls)
        if self.wants_room and self.verdict is Verdict.SILENT and _has(self.request, select.POLLOUT):
            self.verdict = Verdict.COMPLETE
        if self.verdict in UNFIT and self.ending is None:
            has_left = self.is_between and self.verdict is Verdict.RESET
            self.ending = Outcome.SERVED if has_left else UNFIT[self.verdict]
        return self.verdict

    def _look_for_header(self) -> Verdict:
        return _look(self.request, MAX_BYTES, partial(judge_header, self.station.proxy_mode))

    def _wait(self) -> Wait:
        is_secret = self.conversation is not None and not self.is_plain
        if is_secret or self.step is Step.HANDSHAKE:
            return Wait.DATA
        return self.station.between if self.is_between else self.station.wait


def has_usual(request: Any, usual_end: bytes, most: int) -> bool:
    """Whether one look finds all that is waited for, and nothing more, as it mostly does where anything is there: on a
    plain socket. False says nothing."""
    if isinstance(request, ssl.SSLSocket) or request.gettimeout():
        return False
    try:
        octets = _recv(request, (most if most < _GLANCE else _GLANCE) if usual_end else 1, _PEEK)
    except OSError:
        return False
    return octets != b"" and octets.endswith(usual_end)


def look(request: Any, wait: Wait, most: int, *, may_be_tls: bool = False) -> Verdict:
    """Say how far a connection is, without reading or waiting."""
    if isinstance(request, ssl.SSLSocket):
        wait = Wait.DATA  # what can be seen is encrypted
    return _look(request, 1 if wait is Wait.DATA else most, partial(judge, wait, most=most, may_be_tls=may_be_tls))


_recv = socket.socket.recv


def _look(request: Any, most: int, judge: Callable[[bytes], Verdict]) -> Verdict:
    """Source: recv(2) MSG_PEEK, MSG_DONTWAIT."""
    try:
        if isinstance(request, ssl.SSLSocket) and request.pending():
            return Verdict.COMPLETE
        if request.gettimeout() and not _has(request, select.POLLIN | select.POLLRDHUP):
            return Verdict.SILENT  # on a socket with a time-out, recv would wait for it, whatever the flags
        octets = _recv(request, min(most, _GLANCE), _PEEK)
        if not octets:
            return Verdict.ENDED
        if len(octets) == _GLANCE:
            octets = _recv(request, most, _PEEK)
        verdict = judge(octets)
        # The end of its input is not seen before what is unread: all that will ever be there is there.
        is_all = verdict is Verdict.PARTIAL and _has(request, select.POLLRDHUP)
    except BlockingIOError:
        return Verdict.SILENT
    except (OSError, ValueError):
        return Verdict.RESET  # ValueError: closed by a thread of the handler
    return Verdict.COMPLETE if is_all else verdict


def _has(request: socket.socket, events: int) -> bool:
    """Source: poll(2); POLLRDHUP: the peer sends no more."""
    poller = select.poll()
    poller.register(request, events)
    return bool(poller.poll(0))


@dataclass(frozen=True, slots=True)
class Limits:
    """How long what may wait, in seconds; infinite where nothing bounds it; and as what its end counts."""

    silent: float
    silent_ending: Outcome
    head: float
    keep_alive: float
    between_ending: Outcome = Outcome.TIMEOUT_KEEP_ALIVE
    header: float = math.inf
    hello: float = math.inf
    handshake: float = math.inf
    """How long a PROXY header, the first byte of a TLS handshake, and the whole of it may take."""

    @classmethod
    def of(cls, terms: Terms, shrink: float = 1.0) -> "Limits":
        """Those of ``terms``, times ``shrink`` under stress."""
        first_byte, head, keep_alive = (
            each * shrink or math.inf for each in (terms.first_byte_timeout, terms.head_timeout, terms.keep_alive)
        )
        ending = Outcome.TIMEOUT_FIRST_BYTE if first_byte <= head else Outcome.TIMEOUT_HEAD
        header, handshake = terms.proxy_timeout * shrink, terms.handshake_timeout * shrink
        silent = min(first_byte, head)
        return cls(silent, ending, head, keep_alive, header=header, hello=handshake, handshake=handshake)

    def preface(self, parked: Parked) -> float:
        """How long one may take that has not come to its request."""
        if parked.step is Step.HEADER:
            return self.header
        return self.handshake if parked.has_begun else self.hello

    def ending(self, parked: Parked) -> Outcome:
        """As what one counts that has waited too long."""
        if parked.step is not Step.REQUEST:
            return Outcome.CUT if self.silent_ending is Outcome.CUT else _PREFACE_ENDINGS[parked.step]
        if parked.has_begun:
            return Outcome.TIMEOUT_HEAD
        return self.between_ending if parked.is_between else self.silent_ending
