"""What clients do to a server, ill-willed ones and a good one: one single-threaded process for each call.

It is run by path in an isolated interpreter (`python -I -S bench/attack.py KIND PORT SOURCE …`), imports nothing of
the project, and knows nothing of the server but that it sends back what it is sent. What it saw goes to standard
output as one JSON object. It ends at its bound; what holds connections ends earlier when its standard input, a pipe,
does. SOURCE is an address of 127.0.0.0/8, or the first of COUNT of them. Users: `bench/flood.py`, `tests/daemon`.

Kinds:
  ask COUNT PAUSE PATIENCE SECONDS  one request after another, each on a connection of its own
  flood WANTED SECONDS              open and hold WANTED connections, as fast as can be; one more for each refused
  reset WANTED SECONDS              the same, but each is reset by this side once it is connected
  trickle WANTED SECONDS            hold WANTED, send a byte a second on each; those refused come again each second
  silent COUNT SECONDS              one connection each from COUNT sources, and not a byte
  push RATE SECONDS                 RATE short connections a second
  mix COUNT WANTED SECONDS          from each of COUNT sources, WANTED connections that stay for moments
  places COUNT MOST SECONDS         how many connections, up to MOST, each of COUNT sources gets at once
  line MEGABYTES SECONDS            one line, without an end
"""

import errno
import heapq
import json
import random
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

LINE = b"the quick brown fox jumps over the lazy dog\n"
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen at connect, so that ports of other sources are free
BATCH = 64  # connections opened between two looks at what became of earlier ones
TRICKLE_INTERVAL = 1.0
LONGEST_STAY = 0.2  # of a mixed load's connections, which leave at random before
STALL = 0.5  # seconds without any verdict after which `push` says that it, or the server, was given no CPU


@dataclass(slots=True, eq=False)
class Peer:
    """One connection: `answered` and `ended` are when the server first answered, and when it ended it; 0 = not yet."""

    sock: socket.socket
    source: str
    began: float
    answered: float = 0.0
    ended: float = 0.0


class Swarm:
    """Connections on one epoll, none of which is waited for. Each sends `first` once it is connected."""

    def __init__(self, port: int, first: bytes) -> None:
        self.peers: dict[int, Peer] = {}
        self.counts = Counter[str]()
        self.held = Counter[str]()
        self.held_most = 0
        self.on_connected: Callable[[Peer], None] = self._send_first
        self.on_answer: Callable[[Peer], None] = lambda _: None
        self.on_end: Callable[[Peer], None] = lambda _: None
        self.is_over = False
        self._address = ("127.0.0.1", port)
        self._first = first
        self._epoll = select.epoll()
        try:
            self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        except PermissionError:
            pass  # /dev/null, as epoll has it: nobody will tell when to end

    def open(self, source: str) -> None:
        """Begin a connection. What becomes of it shows in `look`."""
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))
        self.counts["attempts"] += 1
        peer = Peer(sock, source, time.monotonic())
        self.peers[sock.fileno()] = peer
        if sock.connect_ex(self._address) in (0, errno.EINPROGRESS):
            self._epoll.register(sock.fileno(), select.EPOLLOUT)
        else:
            self._end(peer, "failed")

    def look(self, timeout: float) -> None:
        """Handle what has happened, waiting `timeout` seconds at most for anything to."""
        for fd, events in self._epoll.poll(max(0.0, timeout)):
            if fd == sys.stdin.fileno():
                self.is_over = True
            else:
                self._handle(self.peers[fd], events)

    def send(self, peer: Peer, data: bytes) -> None:
        """Send what fits; a connection that has ended shows in `look`."""
        try:
            peer.sock.send(data)
        except OSError:
            pass  # reset, or full: the next look tells

    def leave(self, peer: Peer) -> None:
        """End it from this side."""
        self._end(peer, "left")

    def _handle(self, peer: Peer, events: int) -> None:
        if events & (select.EPOLLERR | select.EPOLLIN | select.EPOLLHUP):
            self._receive(peer)
        elif events & select.EPOLLOUT:
            self._epoll.modify(peer.sock.fileno(), select.EPOLLIN)
            self.on_connected(peer)

    def _send_first(self, peer: Peer) -> None:
        if self._first:
            self.send(peer, self._first)

    def _receive(self, peer: Peer) -> None:
        try:
            chunk = peer.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            self._end(peer, "cut" if peer.answered else "refused")
            return
        if not chunk:
            self._end(peer, "cut" if peer.answered else "refused")
        elif not peer.answered:
            peer.answered = time.monotonic()
            self.counts["answered"] += 1
            self.held[peer.source] += 1
            self.held_most = max(self.held_most, self.held[peer.source])
            self.on_answer(peer)

    def _end(self, peer: Peer, how: str) -> None:
        del self.peers[peer.sock.fileno()]
        peer.sock.close()
        peer.ended = time.monotonic()
        self.counts[how] += 1
        self.held[peer.source] -= bool(peer.answered)
        self.on_end(peer)


def ask(port: int, source: str, count: int, pause: float, patience: float, seconds: float) -> dict[str, object]:
    """Request after request; how long each took in ms, and what went wrong with the others."""
    took: list[float] = []
    failures = Counter[str]()
    until = time.monotonic() + seconds
    for _ in range(count):
        began = time.perf_counter()
        if (left := until - time.monotonic()) <= 0:
            break
        try:
            with connected(port, source, min(patience, left)) as sock:
                sock.sendall(LINE)
                reply = sock.recv(len(LINE))
        except OSError as error:
            failures[type(error).__name__] += 1
            continue
        if reply == LINE:
            took.append((time.perf_counter() - began) * 1000)
        else:
            failures["cut short"] += 1
        time.sleep(pause)  # so that the requests outlast the beginning of an attack
    return {"answered": len(took), "failures": failures, "ms": took}


def connected(port: int, source: str, patience: float) -> socket.socket:
    """A connection from `source`, whose operations wait so long."""
    return socket.create_connection(("127.0.0.1", port), patience, source_address=(source, 0))


def flood(port: int, source: str, wanted: int, seconds: float) -> dict[str, object]:
    """As fast as this process can."""
    swarm = Swarm(port, LINE)
    storm(swarm, source, wanted, seconds)
    return {"counts": swarm.counts, "held_most": swarm.held_most}


def reset(port: int, source: str, wanted: int, seconds: float) -> dict[str, object]:
    """As a scanner does, or a client that has given up."""
    swarm = Swarm(port, b"")

    def reset_it(peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        swarm.leave(peer)

    swarm.on_connected = reset_it
    storm(swarm, source, wanted, seconds)
    return {"counts": swarm.counts}


def storm(swarm: Swarm, source: str, wanted: int, seconds: float) -> None:
    """Keep up as many connections as are wanted."""
    until = time.monotonic() + seconds
    while not swarm.is_over and time.monotonic() < until:
        missing = min(BATCH, wanted - len(swarm.peers))
        for _ in range(missing):
            swarm.open(source)
        swarm.look(0.0 if missing else 0.05)


def trickle(port: int, source: str, wanted: int, seconds: float) -> dict[str, object]:
    """Says also how long each that the server cut had been answered, and how long ago it was begun."""
    swarm = Swarm(port, LINE[:1])
    cut: list[Peer] = []
    swarm.on_end = lambda peer: cut.append(peer) if peer.answered else None
    next_byte = time.monotonic()
    until = next_byte + seconds
    while not swarm.is_over and (now := time.monotonic()) < until:
        if now >= next_byte:
            next_byte += TRICKLE_INTERVAL
            for peer in swarm.peers.values():
                swarm.send(peer, LINE[:1])
            for _ in range(wanted - len(swarm.peers)):
                swarm.open(source)
        swarm.look(min(next_byte, until) - time.monotonic())
    return {
        "counts": swarm.counts,
        "held_most": swarm.held_most,
        "lasted": sorted(peer.ended - peer.answered for peer in cut),
        "existed": sorted(peer.ended - peer.began for peer in cut),
    }


def silent(port: int, source: str, count: int, seconds: float) -> dict[str, object]:
    """Says when each was ended, in seconds since it was begun."""
    swarm = Swarm(port, b"")
    lasted: list[float] = []
    swarm.on_end = lambda peer: lasted.append(peer.ended - peer.began)
    until = time.monotonic() + seconds
    for each in sources(source, count):
        swarm.open(each)
    while swarm.peers and not swarm.is_over and time.monotonic() < until:
        swarm.look(until - time.monotonic())
    return {"counts": swarm.counts, "lasted": sorted(lasted)}


def push(port: int, source: str, rate: int, seconds: float) -> dict[str, object]:
    """Connections at a pace, each closed when it was answered.

    `elapsed` is from the first attempt to the last verdict; `stalled` is what of it passed without any verdict,
    beyond half a second at a time, when this process or the server was given no CPU.
    """
    swarm = Swarm(port, LINE)
    swarm.on_answer = swarm.leave
    began = last = time.monotonic()
    stalled = 0.0

    def on_end(peer: Peer) -> None:
        nonlocal last, stalled
        stalled += max(0.0, peer.ended - last - STALL)
        last = peer.ended

    swarm.on_end = on_end
    total = int(rate * seconds)
    while not swarm.is_over and (swarm.peers or swarm.counts["attempts"] < total):
        due = min(total, int((time.monotonic() - began) * rate) + 1)
        for _ in range(due - swarm.counts["attempts"]):
            swarm.open(source)
        swarm.look(0.5 / rate)
    return {"counts": swarm.counts, "elapsed": last - began, "stalled": stalled}


def mix(port: int, source: str, count: int, wanted: int, seconds: float) -> dict[str, object]:
    """Each answered connection stays for a random moment, and is then made anew."""
    swarm = Swarm(port, LINE)
    leaving: list[tuple[float, int, Peer]] = []
    swarm.on_answer = lambda peer: heapq.heappush(
        leaving, (time.monotonic() + random.random() * LONGEST_STAY, id(peer), peer)
    )
    missing = [each for each in sources(source, count) for _ in range(wanted)]
    swarm.on_end = lambda peer: missing.append(peer.source)
    until = time.monotonic() + seconds
    while not swarm.is_over and time.monotonic() < until:
        for each in [missing.pop() for _ in range(min(BATCH, len(missing)))]:
            swarm.open(each)
        while leaving and leaving[0][0] <= time.monotonic():
            peer = heapq.heappop(leaving)[2]
            if not peer.ended:
                swarm.leave(peer)
        swarm.look(0.005)
    return {"counts": swarm.counts, "held_most": swarm.held_most}


def number(text: str) -> float:
    """An int where it is one: counts are."""
    return int(text) if text.isdecimal() else float(text)


def places(port: int, source: str, count: int, most: int, seconds: float) -> dict[str, object]:
    """One source after the other, each connection waited for, so that no two race."""
    until = time.monotonic() + seconds
    return {"places": [places_of(port, each, most, until) for each in sources(source, count)]}


def places_of(port: int, source: str, most: int, until: float) -> int:
    """Connections that are answered while those before are held."""
    with ExitStack() as held:
        for number in range(most):
            try:
                sock = held.enter_context(connected(port, source, max(0.001, until - time.monotonic())))
                sock.sendall(LINE)
                is_answered = sock.recv(len(LINE)) == LINE
            except OSError:
                is_answered = False
            if not is_answered:
                return number
    return most


def line(port: int, source: str, megabytes: int, seconds: float) -> dict[str, object]:
    """Says how many bytes the server took."""
    sent, chunk = 0, bytes(2**20).replace(b"\0", b"x")
    with connected(port, source, seconds) as sock:
        try:
            for _ in range(megabytes):
                sock.sendall(chunk)
                sent += len(chunk)
        except OSError:
            pass  # it has had enough, which the number says
    return {"sent": sent}


def sources(first: str, count: int) -> Iterator[str]:
    """`count` addresses from `first`."""
    start = int.from_bytes(socket.inet_aton(first), "big")
    return (socket.inet_ntoa(number.to_bytes(4, "big")) for number in range(start, start + count))


KINDS: dict[str, Callable[..., dict[str, object]]] = {
    "ask": ask,
    "flood": flood,
    "reset": reset,
    "trickle": trickle,
    "silent": silent,
    "push": push,
    "mix": mix,
    "places": places,
    "line": line,
}


def main() -> None:
    """`attack.py KIND PORT SOURCE NUMBER…`."""
    kind, port, source, *numbers = sys.argv[1:]
    json.dump(KINDS[kind](int(port), source, *map(number, numbers)), sys.stdout)


if __name__ == "__main__":
    main()
