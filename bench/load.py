"""The load: one single-threaded client process, started anew for each round.

It is run by path in an isolated interpreter (`python -I -S bench/load.py …`), imports nothing of the project,
and leaves non-zero with a message at the first request that is not answered in full. The caller bounds its
time and kills it when that is over.
"""

import socket
import sys
from collections import deque
from itertools import cycle, islice

LINE = b"the quick brown fox jumps over the lazy dog\n"
GET = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
BODY_END = b"\r\n\r\nok\n"

Address = tuple[str, int]


def connection_begun(address: Address) -> socket.socket:
    """A connected socket with its one request sent; the kernel queues it, so this does not wait."""
    client = socket.create_connection(address)
    client.sendall(LINE)
    return client


def finish_connection(client: socket.socket) -> None:
    """Read to the end of the stream: a reply that is cut or reset is an error, not a sample."""
    reply = b""
    while chunk := client.recv(4096):
        reply += chunk
    client.close()
    if reply != LINE:
        sys.exit(f"a connection was answered with {reply!r}")


def connections(address: Address, count: int, in_flight: int) -> None:
    """Open `count` connections of one request each, keeping `in_flight` of them open: a closed loop.

    One thread holds them in a ring, oldest first, so that the client costs the same whoever is measured.
    """
    ring: deque[socket.socket] = deque()
    for _ in range(count):
        if len(ring) == in_flight:
            finish_connection(ring.popleft())
        ring.append(connection_begun(address))
    while ring:
        finish_connection(ring.popleft())


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
        return connection_begun(address)
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


def keep_alive(address: Address, count: int, kept: int, request: bytes, end: bytes) -> None:
    """Send `count` requests in turn over `kept` connections, each with one request outstanding."""
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
    """`load.py connections|refusals|lines|pages PORT COUNT CONCURRENT`."""
    kind, port, count, concurrent = sys.argv[1], *map(int, sys.argv[2:5])
    address = ("127.0.0.1", port)
    if kind == "connections":
        connections(address, count, concurrent)
    elif kind == "refusals":
        refusals(address, count, concurrent)
    elif kind == "lines":
        keep_alive(address, count, concurrent, LINE, LINE)
    else:
        keep_alive(address, count, concurrent, GET, BODY_END)


if __name__ == "__main__":
    main()
