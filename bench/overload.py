"""Many more clients than lanes: one single-threaded process that keeps CLIENTS connections of one request each open.

It is run by path in a bare interpreter (`python -E -s -S bench/overload.py KIND PORT COUNT CLIENTS`), like `load.py`,
whose conversations it holds. A client whose connection has ended, however it did, comes again, until COUNT have been
opened. A failure is counted by what the client saw and is no reason to stop. What it saw goes to standard output as one
JSON object; `ms` are the waits of those that were answered, from connect to the stream's end.
"""

import errno
import json
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass

from load import TALKS

PATIENCE = 10.0  # seconds until a client gives up
LOOK_INTERVAL = 0.5  # between two looks for clients whose patience is over


@dataclass(slots=True)
class Client:
    """One connection."""

    sock: socket.socket
    began: float
    reply: bytes = b""


class Crowd:
    """All of them, on one epoll."""

    def __init__(self, address: tuple[str, int], talk: tuple[bytes, bytes]) -> None:
        self.waits: list[float] = []
        self.failures = Counter[str]()
        self.clients: dict[int, Client] = {}
        self._address = address
        self._request, self._end = talk
        self._epoll = select.epoll()

    def come(self) -> None:
        """One more client."""
        sock = socket.socket()
        sock.setblocking(False)
        client = Client(sock, time.perf_counter())
        self.clients[sock.fileno()] = client
        self._epoll.register(sock.fileno(), select.EPOLLOUT)
        if sock.connect_ex(self._address) not in (0, errno.EINPROGRESS):
            self._leave(client, "refused")

    def look(self) -> None:
        """Handle what has happened."""
        for fd, events in self._epoll.poll(LOOK_INTERVAL):
            client = self.clients[fd]
            try:
                self._handle(client, events)
            except ConnectionRefusedError:
                self._leave(client, "refused")
            except ConnectionError:
                self._leave(client, "reset")

    def give_up(self, now: float) -> None:
        """Count those whose patience is over."""
        for client in [each for each in self.clients.values() if now - each.began > PATIENCE]:
            self._leave(client, "not answered in time")

    def _handle(self, client: Client, events: int) -> None:
        if events & select.EPOLLOUT and not events & (select.EPOLLERR | select.EPOLLHUP):
            client.sock.send(self._request)
            self._epoll.modify(client.sock.fileno(), select.EPOLLIN)
            return
        chunk = client.sock.recv(4096)
        client.reply += chunk
        if not chunk:
            self._leave(client, "" if client.reply.endswith(self._end) else "cut")

    def _leave(self, client: Client, failure: str) -> None:
        if failure:
            self.failures[failure] += 1
        else:
            self.waits.append((time.perf_counter() - client.began) * 1000)
        del self.clients[client.sock.fileno()]
        client.sock.close()


def main() -> None:
    """As many at once as are wanted, then as many more as leave."""
    kind, port, count, wanted = sys.argv[1], *map(int, sys.argv[2:5])
    began, spent = time.perf_counter(), time.process_time()
    crowd = Crowd(("127.0.0.1", port), TALKS[kind])
    opened, looked = 0, began
    while opened < count or crowd.clients:
        while opened < count and len(crowd.clients) < wanted:
            crowd.come()
            opened += 1
        crowd.look()
        if (now := time.perf_counter()) - looked > LOOK_INTERVAL:
            looked = now
            crowd.give_up(now)
    took, cpu = time.perf_counter() - began, time.process_time() - spent
    seen = {"seconds": took, "client_cpu": cpu, "ms": crowd.waits, "failures": dict(crowd.failures)}
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
