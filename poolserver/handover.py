"""Connections that change workers, over socket pairs that all workers share: a descriptor and a JSON line each.

The master makes the pairs before its first fork and holds them open, so that what is on its way survives any worker.
Idle lanes wait on the reading ends as they do on listeners. Nothing is sent back.
"""

import ast
import json
import logging
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poolserver.failures import log_line
from poolserver.parked import Parked
from poolserver.station import Station
from poolserver.waits import Step

VERSION = 1

MAX_MESSAGE_BYTES = 2048
"""An address and a URL are a few hundred bytes at most: a Unix socket's path is 108."""


FAMILY = secrets.token_hex(8)
"""Who shares memory with us: all that were forked since this was imported. After an upgrade, connections come from
another family, which counts its own: they claim no place here."""

_DESCRIPTOR = struct.Struct("i")


@dataclass(frozen=True, slots=True)
class Pair:
    """One way: what is written here is read by whichever worker has time. Both ends are in every worker."""

    reading: socket.socket
    writing: socket.socket

    @classmethod
    def open(cls) -> "Pair":
        """Source: unix(7) SOCK_SEQPACKET, which keeps messages whole."""
        reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        return cls(reading, writing)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is on its way."""
        poller = select.poll()
        poller.register(self.reading, select.POLLIN)
        return not poller.poll(0)

    def close(self) -> None:
        """For the master, when the pool is over."""
        self.reading.close()
        self.writing.close()


@dataclass(frozen=True, slots=True)
class Pairs:
    """``ready``: connections that a handler can have at once. ``waiting``: those of a worker that leaves."""

    ready: Pair
    waiting: Pair

    @classmethod
    def open(cls) -> "Pairs":
        return cls(Pair.open(), Pair.open())

    @classmethod
    def passed(cls, sockets: Sequence[socket.socket]) -> "Pairs":
        """Those of the master before, as ``sockets`` gave them: what is on its way in them is not lost."""
        return cls(Pair(*sockets[:2]), Pair(*sockets[2:]))

    @property
    def sockets(self) -> list[socket.socket]:
        """All ends."""
        return [self.ready.reading, self.ready.writing, self.waiting.reading, self.waiting.writing]

    def close(self) -> None:
        self.ready.close()
        self.waiting.close()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection from another worker, None if it was lost; ``place`` says where that one counts it until we do, -1
    for nowhere."""

    parked: Parked | None
    place: int


@dataclass(eq=False, slots=True)
class Intake:
    """Where lanes take in what other workers send. ``is_ready``: a lane handles it; else it is parked."""

    pair: Pair
    is_ready: bool
    stations: Mapping[int, Station]

    def has_more(self) -> bool:
        """Whether a message waits."""
        return not self.pair.is_empty

    def receive(self) -> Arrival | None:
        """The next, if there is one. What cannot be understood is closed and said."""
        try:
            text, fds = _received(self.pair.reading)
        except BlockingIOError:
            return None  # a sibling was quicker
        place = -1
        try:
            told = _understood(text)
            if told["family"] != FAMILY:
                told |= {"place": -1, "claim": 0}
            place = int(told["place"])
            return Arrival(self._parked(told, fds), place)
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            log_line(logging.ERROR, "a connection from another worker is lost: %s", error)
            for fd in fds:
                os.close(fd)
            return Arrival(None, place)

    def _parked(self, told: dict[str, Any], fds: list[int]) -> Parked:
        if not fds:
            raise ValueError("out of descriptors; raise LimitNOFILE")
        station = next((each for each in self.stations.values() if each.url == told["url"]), None)
        if station is None:
            raise ValueError(f"nothing listens on {told['url']} here")
        peer, since, claim = ast.literal_eval(told["peer"]), time.monotonic() - float(told["age"]), int(told["claim"])
        is_between, step = bool(told["between"]), Step(told["step"])
        return Parked(station, socket.socket(fileno=fds[0]), peer, since, claim, is_between=is_between, step=step)


def _received(sock: socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptor, which no program that a handler starts shall inherit.

    Source: recvmsg(2) MSG_CMSG_CLOEXEC; ``socket.recv_fds`` takes flags and ignores them (CPython 3.13.0).
    """
    flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    text, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_LEN(_DESCRIPTOR.size), flags)
    return text, [_DESCRIPTOR.unpack(octets)[0] for _, kind, octets in ancillary if kind == socket.SCM_RIGHTS]


def _understood(text: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(text)
    if told["version"] != VERSION:
        raise ValueError(f"its message has version {told['version']}, ours is {VERSION}")
    return told


def intakes(pairs: Pairs, stations: Mapping[int, Station]) -> dict[int, Intake]:
    """The posts that lanes wait on, by their descriptors."""
    return {
        pair.reading.fileno(): Intake(pair, is_ready, stations)
        for pair, is_ready in ((pairs.ready, True), (pairs.waiting, False))
    }


def send(pair: Pair, parked: Parked, place: int) -> bool:
    """Send a connection that no handler has; the caller closes its own copy then.

    False: the pair is full, or we are out of something; the connection stays. Source: measured, 278 fit.
    """
    told = {
        "version": VERSION,
        "family": FAMILY,
        "url": parked.station.url,
        "peer": repr(parked.address),  # which tells a tuple from a list and bytes from text
        "age": time.monotonic() - parked.since,
        "between": parked.is_between,
        "step": parked.step,
        "claim": parked.claim,
        "place": place,
    }
    try:
        socket.send_fds(pair.writing, [json.dumps(told).encode()], [parked.request.fileno()], socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def may_move(parked: Parked) -> bool:
    """Whether another worker can go on with it: the kernel's socket is all there is to it."""
    if type(parked.request) is not socket.socket or parked.station.may_block:
        return False
    return parked.conversation is None or (parked.station.is_movable and parked.conversation.is_plain)


def may_leave(parked: Parked) -> bool:
    """Whether it can go at once, as it is; a conversation, without a ``finish()`` of the user's, which is for a lane to
    call. One that can has no handler then."""
    if parked.ending is not None or not may_move(parked):
        return False
    if parked.conversation is not None:
        if not parked.conversation.has_stock_finish:
            return False
        parked.conversation.end()
        parked.conversation = None
    return True
