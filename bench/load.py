"""The load: one single-threaded client process, started anew for each round.

It is run by path in a bare interpreter (`python -E -s -S bench/load.py …`), imports nothing of the project,
and leaves non-zero with a message at the first request that is not answered in full. The caller bounds its
time and kills it when that is over.
"""

import json
import socket
import sys
import time
from collections import deque
from itertools import cycle, islice

LINE = b"the quick brown fox jumps over the lazy dog\n"
BODY_END = b"\r\n\r\nok\n"

TALKS = {
    "echoes": (LINE, LINE),
    "pings": (b"PING\r\n", b"+PONG\r\n"),
    "gets": (b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n", BODY_END),
    "kept-pings": (b"PING\r\n", b"+PONG\r\n"),
    "kept-gets": (b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n", BODY_END),
}
"""What is sent, and how its reply ends."""

Address = tuple[str, int]
Talk = tuple[bytes, bytes]


def connection_begun(address: Address, request: bytes) -> socket.socket:
    """A connected socket with its one request sent; the kernel queues it, so this does not wait."""
    client = socket.create_connection(address)
    client.sendall(request)
    return client


def finish_connection(client: socket.socket, end: bytes) -> None:
    """Read to the end of the stream: a reply that is cut or reset is an error, not a sample."""
    reply = b""
    while chunk := client.recv(4096):
        reply += chunk
    client.close()
    if not reply.endswith(end):
        sys.exit(f"a connection was answered with {reply!r}")


def connections(address: Address, count: int, in_flight: int, talk: Talk) -> None:
    """Open `count` connections of one request each, keeping `in_flight` of them open: a closed loop.

    One thread holds them in a ring, oldest first, so that the client costs the same whoever is measured.
    """
    ring: deque[socket.socket] = deque()
    for _ in range(count):
        if len(ring) == in_flight:
            finish_connection(ring.popleft(), talk[1])
        ring.append(connection_begun(address, talk[0]))
    while ring:
        finish_connection(ring.popleft(), talk[1])


def refusals(address: Address, count: int, in_flight: int) -> None:
    """The same from a source that the server refuses: each connection is to be reset."""
    ring: deque[socket.socket | None] = deque()
    for _ in range(count):
        if len(ring) == in_flight:
            finish_refusal(ring.popleft())
        ring.append(refusal_begun(address))
    while ring:
        finish_refusal(ring.popleft())


def refusal_begun(address: Address) -> socket.socket | None:
    """None where it was reset while it was begun."""
    try:
        return connection_begun(address, LINE)
    except (ConnectionResetError, BrokenPipeError):
        return None


def finish_refusal(client: socket.socket | None) -> None:
    """Wait for the reset; to be answered is an error."""
    if client is None:
        return
    try:
        reply = client.recv(4096)
    except ConnectionResetError:
        client.close()
    else:
        sys.exit(f"a connection that was to be refused got {reply!r}")


def receive_reply(client: socket.socket, end: bytes) -> None:
    """Read one reply, known by how it ends; a closed connection is an error."""
    reply = b""
    while not reply.endswith(end):
        chunk = client.recv(4096)
        if not chunk:
            sys.exit(f"a kept connection was closed after {reply!r}")
        reply += chunk


def keep_alive(address: Address, count: int, kept: int, talk: Talk) -> None:
    """Send `count` requests in turn over `kept` connections, each with one request outstanding."""
    request, end = talk
    clients = [socket.create_connection(address) for _ in range(kept)]
    for client in clients:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(request)
    for client in islice(cycle(clients), count - kept):
        receive_reply(client, end)
        client.sendall(request)
    for client in islice(cycle(clients), count - kept, count):
        receive_reply(client, end)
        client.close()


def main() -> None:
    """`load.py KIND PORT COUNT CONCURRENT`: how long it took, and the client's own CPU, in seconds."""
    kind, port, count, concurrent = sys.argv[1], *map(int, sys.argv[2:5])
    address = ("127.0.0.1", port)
    began, spent = time.perf_counter(), time.process_time()
    if kind == "refusals":
        refusals(address, count, concurrent)
    elif kind.startswith("kept-"):
        keep_alive(address, count, concurrent, TALKS[kind])
    else:
        connections(address, count, concurrent, TALKS[kind])
    print(json.dumps({"seconds": time.perf_counter() - began, "client_cpu": time.process_time() - spent}))


if __name__ == "__main__":
    main()
