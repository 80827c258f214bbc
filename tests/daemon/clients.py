"""Clients of the daemon under test: one that asks once, and storms that count what became of each request.

``Target`` is all they know of a daemon. Every wait is bounded: by the socket's time-out, the number of
requests, and the storm's end.
"""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Protocol, Self, TypeVar

PATIENCE = 10.0
"""Seconds that a client waits for one thing: far longer than any answer takes on a busy test machine."""

MAX_REPLY_BYTES = 1024 * 1024
"""Longest reply that is read; more is a test gone wrong."""

Fact = TypeVar("Fact")


@dataclass(frozen=True)
class Address:
    """One listener as a client reaches it, from its URL in the ready line."""

    url: str
    family: socket.AddressFamily
    kind: socket.SocketKind
    where: tuple[str, int] | str

    @classmethod
    def parse(cls, url: str) -> Self:
        """``tcp|tls|udp://host:port``, ``unix:/path``, ``unix:@abstract``, ``unixgram:/path``."""
        scheme, _, rest = url.partition(":")
        kind = socket.SOCK_DGRAM if scheme in ("udp", "unixgram") else socket.SOCK_STREAM
        if scheme in ("unix", "unixgram"):
            return cls(url, socket.AF_UNIX, kind, "\0" + rest[1:] if rest.startswith("@") else rest)
        host, _, port = rest.removeprefix("//").rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        return cls(url, family, kind, (host.strip("[]"), int(port)))


class Target(Protocol):
    """What can be connected to: a ``Daemon``."""

    addresses: list[Address]


class Served:
    """A target by its URL, where nobody has read a ready line."""

    def __init__(self, url: str) -> None:
        self.addresses = [Address.parse(url)]


def wait_for(predicate: Callable[[], Fact], timeout: float, what: str) -> Fact:
    """Wait until ``predicate`` gives something true, and return it; AssertionError after ``timeout`` seconds.

    The one place in these tests that sleeps, and only between two looks at a fact: what is waited for is in
    another process, which cannot wake us. ``what`` completes "waited 5 s in vain for …".
    """
    deadline = time.monotonic() + timeout
    while not (fact := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s in vain for {what}")
        time.sleep(0.01)  # the one poll of the suite: between two looks at a fact
    return fact


def connect(target: Target, index: int = 0, timeout: float = PATIENCE) -> socket.socket:
    """A socket connected to the listener with that ``index``; plain, also where the listener speaks TLS."""
    return dial(target.addresses[index], timeout)


def dial(address: Address, timeout: float) -> socket.socket:
    """A socket connected to ``address``; connect, reads and writes take at most ``timeout`` seconds each."""
    client = socket.socket(address.family, address.kind)
    client.settimeout(timeout)
    try:
        if (address.family, address.kind) == (socket.AF_UNIX, socket.SOCK_DGRAM):
            client.bind("")  # Linux chooses an abstract name, so that there is somebody to answer
        client.connect(address.where)
    except BaseException:
        client.close()
        raise
    return client


def ask(target: Target, line: bytes, index: int = 0, timeout: float = PATIENCE) -> bytes:
    """Send ``line`` on a connection of its own; the reply's first line, with its end. b"" where none came."""
    with connect(target, index, timeout) as client:
        client.sendall(line)
        return read_line(client)


def read_line(client: socket.socket) -> bytes:
    """What comes until a line or the connection ends. Of two lines sent at once it may return both."""
    reply = b""
    while not reply.endswith(b"\n") and len(reply) < MAX_REPLY_BYTES:
        chunk = client.recv(65536)
        if not chunk:
            break
        reply += chunk
    return reply


@dataclass
class Counts:
    """What became of a storm's requests.

    ``other`` is for what none of the five words says; ``examples`` quotes a few of each client's failures.
    """

    ok: int = 0
    refused: int = 0
    reset: int = 0
    timed_out: int = 0
    truncated: int = 0
    other: int = 0
    examples: list[str] = field(default_factory=list)

    def note(self, outcome: str) -> None:
        """One more of what this word says."""
        setattr(self, outcome, getattr(self, outcome) + 1)

    @property
    def lost(self) -> int:
        """Requests that were not answered in full."""
        return self.refused + self.reset + self.timed_out + self.truncated + self.other

    @property
    def is_lossless(self) -> bool:
        """Whether there were requests and each was answered in full."""
        return self.ok > 0 and self.lost == 0

    def add(self, other: Self) -> None:
        """Add another client's counts."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


def verdict(problem: OSError) -> str:
    """The word for ``problem``. A Unix listener with a full backlog says EAGAIN: that is refused, too."""
    match problem:
        case ConnectionRefusedError() | BlockingIOError() | FileNotFoundError():
            return "refused"
        case ConnectionResetError() | BrokenPipeError() | ConnectionAbortedError():
            return "reset"
        case TimeoutError():
            return "timed_out"
        case _:
            return "other"


def answered(clients: Iterable[socket.socket], line: bytes) -> Counts:
    """What becomes of clients that have asked and wait for this line."""
    counts = Counts()
    for client in clients:
        try:
            counts.note("ok" if read_line(client) == line else "truncated")
        except OSError as problem:
            counts.note(verdict(problem))
    return counts


def free_port(first: int) -> int:
    """Nobody's at the moment, from ``first`` on, and below those that the kernel gives to who asks for any."""
    for port in range(first, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no port is free")


_ports = itertools.count(23000 + 500 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")))


def own_port() -> int:
    """One that stays ours while nobody is bound to it: the kernel gives it to nobody, and other test processes have
    others."""
    return free_port(next(_ports))


Exchange = Callable[[socket.socket, bytes], bool]
"""Asks on a fresh connection with a line of the client's own; whether the whole right answer came."""


def echo_line(client: socket.socket, line: bytes) -> bool:
    """The usual exchange: what was sent comes back (``handlers:LineHandler``, ``echo:EchoHandler``)."""
    client.sendall(line)
    return read_line(client) == line


class Storm:
    """Clients that connect, ask, and connect again, each in its thread, as long as the block runs::

        with Storm(daemon, clients=16) as storm:
            daemon.signal(signal.SIGHUP)
            storm.wait_for_more(500)
        assert storm.counts.is_lossless, storm.counts

    Or, with ``requests``, until each client has made so many: ``storm(daemon, clients=16, requests=100)``.
    """

    def __init__(
        self,
        target: Target,
        *,
        clients: int = 8,
        requests: int = 100_000,
        index: int = 0,
        timeout: float = PATIENCE,
        exchange: Exchange = echo_line,
    ) -> None:
        self.address = target.addresses[index]
        self.requests = requests
        self.timeout = timeout
        self.exchange = exchange
        self.is_over = threading.Event()
        self.counts_of = [Counts() for _ in range(clients)]
        self.threads = [
            threading.Thread(target=self.run, args=(number,), name=f"client-{number}", daemon=True)
            for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.join(4 * self.timeout)  # a client's connect, send and two reads

    def join(self, timeout: float) -> None:
        """Wait until every client has ended, AssertionError after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread.name for thread in self.threads if thread.is_alive()]
        assert not late, f"clients still at it after {timeout} s: {late}, {self.counts}"

    @property
    def counts(self) -> Counts:
        """All clients' counts, also while they run."""
        total = Counts()
        for counts in self.counts_of:
            total.add(counts)
        return total

    def wait_for_more(self, answers: int, timeout: float = 60.0) -> None:
        """Wait until ``answers`` more requests were answered: not for some time, but for a fact."""
        goal = self.counts.ok + answers
        wait_for(lambda: self.counts.ok >= goal, timeout, f"{answers} more answers; by now {self.counts}")

    def run(self, number: int) -> None:
        """One client. Runs in its own thread and alone writes its counts."""
        counts = self.counts_of[number]
        for request in range(self.requests):
            if self.is_over.is_set():
                return
            outcome = self.ask_once(b"client %d request %d\n" % (number, request), counts)
            counts.note(outcome)

    def ask_once(self, line: bytes, counts: Counts) -> str:
        """One request; the name of its count."""
        try:
            with dial(self.address, self.timeout) as client:
                outcome = "ok" if self.exchange(client, line) else "truncated"
        except OSError as problem:
            outcome = verdict(problem)
            if len(counts.examples) < 3:
                counts.examples.append(f"{line!r}: {problem!r}")
        return outcome


def storm(target: Target, *, requests: int = 50, within: float = 60.0, **options) -> Counts:
    """A storm of so many ``requests`` from each client, waited for; what became of them.

    ``options`` are those of ``Storm``: clients, index, timeout, exchange.
    """
    with Storm(target, requests=requests, **options) as blowing:
        blowing.join(within)
    return blowing.counts
